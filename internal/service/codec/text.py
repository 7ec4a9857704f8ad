"""Bare text, for wscat and `new WebSocket`: a text frame in, text frames out, nothing else."""

from collections.abc import Sequence

from internal.biz.chat import Ask
from internal.biz.commands import Create
from internal.biz.errors import InvalidRequest, SluiceError
from internal.biz.events import Event, QueueUpdate, ResponseFailed, TextDelta
from internal.biz.log import Cursor
from internal.biz.models import Message, Role


class TextCodec:
    """Implements Codec. Each delta is a frame, reasoning is left out, an error is `error: {sentence}`."""

    continues = True

    def __init__(self, model: str | None = None) -> None:
        """`model` answers every message; None: the default one."""
        self._model = model

    def greeting(self, session_id: str) -> list[bytes]:
        return []

    def decode(self, data: bytes) -> Create:
        text = data.decode()
        if not text.strip():
            raise InvalidRequest("the message is empty")
        return Create(Ask((Message(Role.USER, text),), self._model))

    def encode(self, cursor: Cursor, number: int, events: Sequence[Event]) -> list[bytes]:
        if len(events) == 1 and type(events[0]) is TextDelta:  # nearly always
            return [events[0].encode()]
        payloads = []
        for event in events:
            if isinstance(event, TextDelta):
                payloads.append(event.encode())
            elif type(event) is ResponseFailed and event.response.failure is not None:
                payloads.append(_sentence(event.response.failure.message))
        return payloads

    def encode_update(self, cursor: Cursor, update: QueueUpdate) -> None:
        return None

    def encode_error(self, error: SluiceError, lane: str | None) -> bytes:
        return _sentence(error.message)

    def lane(self, data: bytes) -> None:
        return None


def _sentence(message: str) -> bytes:
    return f"error: {message}".encode()
