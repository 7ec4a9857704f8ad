"""What a signed token says, and the port that signs and reads them."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol


class TokenType(StrEnum):
    """What a token is good for. None stands in for another."""

    ACCESS = "access"
    REFRESH = "refresh"
    GUEST = "guest"


@dataclass(frozen=True, slots=True)
class Claims:
    """Whom a token speaks for, and when, in Unix seconds. `login_id` is the login that it belongs to; guests
    have none."""

    type: TokenType
    token_id: str
    user_id: str
    issued_at: float
    expires_at: float
    login_id: str = ""


class TokenSigner(Protocol):
    def sign(self, claims: Claims) -> str:
        """A token, in characters that an HTTP header may hold."""

    def read(self, token: str, *types: TokenType) -> Claims:
        """Raises Unauthenticated for whatever is no token of ours and one of `types`, and for one that has
        expired (code `token_expired`)."""
