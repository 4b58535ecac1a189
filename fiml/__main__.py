"""The command `fiml`, also run as `python -m fiml`."""

import gc
import os
import sys
from pathlib import Path


def main() -> None:
    """Run the command line, and keep the garbage collector off while its modules load.

    Loaded modules stay until the end: scanning them again and again took a tenth of the time that a client waits for
    its first answer.
    """
    gc.disable()
    _open_missing_streams()
    is_server = sys.argv[1:2] == ["serve"]
    if is_server:
        # Libraries load rich to write to terminals, which a server never does; it takes a twentieth of the start.
        sys.modules["rich"] = None  # type: ignore[assignment]  # to the import system, it isn't installed
        os.environ["TYPER_USE_RICH"] = "false"
    from fiml.cli import main as run_command  # noqa: PLC0415 - see the docstring

    if is_server:
        import fiml.mcp.server  # noqa: F401, PLC0415 - as above
    gc.freeze()
    gc.enable()
    run_command()


def _open_missing_streams() -> None:
    """Open the null device for each standard stream that whoever started us has closed.

    Otherwise the next file or socket to be opened would get its number, and what libraries write to the stream.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # by number: each gets the lowest free one
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - open until the end


if __name__ == "__main__":
    main()
