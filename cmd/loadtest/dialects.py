"""What goes over the wire, and whether what comes back is whole and in order. Knows bytes, not sockets.

    Failure              an answer did not come as it should
    ├── Refused          the server said no; the connection can go on
    └── Broken           text was lost, came twice, or makes no sense; the connection is of no more use

What an answer should be is known in advance (text) or said again at its end (responses).
"""

import hashlib
import re
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate
from typing import Any, Protocol

import orjson

from cmd.loadtest.options import DialectName, Options

GAP = "gap: text is missing"
TWICE = "twice: text came again"
UNEXPECTED_TEXT = "unexpected text"
NUMBER_GAP = "gap: event numbers are missing"
NUMBER_TWICE = "twice: an event came again"
OUT_OF_ORDER = "out of order: an earlier event came late"
TEXT_DIFFERS = "text differs: the deltas are not the text of the finished response"
AFTER_THE_END = "frame after the end of the answer"


class Failure(Exception):
    def __init__(self, cause: str) -> None:
        super().__init__(cause)
        self.cause = cause


class Refused(Failure):
    pass


class Broken(Failure):
    pass


class Answer(Protocol):
    """One answer on its way."""

    @property
    def done(self) -> bool: ...

    def take(self, frame: bytes) -> bool:
        """Check the next frame and say whether it brought text. Raises Failure."""
        ...


class Dialect(Protocol):
    """How one message is asked; shared by all connections."""

    question: str

    def answer(self) -> Answer: ...


def make_dialect(options: Options) -> Dialect:
    if options.dialect is DialectName.TEXT:
        return TextDialect(options.message, options.chunks)
    return ResponsesDialect(options.message, options.model)


class TextDialect:
    """Bare text frames, as the echo model answers: `chunk 1: {message}` and so on.

    A server may join adjacent chunks for a slow reader, so it is the text that counts, not the frames.
    """

    def __init__(self, message: str, chunks: int) -> None:
        self.question = message
        self._message = message.encode()
        lengths = (len(self._chunk(number)) for number in range(1, chunks + 1))
        self._starts = array("Q", accumulate(lengths, initial=0))
        self.whole = b"".join(self._chunk(number) for number in range(1, chunks + 1))

    def answer(self) -> Answer:
        return _TextAnswer(self)

    def diagnose(self, received: int, frame: bytes) -> str:
        """Say what is wrong with a frame that does not follow the first `received` bytes."""
        expected = self.whole[received : received + len(frame)]
        pairs = enumerate(zip(expected, frame, strict=False))
        differs_at = received + next((place for place, (a, b) in pairs if a != b), len(expected))
        awaited = bisect_right(self._starts, differs_at)
        rest = frame[max(0, self._starts[awaited - 1] - received) :]
        match = re.match(rb"chunk (\d{1,9}): ", rest)
        number = int(match[1]) if match else 0
        if not 1 <= number < len(self._starts) or not rest.startswith(self._chunk(number)):
            return UNEXPECTED_TEXT
        return GAP if number > awaited else TWICE

    def _chunk(self, number: int) -> bytes:
        return b"chunk %d: %b" % (number, self._message)


class _TextAnswer:
    __slots__ = ("_dialect", "_received")

    def __init__(self, dialect: TextDialect) -> None:
        self._dialect = dialect
        self._received = 0

    @property
    def done(self) -> bool:
        return self._received == len(self._dialect.whole)

    def take(self, frame: bytes) -> bool:
        if not self._dialect.whole.startswith(frame, self._received):
            if frame.startswith(b"error: "):
                raise Refused(frame[:1000].decode(errors="replace"))
            raise Broken(self._dialect.diagnose(self._received, frame))
        self._received += len(frame)
        return bool(frame)


_TEXT_DELTA = "response.output_text.delta"
_DELTAS = frozenset({_TEXT_DELTA, "response.reasoning_text.delta"})
_QUEUE_UPDATE = "response.queue"


class ResponsesDialect:
    """The WebSocket mode of the OpenAI Responses API, with `sequence_number` on every event."""

    def __init__(self, message: str, model: str | None) -> None:
        request = {"type": "response.create", "input": message} | ({"model": model} if model else {})
        self.question = orjson.dumps(request).decode()

    def answer(self) -> Answer:
        return _ResponsesAnswer()


class _ResponsesAnswer:
    """Keeps a digest instead of the text: an answer costs the same whatever its length."""

    __slots__ = ("_digest", "_joined", "_last", "done")

    def __init__(self) -> None:
        self._digest = hashlib.blake2b()
        self._last = -1
        self._joined = False
        self.done = False

    def take(self, frame: bytes) -> bool:
        event = _parse(frame)
        kind = event.get("type")
        if kind == "error":
            raise Refused(f"error event: {_code(event.get('error'))}")
        if kind == _QUEUE_UPDATE:
            return False  # not in the log: it has no number
        self._check_number(event.get("sequence_number"), is_delta=kind in _DELTAS)
        if kind in _DELTAS:
            delta = event.get("delta")
            if not isinstance(delta, str):
                raise Broken("delta event without a delta")
            if kind == _TEXT_DELTA:
                self._digest.update(delta.encode())
            return True
        if kind in ("response.completed", "response.incomplete", "response.failed"):
            self._end(kind, _object(event.get("response")))
        return False

    def _check_number(self, number: Any, *, is_delta: bool) -> None:
        if type(number) is not int:
            raise Broken("event without a sequence_number")
        jump = number - self._last
        if jump < 1:
            # Numbers that a joined delta stood for were never seen by themselves.
            raise Broken(OUT_OF_ORDER if self._joined and jump < 0 else NUMBER_TWICE)
        if jump > 1:
            # Adjacent deltas are joined under lag; no answer begins with one.
            if not is_delta or self._last < 0:
                raise Broken(NUMBER_GAP)
            self._joined = True
        self._last = number

    def _end(self, kind: str, response: dict[str, Any]) -> None:
        self.done = True
        if kind == "response.failed":
            raise Refused(f"response.failed: {_code(response.get('error'))}")
        texts = list(_output_texts(response))
        # An unfinished response may come without its output.
        if (texts or kind == "response.completed") and (
            hashlib.blake2b("".join(texts).encode()).digest() != self._digest.digest()
        ):
            raise Broken(TEXT_DIFFERS)
        if kind == "response.incomplete":
            reason = _object(response.get("incomplete_details")).get("reason")
            if reason != "max_output_tokens":  # the usual end of a short limit, and nothing lost
                raise Refused(f"response.incomplete: {reason or 'no reason'}")


def _parse(frame: bytes) -> dict[str, Any]:
    try:
        event = orjson.loads(frame)
    except orjson.JSONDecodeError as exc:
        raise Broken("frame that is not JSON") from exc
    if not isinstance(event, dict):
        raise Broken("frame that is not a JSON object")
    return event


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [_object(item) for item in value] if isinstance(value, list) else []


def _code(error: Any) -> str:
    fields = _object(error)
    return str(fields.get("code") or fields.get("type") or fields.get("message") or "no code")


def _output_texts(response: dict[str, Any]) -> Iterator[str]:
    for item in _objects(response.get("output")):
        for part in _objects(item.get("content")):
            if part.get("type") == "output_text" and isinstance(part.get("text"), str):
                yield part["text"]
