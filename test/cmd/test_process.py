"""How a process ends: with a sentence, or for a lost engine at once."""

import subprocess
import sys
from pathlib import Path

import pytest

from cmd.process import ENGINE_LOST, lost_engine, own_command
from internal.biz.errors import EngineLost, GenerationFailed

ROOT = Path(__file__).parents[2]
LOST = EngineLost("gone")
HANGING = """
import asyncio, threading
from cmd import logs
from cmd.process import exit_status, run
from internal.biz.errors import EngineLost

logs.configure("info", "text")

async def work() -> None:
    threading.Thread(target=threading.Event().wait).start()  # as of an engine in which nothing moves
    asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(lose())

async def lose() -> None:
    raise EngineLost("a fault that sticks")

exit_status(lambda: run(work()))
"""


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (LOST, LOST),
        (GenerationFailed("no"), None),
        (None, None),
        (
            BaseExceptionGroup("all", [KeyError(), ExceptionGroup("some", [GenerationFailed("no"), LOST])]),
            LOST,
        ),
        (ExceptionGroup("all", [KeyError()]), None),
    ],
)
def test_a_lost_engine_is_found_among_whatever_else_failed(
    error: BaseException | None, lost: EngineLost | None
) -> None:
    assert lost_engine(error) is lost


def test_a_process_whose_engine_is_lost_ends_whatever_its_threads_do() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", HANGING], cwd=ROOT, capture_output=True, timeout=30, text=True, check=False
    )
    assert ended.returncode == ENGINE_LOST == 75
    assert ended.stderr.count("\n") == 1
    assert "the engine is lost, and this process ends: a fault that sticks" in ended.stderr


def test_a_process_knows_what_it_was_started_with() -> None:
    code = "from cmd.process import own_command; print(own_command())"
    command = [sys.executable, "-X", "utf8", "-c", code, "-conf", "x"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=30, text=True, check=True).stdout
    assert printed.strip() == str(command)
    assert own_command()[0] == sys.executable
