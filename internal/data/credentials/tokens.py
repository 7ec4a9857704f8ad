"""Signs and reads tokens: JWT, HS256."""

import math
import time
from collections.abc import Callable

import jwt

from internal.biz.errors import Unauthenticated
from internal.biz.tokens import Claims, TokenType

ALGORITHM = "HS256"
NAME = "sluice"
"""Who issues our tokens, and whom they are for."""
CLOCK_SKEW_S = 30.0
"""How far the clock of the server that signed may be ahead."""
MAX_CHARS = 4096

_REQUIRED = ("sub", "iat", "exp", "jti", "typ")


class JwtSigner:
    """Moments in tokens are whole seconds: one may expire up to a second later than it was told to."""

    def __init__(self, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        self._secret = secret
        self._clock = clock

    def sign(self, claims: Claims) -> str:
        payload: dict[str, str | int] = {
            "iss": NAME,
            "aud": NAME,
            "typ": claims.type.value,
            "sub": claims.user_id,
            "jti": claims.token_id,
            "iat": int(claims.issued_at),
            "exp": math.ceil(claims.expires_at),
        }
        if claims.login_id:
            payload["sid"] = claims.login_id
        return jwt.encode(payload, self._secret, ALGORITHM)

    def read(self, token: str, *types: TokenType) -> Claims:
        if len(token) > MAX_CHARS or not token.isascii():
            raise _not_ours()
        try:
            payload = jwt.decode(
                token,
                self._secret,
                algorithms=[ALGORITHM],  # never what the token says
                issuer=NAME,
                audience=NAME,
                options={"require": list(_REQUIRED), "verify_exp": False, "verify_iat": False},
            )
            claims = Claims(
                TokenType(payload["typ"]),
                payload["jti"],
                payload["sub"],
                float(payload["iat"]),
                float(payload["exp"]),
                str(payload.get("sid", "")),
            )
        except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError, RecursionError) as error:
            raise _not_ours() from error
        now = self._clock()
        # `not <`: a number that is none is never right.
        if claims.type not in types or not claims.issued_at <= now + CLOCK_SKEW_S:
            raise _not_ours()
        if not now < claims.expires_at:
            raise Unauthenticated("this token has expired", code="token_expired")
        return claims


def _not_ours() -> Unauthenticated:
    return Unauthenticated("this token is not valid", code="invalid_token")
