"""The server's secret, from the configuration or from a file that the first start makes."""

import contextlib
import os
import secrets
import tempfile
from pathlib import Path

from internal.biz.errors import SluiceError

MIN_SECRET_BYTES = 32
"""Source: RFC 7518 §3.2, for HS256."""


def signing_secret(configured: str, path: Path) -> bytes:
    """`configured`, or what stands in the file at `path`, made when there is none.

    Of processes that start at once all get the same. Blocks for some milliseconds. Raises SluiceError.
    """
    if configured:
        return configured.encode(errors="surrogateescape")  # as it stands in the environment
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise _useless(path, f"cannot be read: {error.strerror}") from error
    try:
        _make(path)
        return _read(path)
    except OSError as error:
        raise _useless(path, f"cannot be made: {error.strerror}") from error


def _read(path: Path) -> bytes:
    secret = path.read_bytes().strip()
    if len(secret) < MIN_SECRET_BYTES:
        raise _useless(path, f"is shorter than {MIN_SECRET_BYTES} bytes")
    return secret


def _make(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # nobody else may read it
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(32) + "\n")
            file.flush()
            os.fsync(file.fileno())
        # It appears whole, and only when no other process was quicker.
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
    finally:
        os.unlink(name)


def _useless(path: Path, why: str) -> SluiceError:
    return SluiceError(f"auth.secret_file: {path} {why}; mend that, or set auth.jwt_secret")
