"""python -m cmd.queue -conf FILE status [-json]
                            | dead list | dead show ID | dead requeue ID | dead purge [-yes]
                            | purge [-yes]

For who operates a queue on Redis: what waits and runs and who works, and what was given up. Exit status: 0
when it was done, 1 when it was not (there is no such dead letter, Redis is away, the answer was no), 2 when
the configuration or the command line cannot be used.
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import uvloop

from cmd import logs
from cmd.terminal import answer, moment, pretty, printable, show, span
from cmd.wire.queue_desk import Desk, build_desk
from internal.biz.ids import new_id
from internal.biz.models import Backlog, WorkerInfo, condition_of
from internal.conf.load import ConfigError, load
from internal.conf.settings import Settings

REASON_CHARS = 100
"""How much of a reason stands in a list."""

T = TypeVar("T")


def main() -> int:
    options = _options()
    try:
        settings = load(options.conf, os.environ)
        if settings.queue.driver != "redis":
            raise ConfigError(
                "queue.driver is memory: such a queue is in its server, and nobody else sees it; "
                "this needs queue.driver: redis"
            )
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    logs.configure("error", settings.log.format)
    return answer(lambda: options.run(settings, options))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cmd.queue", allow_abbrev=False)
    parser.add_argument("-conf", type=Path, required=True, metavar="FILE", help="configuration file")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    status = commands.add_parser("status", help="what waits, what runs, who works", allow_abbrev=False)
    status.add_argument("-json", action="store_true", help="for a script to read")
    status.set_defaults(run=lambda settings, options: _at_desk(settings, _status(options.json)))
    dead = commands.add_parser("dead", help="requests that were given up")
    letters = dead.add_subparsers(required=True, metavar="COMMAND")
    listing = letters.add_parser("list", help="all of them, the oldest first")
    listing.set_defaults(run=lambda settings, _: _at_desk(settings, list_dead))
    for name, command, help_text in (
        ("show", show_dead, "one of them, with its request"),
        ("requeue", requeue, "try it again, under a new id"),
    ):
        one = letters.add_parser(name, help=help_text, allow_abbrev=False)
        one.add_argument("id", metavar="ID", help="of the response")
        one.set_defaults(run=_with_id(command))
    for parent, count, purge, help_text in (
        (letters, count_dead, purge_dead, "throw all of them away"),
        (commands, count_waiting, purge_waiting, "end all requests that wait, but not what runs"),
    ):
        emptying = parent.add_parser("purge", help=help_text, allow_abbrev=False)
        emptying.add_argument("-yes", action="store_true", help="do not ask")
        emptying.set_defaults(run=_purging(count, purge))
    return parser.parse_args()


# ── how commands run ─────────────────────────────────────────────────────────────────────────────

Run = Callable[[Settings, argparse.Namespace], int]


def _at_desk(settings: Settings, command: Callable[[Desk], Awaitable[T]]) -> T:
    async def run() -> T:
        desk = build_desk(settings)
        async with desk.connected():
            return await command(desk)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


def _status(as_json: bool) -> Callable[[Desk], Awaitable[int]]:
    return status_json if as_json else status_text


def _with_id(command: Callable[[Desk, str], Awaitable[int]]) -> Run:
    return lambda settings, options: _at_desk(settings, lambda desk: command(desk, options.id))


def _purging(count: Callable[[Desk], Awaitable[str]], purge: Callable[[Desk], Awaitable[int]]) -> Run:
    def run(settings: Settings, options: argparse.Namespace) -> int:
        if not options.yes:
            if not sys.stdin.isatty():
                print("there is no terminal to ask on; add -yes", file=sys.stderr)
                return 2
            # Asked between two connections: none is kept waiting for an answer.
            what = _at_desk(settings, count)
            if what and not _agreed(what):
                print("nothing was done")
                return 1
        return _at_desk(settings, purge)

    return run


def _agreed(what: str) -> bool:
    try:
        return input(f"{what} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False


# ── what waits, what runs ────────────────────────────────────────────────────────────────────────


async def _read_status(desk: Desk) -> tuple[dict[str, Backlog], list[WorkerInfo]]:
    """Of the models of the configuration, and of others that still have something."""
    backlogs: dict[str, Backlog] = {}
    workers: list[WorkerInfo] = []
    for model in await desk.models():
        backlog, found = await asyncio.gather(desk.operator.backlog(model), desk.operator.workers(model))
        if model in desk.chat.models or found or backlog != Backlog():
            backlogs[model] = backlog
            workers += found
    return backlogs, workers


async def status_text(desk: Desk) -> int:
    backlogs, workers = await _read_status(desk)
    rows = []
    for model, backlog in backlogs.items():
        count = sum(worker.model == model and worker.takes_requests for worker in workers)
        notes = [] if count else [_why_nobody(model, workers)]
        if model not in desk.chat.models:
            notes.append("not in the configuration")
        oldest = span(backlog.oldest_s) if backlog.waiting else "-"
        numbers = (backlog.waiting, backlog.running, oldest, backlog.dead, count)
        rows.append((model, *map(str, numbers), "; ".join(notes)))
    show(("model", ">waiting", ">running", ">oldest", ">dead", ">workers", ""), rows)
    if workers:
        print()
        header = ("worker", "host", "model", "state", ">slots", ">busy", ">heartbeat", "version", "")
        show(header, [_worker_row(worker) for worker in workers])
    return 0


def _why_nobody(model: str, workers: Sequence[WorkerInfo]) -> str:
    """Why a model has no worker that takes requests."""
    ours = [worker for worker in workers if worker.model == model]
    if ours:
        return f"{condition_of(ours).state}: requests wait until it is loaded"
    return "no worker: requests wait until one starts"


def _worker_row(worker: WorkerInfo) -> tuple[str, ...]:
    slots, busy, heartbeat = str(worker.slots), str(worker.busy), f"{span(_silent_s(worker))} ago"
    state, why = worker.condition.state, worker.condition.failure
    return (worker.name, worker.host, worker.model, state, slots, busy, heartbeat, worker.version, why)


def _silent_s(worker: WorkerInfo) -> float:
    return max(0.0, time.time() - worker.heartbeat_at)


async def status_json(desk: Desk) -> int:
    backlogs, workers = await _read_status(desk)
    models = [
        {
            "model": model,
            "configured": model in desk.chat.models,
            "waiting": backlog.waiting,
            "running": backlog.running,
            "oldest_s": round(backlog.oldest_s, 3) if backlog.waiting else None,
            "dead": backlog.dead,
            "workers": sum(worker.model == model and worker.takes_requests for worker in workers),
        }
        for model, backlog in backlogs.items()
    ]
    told = [asdict(worker) | {"heartbeat_s": round(_silent_s(worker), 3)} for worker in workers]
    print(json.dumps({"models": models, "workers": told}, indent=2))
    return 0


async def count_waiting(desk: Desk) -> str:
    """The question before `purge_waiting`; empty when nothing waits."""
    backlogs, _ = await _read_status(desk)
    waiting = {model: backlog.waiting for model, backlog in backlogs.items() if backlog.waiting}
    return f"End {_sum(waiting, 'waiting request')}?" if waiting else ""


async def purge_waiting(desk: Desk) -> int:
    await desk.storage.connect()  # how they end is stored
    ended = {}
    for model in await desk.models():
        ended[model] = await desk.operator.purge(model)
    print(f"ended {_sum(ended, 'waiting request')}")
    return 0


def _sum(counts: dict[str, int], noun: str) -> str:
    total = sum(counts.values())
    each = ", ".join(f"{model}: {count}" for model, count in counts.items() if count)
    return f"{total} {noun}{'' if total == 1 else 's'}" + (f" ({each})" if each else "")


# ── dead letters ─────────────────────────────────────────────────────────────────────────────────


async def list_dead(desk: Desk) -> int:
    letters = await desk.dead_letters.of(await desk.models())
    if not letters:
        print("there are no dead letters")
        return 0
    rows = []
    for letter in letters:
        reason = letter.reason if len(letter.reason) <= REASON_CHARS else letter.reason[:REASON_CHARS] + "…"
        when, tries = moment(letter.buried_at), str(letter.tries)
        rows.append((letter.response_id, when, letter.model, letter.code, tries, letter.consumer, reason))
    show(("id", "when", "model", "code", ">tries", "consumer", "reason"), rows)
    return 0


async def show_dead(desk: Desk, response_id: str) -> int:
    letter = await desk.dead_letters.find(await desk.models(), response_id)
    payload = await desk.dead_letters.payload(letter)
    for name, value in (
        ("id", letter.response_id),
        ("model", letter.model),
        ("when", moment(letter.buried_at)),
        ("code", letter.code),
        ("reason", letter.reason),
        ("tries", letter.tries),
        ("consumer", letter.consumer),
        ("request", f"{len(payload)} bytes"),
    ):
        print(f"{name:<9} {printable(str(value))}")
    print()
    print(pretty(payload))
    return 0


async def requeue(desk: Desk, response_id: str) -> int:
    letter = await desk.dead_letters.find(await desk.models(), response_id)
    request = await desk.dead_letters.request(letter)
    await desk.storage.connect()
    again = new_id("resp")
    await desk.chat.submit_again(request, again)
    print(again, flush=True)
    # Last: a crash in between must not lose the request.
    await desk.dead_letters.remove(letter)
    return 0


async def count_dead(desk: Desk) -> str:
    """The question before `purge_dead`; empty when there are none."""
    backlogs, _ = await _read_status(desk)
    dead = {model: backlog.dead for model, backlog in backlogs.items() if backlog.dead}
    return f"Delete {_sum(dead, 'dead letter')}?" if dead else ""


async def purge_dead(desk: Desk) -> int:
    deleted = {}
    for model in await desk.models():
        deleted[model] = await desk.dead_letters.purge(model)
    print(f"deleted {_sum(deleted, 'dead letter')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
