"""Server-sent events out of bytes, however they are cut. Knows lines, not what they say.

Source: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
A lone carriage return, which ends a line there too, does not here: nobody sends it.
"""

from internal.generator.openai.faults import broken


class EventParser:
    """Feed it what was read; it returns the data of the events that are complete.

    Bound: `max_event_bytes` for one event; raises Fault beyond.
    """

    def __init__(self, max_event_bytes: int = 4 << 20) -> None:
        self._max_event_bytes = max_event_bytes
        self._line: list[bytes] = []
        """The pieces of a line whose end has not come yet: joined once, not with each piece."""
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, read: bytes) -> list[bytes]:
        events: list[bytes] = []
        *lines, rest = read.split(b"\n")
        if lines and self._line:
            lines[0] = b"".join((*self._line, lines[0]))
            self._line = []
        for line in lines:
            self._read(line, events)
        if rest:
            self._line.append(rest)
            self._grow(len(rest))
        return events

    def end(self) -> list[bytes]:
        """What was said when the stream ended: the last event may lack its blank line."""
        events: list[bytes] = []
        self._read(b"".join(self._line), events)
        self._read(b"", events)
        self._line = []
        return events

    def _read(self, line: bytes, events: list[bytes]) -> None:
        if line.endswith(b"\r"):
            line = line[:-1]
        if not line:
            if self._data:
                events.append(b"\n".join(self._data))
                self._data = []
            self._size = 0
        elif line.startswith((b"data:", b"error:")):  # the latter is llama.cpp's own
            data = line.partition(b":")[2].removeprefix(b" ")
            self._data.append(data)
            self._grow(len(data))

    def _grow(self, size: int) -> None:
        self._size += size
        if self._size > self._max_event_bytes:
            raise broken("the model's server sends an event without end")
