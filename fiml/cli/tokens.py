"""`fiml token`: tokens for HTTP, for small teams without an identity provider."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar
from uuid import UUID

import typer

from fiml.access.principals import USUAL_SCOPES
from fiml.cli.running import plain
from fiml.core.config import Settings
from fiml.core.errors import InvalidInput, echo

if TYPE_CHECKING:  # loads SQLAlchemy, which a server starts without
    from fiml.access.tokens import AccessTokens

Result = TypeVar("Result")

token = typer.Typer(help="Create, list and revoke tokens for HTTP.", no_args_is_help=True)


@token.command()
def new(
    user: Annotated[str, typer.Argument(help="the user whom it identifies", metavar="USER")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help=f"what it may do, by default {', '.join(USUAL_SCOPES)}; may be repeated"),
    ] = None,
    days: Annotated[int, typer.Option(help="how many days it is valid, 1 to 366")] = 90,
) -> None:
    """Create a token and print it, once. fiml keeps only a digest of it."""
    wanted = scope or [str(each) for each in USUAL_SCOPES]
    text, issued = _with_tokens(lambda tokens: tokens.issue(user, scopes=wanted, days=days))
    typer.echo(text)
    typer.echo(
        f"for {plain(issued.user_id)}, until {issued.expires_at:%Y-%m-%d}: {', '.join(sorted(issued.scopes))}", err=True
    )
    typer.echo("it isn't shown again; servers accept it with FIML_AUTH_TOKENS=true", err=True)


@token.command("list")
def list_() -> None:
    """List the tokens, newest first, without their secrets."""
    from fiml.access.tokens import MAX_LISTED  # noqa: PLC0415 - as above

    found = _with_tokens(lambda tokens: tokens.list_tokens())
    if not found:
        typer.echo("no tokens")
    for issued in found:
        state = "valid" if issued.is_valid else "revoked" if issued.revoked_at else "expired"
        scopes = ", ".join(sorted(issued.scopes))
        typer.echo(f"{issued.id}  {plain(issued.user_id)}  {state}  until {issued.expires_at:%Y-%m-%d}  {scopes}")
    if len(found) == MAX_LISTED:
        typer.echo(f"only the newest {MAX_LISTED} are listed", err=True)


@token.command()
def revoke(
    token_id: Annotated[str, typer.Argument(help="the token's id, as `fiml token list` shows it", metavar="ID")],
) -> None:
    """Revoke a token. Every server refuses it within half a minute."""
    try:
        parsed = UUID(token_id)
    except ValueError:
        raise InvalidInput("token id", f"{echo(token_id)} is malformed", "give an id of `fiml token list`") from None
    if not _with_tokens(lambda tokens: tokens.revoke(parsed)):
        problem = f"{parsed} belongs to no token, or to one that is already revoked"
        raise InvalidInput("token id", problem, "`fiml token list` lists them")
    typer.echo("revoked")


def _with_tokens(work: Callable[["AccessTokens"], Awaitable[Result]]) -> Result:
    from fiml.access.tokens import open_tokens  # noqa: PLC0415 - as above

    async def run() -> Result:
        tokens = open_tokens(Settings())
        try:
            return await work(tokens)
        finally:
            await tokens.aclose()

    return asyncio.run(run())
