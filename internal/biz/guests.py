"""Visitors without an account: a signed token says that they are the same one as before."""

import time
from collections.abc import Callable

from internal.biz.errors import Unauthenticated
from internal.biz.ids import new_id
from internal.biz.models import Caller
from internal.biz.tokens import Claims, TokenSigner, TokenType

GUEST_TTL_S = 365 * 86400.0
GUEST = "guest"
GUEST_PREFIX = f"{GUEST}_"
"""How the ids of guests begin, and no user's does."""


class Guests:
    """`allowed`: one need not be a user."""

    def __init__(
        self, signer: TokenSigner, *, allowed: bool = True, clock: Callable[[], float] = time.time
    ) -> None:
        self._signer = signer
        self._clock = clock
        self.allowed = allowed

    def guest(self) -> tuple[str, Caller]:
        """A new guest, and the token that says so. Raises Unauthenticated where one has to be a user."""
        if not self.allowed:
            raise _log_in()
        now = self._clock()
        claims = Claims(TokenType.GUEST, new_id("gt"), new_id(GUEST), now, now + GUEST_TTL_S)
        return self._signer.sign(claims), Caller(claims.user_id, until=claims.expires_at)

    async def identify(self, credential: str, address: str = "") -> Caller:
        """Whose token this is. Raises Unauthenticated for whatever is no guest's."""
        return self.caller(self._signer.read(credential, TokenType.GUEST), address)

    def caller(self, claims: Claims, address: str) -> Caller:
        """Whom a guest's token speaks for. Raises Unauthenticated."""
        if not self.allowed:
            raise _log_in()
        if not claims.user_id.startswith(GUEST_PREFIX):
            raise Unauthenticated("this token is not valid")
        return Caller(claims.user_id, address, until=claims.expires_at)


def _log_in() -> Unauthenticated:
    return Unauthenticated("log in first: this server has no guests")
