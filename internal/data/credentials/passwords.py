"""Hashes passwords with argon2id, in threads."""

import asyncio
import base64
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import argon2
from argon2.exceptions import HashingError, InvalidHashError, VerificationError, VerifyMismatchError

from internal.biz.errors import Unavailable

T = TypeVar("T")

AT_A_TIME = 2
"""Each takes 64 MiB and about a tenth of a second of four threads."""
MAX_PENDING = 64
"""Running or waiting: a few seconds of work. What is more is refused."""


class Argon2Hasher:
    """argon2id, by default with the second of the choices that RFC 9106 §4 recommends.

    A caller that is cancelled leaves a hash that runs to its thread: never more than AT_A_TIME run. The
    threads start when they are needed, and end with the process.
    """

    def __init__(self, argon: argon2.PasswordHasher | None = None) -> None:
        self._argon = argon or argon2.PasswordHasher()
        self._nobody = _never_right(self._argon)
        self._threads = ThreadPoolExecutor(AT_A_TIME, "argon2")
        self._pending = 0

    async def hash(self, password: str) -> str:
        return await self._in_thread(lambda: self._argon.hash(password))

    async def verify(self, password_hash: str | None, password: str) -> bool:
        """With None as slow as with any hash, and False."""
        known = self._nobody if password_hash is None else password_hash
        return await self._in_thread(lambda: self._is_right(known, password))

    def is_outdated(self, password_hash: str) -> bool:
        return self._argon.check_needs_rehash(password_hash)

    def _is_right(self, password_hash: str, password: str) -> bool:
        try:
            argon2.extract_parameters(password_hash)  # what is no hash at all must not look like a fault
            return self._argon.verify(password_hash, password)
        except (VerifyMismatchError, InvalidHashError):
            return False

    async def _in_thread(self, work: Callable[[], T]) -> T:
        if self._pending >= MAX_PENDING:
            raise Unavailable("too many people are logging in; try again in a moment")
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        except (HashingError, VerificationError) as error:  # there is no memory for it
            raise Unavailable("the password cannot be checked; try again in a moment") from error
        finally:
            self._pending -= 1


def _never_right(argon: argon2.PasswordHasher) -> str:
    """Looks like the hash of a password, and costs as much to compare with; no password is known to give it.

    Source: https://github.com/P-H-C/phc-winner-argon2, the encoded form.
    """
    parameters = f"m={argon.memory_cost},t={argon.time_cost},p={argon.parallelism}"
    salt, digest = (
        base64.b64encode(os.urandom(length)).rstrip(b"=").decode()
        for length in (argon.salt_len, argon.hash_len)
    )
    return f"$argon2id$v=19${parameters}${salt}${digest}"
