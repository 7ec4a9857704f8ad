"""Runs a part of the course in a process of its own, and ends with it all that it has started."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from outcome import Outcome, read
from task import Task

PROGRAM = Path(__file__).resolve().with_name("one_part.py")
ROOT = PROGRAM.parents[3]
TAIL_LINES = 12
"""Of what a part printed, when it broke."""


def tried(name: str, task: Task, folder: Path, most_s: float) -> Outcome:
    """Never raises for what happens in the part. `folder` gets what it finds and what it prints."""
    begun_s, found, log = time.monotonic(), folder / f"{name}.json", folder / f"{name}.log"
    command = [sys.executable, str(PROGRAM), name, task.as_json(), str(found)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment(),
            start_new_session=True,
        )
        try:
            status: int | None = process.wait(most_s)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            _end(process)
    error = "" if status == 0 else _why(status, log)
    return read(name, found, time.monotonic() - begun_s, error)


def environment() -> dict[str, str]:
    """With the project's root ahead of the standard library, which has a module `cmd` too."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def is_gpu() -> bool:
    """Whether no processor stands in for one. Asked in another process: this one has no use for torch, or for
    memory of the GPU's. Raises SystemExit where there is no torch."""
    code = "import torch; print(torch.version.cuda is not None)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if told.returncode:
        raise SystemExit(f"torch cannot be imported: {told.stderr.strip().splitlines()[-1:]}")
    return told.stdout.split()[-1:] == ["True"]


def _end(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _why(status: int | None, log: Path) -> str:
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-TAIL_LINES:]
    print("\n".join(said), file=sys.stderr, flush=True)
    how = "it took too long" if status is None else f"exit status {status}"
    return f"{how}: {said[-1][:300] if said else 'it said nothing'}"
