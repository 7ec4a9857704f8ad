"""Our own WebSocket frames, read by somebody else's parser."""

import pytest
from websockets.frames import Frame, Opcode
from websockets.streams import StreamReader

from internal.server.websocket import frame


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 200_000])
def test_a_payload_of_any_size_is_one_final_text_frame(size: int) -> None:
    payload = b"x" * size
    reader = StreamReader()
    reader.feed_data(frame(payload) + b"next")
    parsing = Frame.parse(reader.read_exact, mask=False)
    with pytest.raises(StopIteration) as done:
        next(parsing)
    parsed = done.value.value
    assert (parsed.opcode, parsed.fin, bytes(parsed.data)) == (Opcode.TEXT, True, payload)
    with pytest.raises(StopIteration) as rest:
        next(reader.read_exact(4))
    assert rest.value.value == b"next"
