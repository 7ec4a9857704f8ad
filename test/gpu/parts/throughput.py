"""How many tokens a second come through the WebSocket, beside how many the library alone generates.

Both have the model loaded, take turns on the same questions, and say answers of one length.
"""

import contextlib

from chats import Round
from measure import Lag, firsts, gaps, ms, rate, same
from outcome import Notebook
from programs import Bare, Program, Site, bare, converse, site, why_no_redis
from questions import different
from task import Task

GOAL_PERCENT = 97.0
_PLACES = {"memory": "a thread of the server", "redis": "a worker, over Redis"}


async def run(task: Task, book: Notebook, driver: str) -> None:
    """Raises Broken."""
    if driver == "redis" and (why := why_no_redis()):
        book.skip(f"chats are whole ({_PLACES[driver]})", why)
        return
    slots = max(task.sizes.chats)
    async with contextlib.AsyncExitStack() as around:
        alone = await around.enter_async_context(bare(task, slots))
        served = await around.enter_async_context(site(task, driver, slots))
        warm = different(slots, "what warms up")
        await alone.answers(warm, 4)
        await converse(served, warm, 4)
        for count in task.sizes.chats:
            await _measure(task, book, driver, count, alone, served)


async def _measure(task: Task, book: Notebook, driver: str, count: int, alone: Bare, served: Site) -> None:
    ours: list[Round] = []
    theirs: list[Round] = []
    lag_before = _lag(served.server)
    for number in range(task.sizes.rounds):
        questions = different(count, f"round {number} of {count}, {driver}")
        theirs.append(await alone.answers(questions, task.sizes.tokens))
        ours.append(await converse(served, questions, task.sizes.tokens))
    lag = Lag(lag_before, _lag(served.server))
    chats = count * task.sizes.rounds
    alike = sum(same(a.answers, b.answers) for a, b in zip(ours, theirs, strict=True))
    faults = [fault for it in ours for fault in it.faults]
    short = [it for a in ours for it in a.answers if it.output_tokens != task.sizes.tokens]
    book.check(
        f"{count} chats at a time are whole ({_PLACES[driver]})",
        not faults and not short,
        f"{chats - len(faults) - len(short)} of {chats}, {alike} as the library says it"
        + (f"; {faults[0]}" if faults else "")
        + (f"; one has {short[0].output_tokens} of {task.sizes.tokens} tokens" if short else ""),
    )
    percent = 100 * rate(ours) / rate(theirs)
    book.figure(
        f"Engine in {_PLACES[driver]}: {task.sizes.tokens} tokens each, {task.sizes.rounds} rounds by turns",
        {
            "chats": str(count),
            "library alone, tokens/s": f"{rate(theirs):,.0f}",
            "WebSocket, tokens/s": f"{rate(ours):,.0f}",
            "ratio": f"{percent:.1f} %" + (" ✓" if percent >= GOAL_PERCENT else f" (goal {GOAL_PERCENT:g})"),
            "first token p50 / p99, ms": ms(firsts(ours)),
            "alone: first token": ms(firsts(theirs)),
            "between tokens p50 / p99, ms": ms(gaps(ours)),
            "alone: between": ms(gaps(theirs)),
            "server's loop late by p50 / p99 / max, ms": str(lag),
        },
    )


def _lag(server: Program) -> dict[str, float]:
    return server.samples("sluice_event_loop_lag_seconds_bucket")
