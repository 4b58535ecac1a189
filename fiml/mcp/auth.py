"""In whose name a call is made: the bearer of a token on HTTP, else the local user."""

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
    """Refuses every message that came without a token; the HTTP door has done so before, this is the second lock."""

    async def __call__(self, ctx: ServerRequestContext[Any, Any], call_next: CallNext) -> HandlerResult:
        if get_access_token() is None:
            raise MCPError(INVALID_REQUEST, "a bearer token is needed")
        return await call_next(ctx)


class BearerVerifier:
    """Verifies the tokens that the settings take: signed ones, and those of `fiml token new`."""

    def __init__(self, settings: Settings) -> None:
        self._signed = None
        if settings.auth_issuer is not None:
            from fiml.access.signed import SignedTokens  # noqa: PLC0415 - only who has an issuer needs it

            self._signed = SignedTokens(settings)
        self._tokens: AccessTokens | None = None
        if settings.auth_tokens:
            from fiml.access.tokens import open_tokens  # noqa: PLC0415 - SQLAlchemy, as above

            self._tokens = open_tokens(settings)

    async def verify_token(self, token: str) -> AccessToken | None:
        """What the SDK asks: whose token it is; `None` where it lets nobody in."""
        principal = await self._principal_of(token)
        if principal is None or principal.user_id is None:
            return None
        # The token itself goes no further.
        return AccessToken(
            token="", client_id=_CLIENT, scopes=[str(scope) for scope in principal.scopes], subject=principal.user_id
        )

    async def aclose(self) -> None:
        """Let go of database and keys."""
        if self._signed is not None:
            await self._signed.aclose()
        if self._tokens is not None:
            await self._tokens.aclose()

    async def _principal_of(self, token: str) -> Principal | None:
        if token.startswith(TOKEN_PREFIX):
            return None if self._tokens is None else await self._tokens.principal_of(token)
        return None if self._signed is None else await self._signed.principal_of(token)


def auth_settings(settings: Settings) -> AuthSettings:
    """What the SDK tells clients of how to get in.

    Raises:
        Misconfigured: tokens are signed by an issuer, and FIML_PUBLIC_URL isn't set.
    """
    if settings.auth_issuer is None:
        # Nobody issues tokens but `fiml token new`; the SDK wants an address, and shows none without a resource.
        return AuthSettings.model_validate({"issuer_url": "https://localhost", "resource_server_url": None})
    if settings.public_url is None:
        raise Misconfigured("FIML_PUBLIC_URL is not set: set it to where clients reach /mcp, for the resource metadata")
    return AuthSettings.model_validate(
        {
            # As they are written: another address would be another issuer.
            "issuer_url": settings.auth_issuer,
            "resource_server_url": settings.public_url,
            # The audience is checked with the signature.
            "validate_token_resource": False,
        }
    )
