"""Pings, pongs and peers that are gone."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from internal.biz.heartbeat import Heartbeat

if TYPE_CHECKING:
    from test.conftest import Clock


class Member:
    def __init__(self, *, answers: bool = True) -> None:
        self.closed = False
        self.unanswered_ping = 0
        self.pings = 0
        self.losses = 0
        self.congested = False
        self._answers = answers

    def ping(self) -> bool:
        if self.congested:
            return False
        self.pings += 1
        return True

    def answer(self) -> None:
        if self._answers:
            self.unanswered_ping = 0

    def lost(self) -> None:
        self.losses += 1
        self.closed = True


def heartbeat(interval_s: float = 27.0, timeout_s: float = 30.0) -> Heartbeat:
    return Heartbeat(asyncio.get_running_loop(), interval_s, timeout_s)


async def test_every_member_is_pinged_at_its_interval(clock: "Clock") -> None:
    beat, early, late = heartbeat(), Member(), Member()
    beat.add(early)
    await clock.advance(10)
    beat.add(late)
    await clock.advance(16.9)
    assert (early.pings, late.pings) == (0, 0)
    await clock.advance(0.2)
    assert (early.pings, late.pings) == (1, 0)
    await clock.advance(10)
    assert (early.pings, late.pings) == (1, 1)
    for member in (early, late):
        member.answer()
    await clock.advance(27)
    assert (early.pings, late.pings) == (2, 2)
    beat.stop()


async def test_who_answers_stays(clock: "Clock") -> None:
    beat, member = heartbeat(), Member()
    beat.add(member)
    for _ in range(10):
        await clock.advance(27.1)
        member.answer()
    assert (member.pings, member.losses) == (10, 0)
    beat.stop()


async def test_who_does_not_answer_in_time_is_lost_once(clock: "Clock") -> None:
    beat, silent, fine = heartbeat(), Member(answers=False), Member()
    beat.add(silent)
    beat.add(fine)
    await clock.advance(27.1)
    fine.answer()
    await clock.advance(29.8)
    assert silent.losses == 0
    assert silent.pings == 1
    await clock.advance(0.3)
    assert (silent.losses, fine.losses) == (1, 0)
    await clock.advance(1000)
    assert silent.losses == 1
    beat.stop()


async def test_an_answer_to_a_later_ping_does_not_save_from_nothing(clock: "Clock") -> None:
    """A pong timeout shorter than the interval: each ping has its own deadline."""
    beat, member = heartbeat(10, 2), Member()
    beat.add(member)
    await clock.advance(10.1)
    member.answer()
    await clock.advance(10)
    assert member.pings == 2
    await clock.advance(2.1)
    assert member.losses == 1
    beat.stop()


async def test_who_left_is_neither_pinged_nor_lost(clock: "Clock") -> None:
    beat, early, late = heartbeat(), Member(), Member()
    beat.add(early)
    beat.add(late)
    early.closed = True
    await clock.advance(27.1)
    late.closed = True
    await clock.advance(100)
    assert (early.pings, early.losses) == (0, 0)
    assert (late.pings, late.losses) == (1, 0)
    beat.stop()


async def test_a_member_that_cannot_be_pinged_is_tried_again(clock: "Clock") -> None:
    beat, member = heartbeat(), Member()
    member.congested = True
    beat.add(member)
    await clock.advance(27.1)
    await clock.advance(40)
    assert (member.pings, member.losses) == (0, 0)
    member.congested = False
    await clock.advance(27.1)
    assert member.pings == 1
    beat.stop()


async def test_an_interval_of_zero_switches_it_off(clock: "Clock") -> None:
    beat, member = heartbeat(interval_s=0), Member()
    beat.add(member)
    await clock.advance(1e6)
    assert member.pings == 0


async def test_stop_ends_the_timer(clock: "Clock", settle: Callable[[], Awaitable[None]]) -> None:
    beat, member = heartbeat(), Member()
    beat.add(member)
    beat.stop()
    beat.stop()
    await clock.advance(1000)
    assert member.pings == 0
