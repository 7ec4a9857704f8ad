"""A worker is killed in the middle of its answers, under load: another one goes on with them."""

import asyncio
from collections.abc import Sequence
from itertools import pairwise

import chats
from measure import percentile, same
from outcome import Notebook
from programs import MODEL, Program, Site, clients, converse, site, why_no_redis
from questions import different
from task import Task

SEAM_SHARE = 0.25
"""Of the answers that were taken over, how many may part from the undisturbed ones where the next worker went
on. It reads what was said again as text, in another batch, and near ties may go another way; but seldom just
there. Anywhere else an answer may part for the same reason, whether it was taken over or not."""
SEAM_FRAMES = 3
SPOKEN = 10
"""Tokens that each answer has when the worker is killed."""


async def run(task: Task, book: Notebook) -> None:
    """Raises Broken."""
    if why := why_no_redis():
        book.skip("kill -9 of a worker", why)
        return
    sizes = task.sizes
    questions = different(sizes.killed_chats, "the takeover")
    lease = f"{sizes.lease_s:g}s"
    async with site(task, "redis", sizes.killed_chats, workers=2, lease=lease) as served:
        undisturbed = await converse(served, questions, sizes.killed_tokens)
        disturbed, lost = await _with_a_death(served, questions, sizes.killed_tokens)
    alike = same(disturbed.answers, undisturbed.answers)
    faults = undisturbed.faults + disturbed.faults
    both = list(zip(disturbed.answers, undisturbed.answers, strict=True))
    both.sort(key=lambda pair: _longest_silence(pair[0])[0], reverse=True)
    seams = sum(parts_at_seam(ours, theirs) for ours, theirs in both[:lost])
    silences = [_longest_silence(ours)[0] for ours, _ in both]
    taken_over = silences[:lost]
    at_seam = f"{seams} of {lost} part just at the seam{_distances(both[:lost])}"
    book.check(
        f"kill -9 of a worker: {lost} of {len(questions)} answers are taken over, and all are whole",
        lost > 0 and not faults and seams <= SEAM_SHARE * lost,
        faults[0] if faults else f"{alike} of {len(questions)} are what they are undisturbed; {at_seam}",
    )
    book.figure(
        "Takeover after kill -9",
        {
            "lease, s": f"{sizes.lease_s:g}",
            "answers of the killed worker": str(lost),
            "they were silent for p50 / max, s": (
                f"{percentile(taken_over, 50):.2f} / {max(taken_over, default=0.0):.2f}"
            ),
            "the others at most, s": f"{max(silences[lost:], default=0.0):.2f}",
            "tokens/s undisturbed": f"{undisturbed.tokens / undisturbed.seconds:,.0f}",
        },
    )


async def _with_a_death(served: Site, questions: list[str], tokens: int) -> tuple[chats.Round, int]:
    """What was heard, and how many answers the worker had that was killed."""
    wanted = chats.Wanted(f"{served.url}/v1/responses", MODEL, questions, tokens, spoken=min(SPOKEN, tokens))
    async with clients(wanted) as talking:
        await talking.spoken()
        running = {it.name: await asyncio.to_thread(_running, it) for it in served.workers}
        victim = max(served.workers, key=lambda worker: running[worker.name])
        victim.process.kill()
        await asyncio.to_thread(victim.process.wait)
        heard = await talking.done()
    return heard, running[victim.name]


def _running(worker: Program) -> int:
    return int(sum(worker.samples("sluice_engine_running").values()))


def _longest_silence(answer: chats.Heard) -> tuple[float, int]:
    """How long, and behind how many frames of text."""
    gaps = ((after - before, frames) for frames, (before, after) in enumerate(pairwise(answer.at_s), 1))
    return max(gaps, default=(0.0, 0))


def parts_at_seam(ours: chats.Heard, theirs: chats.Heard) -> bool:
    if ours.text == theirs.text:
        return False
    _, frames = _longest_silence(ours)
    same = _parting(ours, theirs)
    before, soon = ours.chars[frames - 1], ours.chars[min(frames + SEAM_FRAMES, len(ours.chars)) - 1]
    return before <= same < soon


def _parting(ours: chats.Heard, theirs: chats.Heard) -> int:
    """How many characters are the same before they part."""
    pairs = enumerate(zip(ours.text, theirs.text, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(ours.text), len(theirs.text)))


def _distances(pairs: Sequence[tuple[chats.Heard, chats.Heard]]) -> str:
    """Of those that part: how many characters behind the seam, before it where the number is negative."""
    parted = [(ours, theirs) for ours, theirs in pairs if ours.text != theirs.text]
    places = sorted(_parting(it, other) - it.chars[_longest_silence(it)[1] - 1] for it, other in parted)
    return f" (parted {', '.join(map(str, places))} characters behind it)" if places else ""
