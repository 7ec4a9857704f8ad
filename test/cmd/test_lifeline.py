"""What becomes of a process whose supervisor is gone."""

import asyncio
import socket
import sys

import pytest

PROGRAM = """
import asyncio
from cmd import lifeline

async def main():
    stop = asyncio.Event()
    async with lifeline.held(stop, {patience_s}):
        await stop.wait()
        print("told", flush=True)
        if {hangs}:
            await asyncio.sleep(60)
    print("ended", flush=True)

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("patience_s", "hangs", "status", "said"), [(0.1, True, 1, ["told"]), (60, False, 0, ["told", "ended"])]
)
async def test_a_process_whose_supervisor_is_gone_ends_whatever_it_does(
    patience_s: float, hangs: bool, status: int, said: list[str]
) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            PROGRAM.format(patience_s=patience_s, hangs=hangs),
            stdin=theirs.fileno(),
            stdout=asyncio.subprocess.PIPE,
        )
    async with asyncio.timeout(15):
        out, _ = await process.communicate()
    assert (process.returncode, out.decode().split()) == (status, said)
