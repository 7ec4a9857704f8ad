"""python -m cmd.renderer: renders Markdown for the server that started it, until that is gone.

Its standard input is one end of a socket pair. An empty frame from it says that it is ready; then each frame
with a text is answered by one with its HTML. A process of its own: while an expression of a lexer is at work,
nothing else of its process is.
"""

import contextlib
import os
import resource
import signal
import socket
import sys
from types import FrameType
from typing import BinaryIO

from internal.service.frames import HEAD_BYTES, frame, length_of
from internal.service.highlighting import highlight
from internal.service.markdown import plain, render

NICENESS = 10
MAX_MEMORY_BYTES = 1 << 30
"""Of address space. It takes 20 MB of memory, and 55 MB with all lexers."""
COLOURS_S = 0.5
"""Of processor time: what colours may take in one text. The rest of its code has none."""
END_S = 10
"""A text that takes longer ends this process, should the server be gone that would."""


class Colours:
    """A Highlighter that has only so much time for one text."""

    def __init__(self) -> None:
        self._left_s = 0.0
        signal.signal(signal.SIGPROF, _raise)

    def start(self) -> None:
        """Here begins another text."""
        self._left_s = COLOURS_S

    def __call__(self, code: str, language: str) -> str | None:
        if self._left_s <= 0:
            return None
        # Expressions look for signals while they are at work.
        signal.setitimer(signal.ITIMER_PROF, self._left_s)
        try:
            return highlight(code, language)
        finally:
            self._left_s = signal.setitimer(signal.ITIMER_PROF, 0)[0]


def _raise(number: int, at: FrameType | None) -> None:
    raise TimeoutError


def main() -> int:
    # Ctrl-C in a terminal is for the server.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(NICENESS)
    with contextlib.suppress(OSError, ValueError):  # not everywhere
        resource.setrlimit(resource.RLIMIT_AS, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    with (
        contextlib.suppress(ConnectionError),  # the server is gone
        socket.socket(fileno=os.dup(0)) as line,
        line.makefile("rb") as texts,
        line.makefile("wb") as answers,
    ):
        serve(texts, answers)
    return 0


def serve(texts: BinaryIO, answers: BinaryIO) -> None:
    """Answer every text, to the end of them. Raises ConnectionError."""
    colours = Colours()
    html = ""
    while True:
        answers.write(frame(html))
        answers.flush()
        if (text := _next(texts)) is None:
            return
        signal.alarm(END_S)
        colours.start()
        try:
            html = render(text, colours)
        except Exception:  # whatever it is, the text is there to be read
            html = plain(text)
        signal.alarm(0)


def _next(texts: BinaryIO) -> str | None:
    """None at the end."""
    head = texts.read(HEAD_BYTES)
    if len(head) < HEAD_BYTES:
        return None
    body = texts.read(length := length_of(head))
    return body.decode() if len(body) == length else None


if __name__ == "__main__":
    sys.exit(main())
