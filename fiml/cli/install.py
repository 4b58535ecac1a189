"""`fiml install`: tells an MCP client how to start fiml."""

import json
import os
import re
import secrets
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from fiml.core.config import Settings, variable
from fiml.core.errors import Misconfigured

NAME = "fiml"
"""The name of our entry among a client's servers."""

MASK = "***"


class Client(StrEnum):
    """An MCP client whose configuration file we know."""

    CLAUDE_DESKTOP = "claude-desktop"
    CLAUDE_CODE = "claude-code"
    CURSOR = "cursor"
    VSCODE = "vscode"


_NEXT_STEPS = {
    Client.CLAUDE_DESKTOP: "quit Claude Desktop, not just its window, and start it again",
    Client.CLAUDE_CODE: "start `claude` again in this folder and approve the server; /mcp shows it",
    Client.CURSOR: "restart Cursor; its settings list the server under MCP",
    Client.VSCODE: "open this folder in VS Code and start the server with the command `MCP: List Servers`",
}
_PROJECT_CLIENTS = (Client.CLAUDE_CODE, Client.VSCODE)


def install(
    client: Annotated[Client, typer.Argument(help="the MCP client", show_default=False)],
    *,
    write: Annotated[bool, typer.Option("--write", help="write it into the client's file")] = False,
) -> None:
    """Show the configuration with which an MCP client starts fiml, or write it into the client's file.

    The configuration goes to standard output, explanations to standard error.
    """
    settings = Settings()
    source = _data_source(settings)
    variables = _variables(settings)
    file = configuration_file(client)
    _explain(f"configuration file of {client}: {file}")
    _explain(f"market data: {source}")
    _explain_left_out(variables)
    _explain_secrets(client, variables)
    typer.echo(json.dumps(_document(client, _masked(variables)), indent=2))
    if not write:
        _explain(f"nothing was written; put this into the file, or run: fiml install {client} --write")
        _explain(f"then {_NEXT_STEPS[client]}")
        return
    if _write_entry(file, client, variables):
        _explain(f"written to {file}; next, {_NEXT_STEPS[client]}")
    else:
        _explain(f"{file} already has this entry; nothing was changed")


def configuration_file(client: Client, system: str = sys.platform) -> Path:
    """The file in which a client looks for servers to start: the user's, or the project's in the current folder."""
    match client:
        case Client.CLAUDE_DESKTOP:
            return _application_folder(system) / "Claude" / "claude_desktop_config.json"
        case Client.CLAUDE_CODE:
            return Path.cwd() / ".mcp.json"
        case Client.CURSOR:
            return _home() / ".cursor" / "mcp.json"
        case Client.VSCODE:
            return Path.cwd() / ".vscode" / "mcp.json"


def _application_folder(system: str) -> Path:
    if system == "darwin":
        return _home() / "Library" / "Application Support"
    if system == "win32":
        return Path(os.environ.get("APPDATA") or _home() / "AppData" / "Roaming")
    return Path(os.environ.get("XDG_CONFIG_HOME") or _home() / ".config")


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        raise Misconfigured("this user has no home folder, in which the client has its file; set HOME") from None


def _data_source(settings: Settings) -> str:
    from fiml.market.service import market_source  # noqa: PLC0415 - only this command needs it

    return f"{market_source(settings)} (FIML_MARKET_DATA is {settings.market_data})"


def _variables(settings: Settings) -> dict[str, str]:
    """The settings in the environment, by variable; paths are absolute, since the client starts fiml in any folder."""
    ours = {variable(field) for field in Settings.model_fields}
    given = {name.upper(): value for name, value in sorted(os.environ.items()) if value}
    paths = {variable(field): str(path.absolute()) for field, path in settings.paths.items()}
    return {name: paths.get(name, value) for name, value in given.items() if name in ours}


def _masked(variables: dict[str, str]) -> dict[str, str]:
    return {name: _without_password(value) if _is_secret(name) else value for name, value in variables.items()}


def _is_secret(name: str) -> bool:
    """Whether a setting is hidden when settings are shown."""
    return any(name == variable(field) and not info.repr for field, info in Settings.model_fields.items())


def _without_password(url: str) -> str:
    """A URL with `***` for every part that may contain a password, even if the URL is malformed; a path as it is."""
    scheme, _, rest = url.partition("://")
    if re.search(r"[?&][^=&]*pass", rest, re.IGNORECASE):
        return f"{scheme}://{MASK}"
    credentials, at, location = rest.rpartition("@")
    return f"{scheme}://{MASK}@{location}" if at and ":" in credentials else url


def _explain_left_out(variables: dict[str, str]) -> None:
    ours = {name.upper() for name, value in os.environ.items() if value and name.upper().startswith("FIML_")}
    for name in sorted(ours - variables.keys()):
        _explain(f"{name} is not a setting and was left out; `fiml doctor` names the nearest one")


def _explain_secrets(client: Client, variables: dict[str, str]) -> None:
    masked = _masked(variables)
    hidden = [name for name, value in variables.items() if masked[name] != value]
    if not hidden:
        return
    _explain(f"password in {', '.join(hidden)}, shown here as {MASK}; --write writes it in plain text")
    if client in _PROJECT_CLIENTS:
        _explain("the file is in your project: keep it out of version control")


def _key(client: Client) -> str:
    return "servers" if client is Client.VSCODE else "mcpServers"


def _entry(client: Client, variables: dict[str, str]) -> dict[str, Any]:
    kind = {"type": "stdio"} if client is Client.VSCODE else {}
    return {**kind, "command": sys.executable, "args": ["-m", "fiml", "serve"], "env": variables}


def _document(client: Client, variables: dict[str, str]) -> dict[str, Any]:
    return {_key(client): {NAME: _entry(client, variables)}}


def _write_entry(file: Path, client: Client, variables: dict[str, str]) -> bool:
    """Put our entry into a file, and keep the rest of it; whether that changed anything."""
    try:
        document = _read_document(file)
        servers = document.setdefault(_key(client), {})
        if not isinstance(servers, dict):
            raise _left_alone(file, f"its {_key(client)!r} is not a JSON object")
        entry = _entry(client, variables)
        if servers.get(NAME) == entry:
            return False
        servers[NAME] = entry
        is_secret = _masked(variables) != variables
        _replace(
            file, json.dumps(document, indent=2, ensure_ascii=False) + "\n", new_mode=0o600 if is_secret else 0o666
        )
    except OSError as exc:
        raise Misconfigured(
            f"{file} can't be written ({exc.strerror}); change its permissions, or add the entry above by hand"
        ) from exc
    return True


def _read_document(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repetition)
    except FileNotFoundError:
        return {}
    except ValueError as exc:
        raise _left_alone(file, f"it is not valid JSON ({exc})") from exc
    if not isinstance(document, dict):
        raise _left_alone(file, "its JSON is not an object")
    return document


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object without repeated names: if a name is there twice, writing would lose one of the values."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has the same name twice")
    return found


def _left_alone(file: Path, problem: str) -> Misconfigured:
    return Misconfigured(
        f"{file} was left as it is, since {problem}; fix it and run this again, or add the entry above by hand"
    )


def _replace(file: Path, text: str, *, new_mode: int) -> None:
    """Write a file as a whole, or not at all. An existing file keeps its mode, and a link remains a link."""
    target = file.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    mode = target.stat().st_mode & 0o7777 if target.exists() else None
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if mode else new_mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        if mode is not None:
            temporary.chmod(mode)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def _explain(line: str) -> None:
    typer.echo(line, err=True)
