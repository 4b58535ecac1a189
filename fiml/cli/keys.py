"""`fiml keys`: the keys for encrypting sessions at rest."""

import asyncio
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from fiml.core import clock
from fiml.core.config import Settings
from fiml.core.errors import InvalidInput, Misconfigured

if TYPE_CHECKING:  # what only these commands need
    from fiml.sessions.backends.reencryption import Progress
    from fiml.sessions.keyring import KeyFile

_SHOW_EVERY = 1000

keys = typer.Typer(help="Keys of encryption at rest: add, list, change over to a new one.", no_args_is_help=True)


@keys.command()
def new(key_id: Annotated[str | None, typer.Option("--id", help="its name; default: one is made")] = None) -> None:
    """Add a key to the file that FIML_ENCRYPTION_KEYS names; the first one makes the file."""
    file = _key_file()
    key = file.add(key_id)
    typer.echo(key.id)
    typer.echo(f"in {file.path}; keep a copy apart: without it, nobody can read what it encrypts", err=True)
    if file.keyring().current.id != key.id:
        typer.echo("give the file to every machine, then run `fiml keys rotate`", err=True)


@keys.command("list")
def list_(
    usage: Annotated[bool, typer.Option("--usage", help="count the sessions that need each; reads them all")] = False,
) -> None:
    """List the keys, the oldest first, without themselves."""
    keyring = _key_file().keyring()
    counts = asyncio.run(_usage()) if usage else Counter[str]()
    for key_id in keyring.keys:
        state = "current" if key_id == keyring.current.id else "for reading"
        typer.echo(f"{key_id}  {state}" + (f"  {counts[key_id]} sessions" if usage else ""))
    for key_id in sorted(counts.keys() - keyring.keys.keys()):
        name = f"{key_id}, which is not here" if key_id else "in clear"
        typer.echo(f"{name}: {counts[key_id]} sessions")


@keys.command()
def rotate(
    encrypt_plaintext: Annotated[
        bool, typer.Option("--encrypt-plaintext", help="encrypt sessions from before encryption too")
    ] = False,
    background: Annotated[
        bool, typer.Option("--background", help="leave what is stored to the maintenance of the servers")
    ] = False,
) -> None:
    """Encrypt with the newest key from now on, and everything that is stored, while servers go on."""
    if background and encrypt_plaintext:
        raise InvalidInput("--background", "doesn't go with --encrypt-plaintext", "leave one of them out")
    key = _key_file().advance()
    typer.echo(f"the current key is {key.id}")
    if background:
        typer.echo("the maintenance encrypts what is stored; `fiml keys list --usage` shows how far it is")
        return
    progress = asyncio.run(_reencrypt(key.id, adopts_plaintext=encrypt_plaintext))
    typer.echo(f"{progress.rewritten} sessions were encrypted anew, of {progress.looked_at}")
    if progress.kept_copies:
        typer.echo(f"these copies still hold what was in clear; remove them: {', '.join(progress.kept_copies)}")
    if progress.unreadable:
        typer.echo(f"{progress.unreadable} sessions can't be read, and stay as they are; the log above names them")
    if progress.in_clear:
        typer.echo(f"{progress.in_clear} sessions are in clear; `fiml keys rotate --encrypt-plaintext` encrypts them")
    if progress.unreadable or progress.in_clear:
        raise typer.Exit(1)


def _key_file() -> "KeyFile":
    from fiml.sessions.keyring import KeyFile  # noqa: PLC0415 - as above

    path = Settings().encryption_keys
    if path is None:
        raise Misconfigured(
            "FIML_ENCRYPTION_KEYS is not set; let it name the file of keys, such as ~/.config/fiml/keys, here and for "
            "every process of fiml"
        )
    return KeyFile(path)


async def _usage() -> Counter[str]:
    from fiml.sessions.store import SessionStore  # noqa: PLC0415 - as above

    async with SessionStore() as store:
        return await store.count_key_usage()


async def _reencrypt(key_id: str, *, adopts_plaintext: bool) -> "Progress":
    from fiml.sessions.backends.reencryption import Progress  # noqa: PLC0415 - as above
    from fiml.sessions.maintenance import key_change  # noqa: PLC0415 - as above
    from fiml.sessions.store import SessionStore  # noqa: PLC0415 - as above

    progress, shown = Progress(), 0
    async with SessionStore() as store:
        async for progress in store.reencrypt_sessions(adopts_plaintext=adopts_plaintext):
            if progress.looked_at >= shown + _SHOW_EVERY:
                shown = progress.looked_at
                typer.echo(f"looked at {shown} sessions", err=True)
        await store.keeping.finish_job(
            key_change(key_id).name, now=clock.now(), result={"rewritten": progress.rewritten}
        )
    return progress
