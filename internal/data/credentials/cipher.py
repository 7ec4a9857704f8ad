"""Encrypts what users entrust to us, so that a copy of the database alone tells nothing."""

import base64
import logging

from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

log = logging.getLogger(__name__)

_PURPOSE = b"sluice: keys of users' upstreams"


class SecretCipher:
    """Fernet (AES-128-CBC and HMAC), with a key derived from the server's secret."""

    def __init__(self, secret: bytes) -> None:
        key = HKDF(SHA256(), length=32, salt=None, info=_PURPOSE).derive(secret)
        self._fernet = Fernet(base64.urlsafe_b64encode(key))
        self._has_warned = False

    def encrypt(self, text: str) -> str:
        return self._fernet.encrypt(text.encode()).decode()

    def decrypt(self, text: str) -> str | None:
        """None for what was encrypted with another secret; that is logged, once."""
        try:
            return self._fernet.decrypt(text).decode()
        except (InvalidToken, ValueError):
            if not self._has_warned:
                self._has_warned = True
                log.warning(
                    "a stored key cannot be read and counts as not set: it was encrypted with another secret "
                    "(auth.jwt_secret or auth.secret_file)"
                )
            return None
