"""Requests that were given up, for an operator to look at, to try again or to throw away.

Bound: the queue keeps the newest ones, for a while; see `RedisWorkQueue`.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from internal.biz.errors import NotFound
from internal.biz.models import DeadLetter, Request
from internal.data.redis.entries import load_request
from internal.data.redis.keys import Keys
from internal.data.redis.link import RedisLink

AT_ONCE = 20
"""Letters in one call of the script, which reads them with their requests."""


class RedisDeadLetters:
    """Every call raises Unavailable while Redis cannot be reached. What is in a letter may be anything."""

    def __init__(self, link: RedisLink, keys: Keys) -> None:
        self._link = link
        self._keys = keys

    async def of(self, models: Sequence[str]) -> list[DeadLetter]:
        """All letters, the oldest first."""
        letters: list[DeadLetter] = []
        for model in models:
            last = b"0"
            while found := await self._link.call("dead_letters", self._keys.base(model), last, AT_ONCE):
                letters += (_letter(model, *fields) for fields in found)
                last = found[-1][0]
        return sorted(letters, key=lambda letter: letter.buried_at)

    async def find(self, models: Sequence[str], response_id: str) -> DeadLetter:
        """The letter of this response. Raises NotFound."""
        for letter in await self.of(models):
            if letter.response_id == response_id:
                return letter
        raise _not_found(response_id)

    async def payload(self, letter: DeadLetter) -> bytes:
        """The request as it stood in the queue. Raises NotFound when the letter is gone."""
        found = await self._link.command("XRANGE", self._stream(letter.model), letter.entry, letter.entry)
        if not found:
            raise _not_found(letter.response_id)
        payload: bytes = found[0][1].get(b"request", b"")
        return payload

    async def request(self, letter: DeadLetter) -> Request:
        """The request. Raises NotFound, and InvalidRequest when it cannot be decoded."""
        return replace(load_request(await self.payload(letter)), model=letter.model)

    async def remove(self, letter: DeadLetter) -> None:
        """Throw one away. Harmless when it is gone."""
        await self._link.command("XDEL", self._stream(letter.model), letter.entry)

    async def purge(self, model: str) -> int:
        """Throw all of a model's away; returns how many there were."""
        removed: int = await self._link.command("XTRIM", self._stream(model), "MAXLEN", 0)
        return removed

    def _stream(self, model: str) -> str:
        return f"{self._keys.base(model)}:dead"


def _letter(model: str, *fields: Any) -> DeadLetter:
    entry, response_id, code, reason, consumer, tries = (_text(field) for field in fields)
    return DeadLetter(
        entry,
        response_id,
        model,
        int(entry.partition("-")[0]) / 1000,
        code,
        reason,
        int(tries) if tries.isdecimal() else 0,
        consumer.partition("#")[0],
    )


def _text(field: bytes) -> str:
    return field.decode(errors="backslashreplace")


def _not_found(response_id: str) -> NotFound:
    return NotFound(f"there is no dead letter of {response_id!r}", code="dead_letter_not_found")
