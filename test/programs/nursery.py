"""nursery.py DESCRIPTOR: has loaded what our programs are made of, and forks into one whenever it is told to.

To import all that takes a process most of a second of a core; from here it starts in a few milliseconds. What
was forked then runs as `python -m MODULE` or `python FILE` runs it: by that name, with those arguments, that
environment, those files. Only Python's own options, and the order in which its sets keep strings, are ours.

An order on the socket DESCRIPTOR is one byte, with the standard input, output and errors of the new process
and a socket: from that a line of JSON is read, and on it is told what becomes of the process, as lines: its
number, `stopped` each time that it was, and at last its exit status. A byte from us says that all is loaded;
the end of the orders is our end.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
from pathlib import Path
from typing import Any

PROGRAMS = ("cmd.server", "cmd.worker", "cmd.queue", "cmd.user", "cmd.migrate")
LATER = (
    "alembic.command",
    "asyncpg",
    "cmd.wire.redis_seat",
    "internal.data.redis.queue",
    "internal.generator.echo",
    "internal.generator.openai.engine",
)
"""What they import only when they need it."""
ROOT = str(Path(__file__).parents[2])

Order = dict[str, Any]


def load() -> None:
    sys.path[0] = ROOT
    for name in (*PROGRAMS, *LATER):
        importlib.import_module(name)
    for name in PROGRAMS:
        # Each is run by whoever becomes it, as the main module: as if nobody had imported it before.
        package, _, module = name.rpartition(".")
        delattr(sys.modules[package], module)
        del sys.modules[name]
    # Each looks for garbage once more at its end: to do so in all of this takes a quarter of a second.
    gc.collect()
    gc.freeze()


def serve(orders: socket.socket) -> Order | None:
    """Returns in every process that is to become a program, and with None at the end."""
    while True:
        byte, descriptors, _, _ = socket.recv_fds(orders, 1, 4)
        reap()
        if not byte:
            return None
        if os.fork() == 0:
            return watch(descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def reap() -> None:
    """Those who have watched to the end."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def watch(descriptors: list[int]) -> Order:
    """Returns in a new process; watches it in this one, which then ends. No program of ours has to be told
    what its children are that it did not start: this one stands between it and the others."""
    *standard, line = descriptors
    with socket.socket(fileno=line) as test:
        with test.makefile("rb") as reading:
            order: Order = json.loads(reading.readline())
        child = os.fork()
        if child == 0:
            for number, descriptor in enumerate(standard):
                os.dup2(descriptor, number)
                os.close(descriptor)
            return order
        for descriptor in standard:
            os.close(descriptor)
        try:
            test.sendall(b"%d\n" % child)
            while os.WIFSTOPPED(status := os.waitpid(child, os.WUNTRACED)[1]):
                test.sendall(b"stopped\n")
            test.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
        finally:
            os._exit(0)  # whoever asked may be gone


def become(order: Order) -> None:
    """Run what was ordered, to its end."""
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(ROOT)
    first, *rest = order["words"]
    # Whoever starts another one like it, starts it afresh.
    sys.orig_argv = [sys.executable, first, *rest]
    if first == "-m":
        sys.argv = [first, *rest[1:]]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.path[0] = str(Path(first).parent)
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")


# A terminal interrupts all of its group, and whoever gives us orders may not be ready to end yet.
usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
load()
with socket.socket(fileno=int(sys.argv[1])) as told:
    told.sendall(b"!")
    ordered = serve(told)
if ordered:
    signal.signal(signal.SIGINT, usual)
    become(ordered)
