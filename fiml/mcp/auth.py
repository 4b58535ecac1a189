"""In whose name a call is made: on HTTP, that of the bearer of a token; otherwise the local user's."""

from typing import TYPE_CHECKING, Any

from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken
from mcp.server.auth.settings import AuthSettings
from mcp.server.context import CallNext, HandlerResult, ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import INVALID_REQUEST

from fiml.access.principals import LOCAL_USER, TOKEN_PREFIX, Principal, known_scopes
from fiml.core.config import Settings
from fiml.core.errors import Misconfigured

if TYPE_CHECKING:
    from fiml.access.tokens import AccessTokens

_CLIENT = "fiml"


def current_principal() -> Principal:
    """The principal of the call that is being answered."""
    token = get_access_token()
    if token is None:
        return LOCAL_USER
    return Principal(token.subject, known_scopes(token.scopes))


class TokenCheck:
    """Refuses every message that came without a token: a second defence, since the HTTP transport refuses it first."""

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        if get_access_token() is None:
            raise MCPError(INVALID_REQUEST, "a bearer token is needed")
        return await call_next(ctx)


class BearerVerifier:
    """Verifies the kinds of tokens that the settings accept: signed ones, and those of `fiml token new`."""

    def __init__(self, settings: Settings) -> None:
        self._signed = None
        if settings.auth_issuer is not None:
            from fiml.access.signed import SignedTokens  # noqa: PLC0415 - only needed with an issuer

            self._signed = SignedTokens(settings)
        self._tokens: AccessTokens | None = None
        if settings.auth_tokens:
            from fiml.access.tokens import open_tokens  # noqa: PLC0415 - SQLAlchemy, as above

            self._tokens = open_tokens(settings)

    async def verify_token(self, token: str) -> AccessToken | None:
        """Called by the SDK: the owner and scopes of a token; `None` if it isn't accepted."""
        principal = await self._principal_of(token)
        if principal is None or principal.user_id is None:
            return None
        # The token itself isn't passed on.
        return AccessToken(
            token="", client_id=_CLIENT, scopes=[str(scope) for scope in principal.scopes], subject=principal.user_id
        )

    async def aclose(self) -> None:
        """Close the database of tokens, and stop fetching keys."""
        if self._signed is not None:
            await self._signed.aclose()
        if self._tokens is not None:
            await self._tokens.aclose()

    async def _principal_of(self, token: str) -> Principal | None:
        if token.startswith(TOKEN_PREFIX):
            return None if self._tokens is None else await self._tokens.principal_of(token)
        return None if self._signed is None else await self._signed.principal_of(token)


def auth_settings(settings: Settings) -> AuthSettings:
    """What the SDK tells clients about how to authenticate.

    Raises:
        Misconfigured: there is an issuer of tokens, but FIML_PUBLIC_URL isn't set.
    """
    if settings.auth_issuer is None:
        # Only `fiml token new` issues tokens. The SDK requires an address, but without a resource, it doesn't show it.
        return AuthSettings.model_validate({"issuer_url": "https://localhost", "resource_server_url": None})
    if settings.public_url is None:
        raise Misconfigured("FIML_PUBLIC_URL is not set: set it to where clients reach /mcp, for the resource metadata")
    return AuthSettings.model_validate(
        {
            # Unchanged: with any other spelling, it would be another issuer.
            "issuer_url": settings.auth_issuer,
            "resource_server_url": settings.public_url,
            # `SignedTokens` checks the audience, together with the signature.
            "validate_token_resource": False,
        }
    )
