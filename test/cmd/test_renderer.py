"""The process that renders: what it takes, and when it ends."""

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from internal.service.frames import HEAD_BYTES, frame, length_of

ROOT = Path(__file__).parents[2]
PATIENCE_S = 20.0
EVIL = "```csharp\n" + "a\n" * 32_000 + "```\n"
"""For one expression of its lexer this is minutes of work."""


class Renderer:
    """Its server is the test."""

    def __init__(self) -> None:
        self.line, theirs = socket.socketpair()
        self.line.settimeout(PATIENCE_S)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cmd.renderer"],
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                env={"PYTHONPATH": str(ROOT)},
                cwd=ROOT,
            )
        self._answers = self.line.makefile("rb")
        assert self.answer() == ""

    def ask(self, text: str) -> str:
        self.line.sendall(frame(text))
        return self.answer()

    def answer(self) -> str:
        return self._answers.read(length_of(self._answers.read(HEAD_BYTES))).decode()

    def leave(self) -> None:
        self._answers.close()
        self.line.close()

    def end(self) -> tuple[int, bytes]:
        """How it ended, and what it had to say."""
        _, errors = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, errors


@pytest.fixture
def renderer() -> Iterator[Renderer]:
    it = Renderer()
    yield it
    it.leave()
    it.process.kill()
    it.end()


def test_it_ends_when_its_server_is_gone(renderer: Renderer) -> None:
    assert renderer.ask("*a*") == "<p><em>a</em></p>\n"
    renderer.leave()
    assert renderer.end() == (0, b"")


def test_it_ends_also_in_the_middle_of_a_text(renderer: Renderer) -> None:
    renderer.line.sendall(frame(EVIL))
    renderer.leave()
    assert renderer.end() == (0, b"")


def test_it_ends_when_the_server_dies_in_the_middle_of_a_frame(renderer: Renderer) -> None:
    renderer.line.sendall(frame("a" * 1000)[:500])
    renderer.leave()
    assert renderer.end() == (0, b"")


def test_ctrl_c_is_not_for_it(renderer: Renderer) -> None:
    renderer.process.send_signal(signal.SIGINT)
    assert renderer.ask("a") == "<p>a</p>\n"


def test_colours_have_only_so_much_time_in_one_text(renderer: Renderer) -> None:
    colourful = "```python\nif a: pass\n```\n"
    html = renderer.ask(colourful + EVIL + EVIL + colourful)
    before, _, behind = html.partition("csharp")
    assert 'class="k"' in before
    assert 'class="k"' not in behind
    assert html.count("a\n") >= 64_000
    assert 'class="k"' in renderer.ask(colourful)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere memory is not bounded so")
def test_its_memory_is_bounded(renderer: Renderer) -> None:
    soft, _ = psutil.Process(renderer.process.pid).rlimit(psutil.RLIMIT_AS)
    assert soft == 1 << 30
