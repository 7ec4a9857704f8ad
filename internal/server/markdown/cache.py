"""What was rendered last. Keeps no text, only what tells one from another."""

import hashlib
import math
import sys
import time
from collections import OrderedDict
from collections.abc import Callable

MAX_BYTES = 8 << 20
ENTRY_BYTES = 200
"""What an entry takes beside its HTML."""


class HtmlCache:
    """HTML by the text that it was made of. What nobody asked for longest goes first when all of it would
    take more than `max_bytes`; what would take a quarter of that alone is not kept."""

    def __init__(self, max_bytes: int = MAX_BYTES, *, now: Callable[[], float] = time.monotonic) -> None:
        self._max_bytes = max_bytes
        self._now = now
        self._bytes = 0
        self._kept: OrderedDict[bytes, tuple[str, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, text: str) -> str | None:
        key = _key(text)
        if key not in self._kept:
            return None
        html, until = self._kept[key]
        if until <= self._now():
            self._forget(key)
            return None
        self._kept.move_to_end(key)
        return html

    def put(self, text: str, html: str, for_s: float = math.inf) -> None:
        """Keep it for so long at most."""
        key = _key(text)
        if key in self._kept:
            self._forget(key)
        if _size(html) > self._max_bytes // 4:
            return
        self._kept[key] = html, self._now() + for_s
        self._bytes += _size(html)
        while self._bytes > self._max_bytes:
            self._forget(next(iter(self._kept)))

    def _forget(self, key: bytes) -> None:
        html, _ = self._kept.pop(key)
        self._bytes -= _size(html)


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=32).digest()


def _size(html: str) -> int:
    return sys.getsizeof(html) + ENTRY_BYTES
