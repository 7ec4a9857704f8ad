"""A database that answers nobody is noticed, and one that is only slow is left in peace."""

import asyncio
import time

import pytest

from internal.data.sql import pulse
from internal.data.sql.pulse import Pulse

SILENCE_S = 0.05
FOR_EVER_S = 5.0


class Heart:
    def __init__(self, silence_s: float = SILENCE_S) -> None:
        self.silences = 0
        self.doubts = 0
        self.answers_doubts = False
        self.pulse = Pulse(silence_s, self._doubt, self._fell_silent)
        self._answering: asyncio.Task[None] | None = None

    def _doubt(self) -> None:
        self.doubts += 1
        if self.answers_doubts:
            self._answering = asyncio.create_task(self.ask(0))

    def _fell_silent(self) -> None:
        self.silences += 1

    async def ask(self, seconds: float = FOR_EVER_S) -> None:
        async with self.pulse.asking():
            await asyncio.sleep(seconds)


@pytest.fixture
def heart() -> Heart:
    return Heart()


async def test_who_is_not_answered_is_told_and_all_who_asked_meanwhile(heart: Heart) -> None:
    asked_at = time.monotonic()
    results = await asyncio.gather(*(heart.ask() for _ in range(3)), return_exceptions=True)
    assert [type(result) for result in results] == [TimeoutError] * 3
    assert SILENCE_S <= time.monotonic() - asked_at < FOR_EVER_S
    assert heart.pulse.is_silent
    assert heart.silences == 1


async def test_one_that_takes_long_is_waited_for_while_others_are_answered(heart: Heart) -> None:
    slow = asyncio.create_task(heart.ask(4 * SILENCE_S))
    while not slow.done():
        await heart.ask(SILENCE_S / 10)
    await slow
    assert not heart.silences


async def test_while_it_is_silent_one_at_a_time_asks(heart: Heart) -> None:
    with pytest.raises(TimeoutError):
        await heart.ask()
    one = asyncio.create_task(heart.ask(SILENCE_S / 2))
    await asyncio.sleep(0)
    asked_at = time.monotonic()
    with pytest.raises(TimeoutError):
        await heart.ask()
    assert time.monotonic() - asked_at < SILENCE_S / 2
    await one
    assert not heart.pulse.is_silent
    await heart.ask(0)


async def test_one_that_takes_long_alone_is_waited_for_while_what_takes_no_time_is_answered(
    heart: Heart,
) -> None:
    heart.answers_doubts = True
    await heart.ask(4 * SILENCE_S)
    assert heart.doubts > 2
    assert not heart.silences


async def test_who_answers_in_time_is_not_doubted(heart: Heart) -> None:
    for _ in range(10):
        await heart.ask(SILENCE_S / 5)
    assert not heart.doubts


async def test_who_does_not_answer_is_doubted_once(heart: Heart) -> None:
    with pytest.raises(TimeoutError):
        await heart.ask()
    assert heart.doubts == 1


async def test_nobody_who_asks_nothing_is_kept_waiting_by_the_past(heart: Heart) -> None:
    await heart.ask(0)
    await asyncio.sleep(2 * SILENCE_S)
    assert not heart.silences
    await heart.ask(SILENCE_S / 2)


async def test_a_process_that_stood_still_itself_does_not_blame_the_database(
    heart: Heart, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulse, "LATE_S", SILENCE_S / 5)
    asking = asyncio.create_task(heart.ask(SILENCE_S * 1.9))
    await asyncio.sleep(0)
    time.sleep(SILENCE_S * 1.5)  # noqa: ASYNC251
    await asking
    assert not heart.silences


async def test_without_a_limit_nobody_is_silent() -> None:
    heart = Heart(0.0)
    await heart.ask(2 * SILENCE_S)
    heart.pulse.close()
