"""Programs that are forked from the nursery are what they would be if Python had been started for them."""

import signal
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from test.conftest import RunProgram, StartProgram

ABOUT_ITSELF = """
import gc, json, os, signal, sys, threading, warnings
json.dump({
    "name": __name__, "file": __file__, "main": sys.modules["__main__"].__file__, "argv": sys.argv,
    "path": sys.path, "folder": os.getcwd(), "environment": dict(os.environ), "flags": repr(sys.flags),
    "input": sys.stdin.read(), "encoding": sys.stdout.encoding, "errors": sys.stderr.errors,
    "filters": [repr(it) for it in warnings.filters if "aiohttp" not in repr(it)],
    "threads": threading.active_count(), "collects": gc.isenabled(),
    "signals": [repr(signal.getsignal(number)) for number in range(1, 32)],
    "open": [number for number in range(3, 64) if os.path.exists(f"/proc/self/fd/{number}")
             and not os.readlink(f"/proc/self/fd/{number}").endswith("/fd")],
    "group": os.getpgrp(), "session": os.getsid(0), "programs": "cmd.server" in sys.modules,
}, sys.stdout, indent=1)
"""


def program(folder: Path, source: str) -> str:
    path = folder / "program.py"
    path.write_text(source)
    return str(path)


def test_it_finds_what_a_fresh_one_finds(run_program: "RunProgram", tmp_path: Path) -> None:
    words = (program(tmp_path, ABOUT_ITSELF), "-conf", "some file", "ä\udcff")
    forked, fresh = (
        run_program(*words, env={"SLUICE_X": "1", "Ä": ""}, stdin=b"said", fresh=fresh)
        for fresh in (False, True)
    )
    assert forked.status == 0, forked.errors
    assert forked.output.splitlines() == fresh.output.splitlines()
    assert forked.errors == fresh.errors == ""


@pytest.mark.parametrize(
    ("source", "status", "told"),
    [
        ("", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('so')", 1, "so\n"),
        ("import atexit, sys; atexit.register(lambda: print('behind', file=sys.stderr))", 0, "behind\n"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
        ("raise ValueError('no')", 1, "ValueError: no\n"),
        ("import os; os.fork() or os._exit(4)", 0, ""),
        ("open('/dev/null')", 0, "Warning: unclosed file"),
    ],
)
def test_it_ends_as_a_fresh_one_ends(
    run_program: "RunProgram", tmp_path: Path, source: str, status: int, told: str
) -> None:
    for fresh in (False, True):
        ended = run_program(program(tmp_path, source), fresh=fresh)
        assert (ended.status, ended.output) == (status, "")
        assert told in ended.errors
        assert bool(told) == bool(ended.errors)


def test_it_stands_still_goes_on_and_can_be_killed(start_program: "StartProgram", tmp_path: Path) -> None:
    with TemporaryFile() as output:
        child = start_program(
            [program(tmp_path, "import time; time.sleep(60)")], stdout=output, stderr=output
        )
        for _ in range(2):
            child.pause()
            assert psutil.Process(child.pid).status() == psutil.STATUS_STOPPED
            child.send_signal(signal.SIGCONT)
        assert child.poll() is None
        child.kill()
        assert child.wait(10) == child.returncode == -signal.SIGKILL
        assert not psutil.pid_exists(child.pid)
        child.terminate()  # of nobody
