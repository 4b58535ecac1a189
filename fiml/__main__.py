"""The command `fiml`, which `python -m fiml` is too."""

import gc
import os
import sys


def main() -> None:
    """Run the command line, with what it needs loaded without the garbage collector.

    What is loaded stays to the end: to look through it again and again took a tenth of the time until the first
    answer, for which a client waits.
    """
    gc.disable()
    is_server = sys.argv[1:2] == ["serve"]
    if is_server:
        # Libraries load it for terminals, where no server writes, and a twentieth of the start goes into it.
        sys.modules["rich"] = None  # type: ignore[assignment]  # the import system takes it as not installed
        os.environ["TYPER_USE_RICH"] = "false"
    from fiml.cli import main as run_command  # noqa: PLC0415 - loaded here, as said above

    if is_server:
        import fiml.mcp.server  # noqa: F401, PLC0415 - as above
    gc.freeze()
    gc.enable()
    run_command()


if __name__ == "__main__":
    main()
