"""The log and its cursors: whatever happens, each follower gets every event once and in order."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from internal.biz.errors import Refused
from internal.biz.events import (
    JOINED_CHARS,
    Event,
    ItemAdded,
    ItemDone,
    PartAdded,
    PartDone,
    QueueUpdate,
    ReasoningDelta,
    ResponseCompleted,
    ResponseFailed,
    ResponseIncomplete,
    ResponseQueued,
    ScoredDelta,
    TextDelta,
    TextDone,
    join_deltas,
    scores_of,
    unscored,
)
from internal.biz.log import Cursor, ResponseLog
from internal.biz.models import ItemKind, OutputItem, Response, Settings, Status
from internal.biz.scores import TokenScore

if TYPE_CHECKING:
    from test.conftest import Reader

RESPONSE = Response("resp_1", "m", "ada", 0.0, Settings(), Status.COMPLETED)
KINDS = st.sampled_from(ItemKind)

deltas = (
    st.builds(TextDelta, st.text(max_size=6))
    | st.builds(ScoredDelta, st.text(max_size=6), st.just((TokenScore("so", -1.0),)))
    | st.builds(ReasoningDelta, st.text(max_size=6))
)
events = st.one_of(
    deltas,
    deltas,  # as in life, most events are deltas
    st.builds(ItemAdded, KINDS, st.just(0)),
    st.builds(PartAdded, KINDS, st.just(0)),
    st.builds(TextDone, KINDS, st.text(max_size=6), st.just(0)),
    st.builds(PartDone, KINDS, st.text(max_size=6), st.just(0)),
    st.builds(ItemDone, st.builds(OutputItem, KINDS, st.text(max_size=6)), st.just(0)),
)


def text_of(event: Event) -> str:
    assert isinstance(event, (TextDelta, ReasoningDelta))
    return event


class Wakes:
    def __init__(self) -> None:
        self.count = 0
        self.updates: list[tuple[Cursor, QueueUpdate]] = []

    def wake(self) -> None:
        self.count += 1

    def queue_update(self, cursor: Cursor, update: QueueUpdate) -> None:
        self.updates.append((cursor, update))


class _Follower:
    """What one cursor has handed out so far, as (number, event)."""

    def __init__(self, cursor: Cursor, after: int, wakes: Wakes) -> None:
        self.cursor = cursor
        self.after = after
        self.wakes = wakes
        self.got: list[tuple[int, Event]] = []

    def check(self, model: Sequence[Event]) -> None:
        """What it got are exactly the events behind its first cursor, up to where it has read."""
        read = self.cursor.next_number
        assert self.got == list(enumerate(model))[self.after + 1 : read]


class LogMachine(RuleBasedStateMachine):
    """Appends, right and wrong ones, against any number of followers that read at any pace."""

    def __init__(self) -> None:
        super().__init__()
        self.log = ResponseLog("resp_1")
        self.model: list[Event] = []
        self.followers: list[_Follower] = []

    @precondition(lambda self: not self.log.ended)
    @rule(step=st.lists(events, max_size=5))
    def append(self, step: list[Event]) -> None:
        wakes = [follower.wakes.count for follower in self.followers]
        self.log.append(self.log.attempt, len(self.model), step)
        self.model += step
        if step:
            for follower, before in zip(self.followers, wakes, strict=True):
                assert follower.wakes.count > before

    @precondition(lambda self: not self.log.ended)
    @rule(
        kind=st.sampled_from([ResponseCompleted, ResponseIncomplete, ResponseFailed]),
        before=st.lists(events, max_size=2),
    )
    def end(
        self,
        kind: type[ResponseCompleted] | type[ResponseIncomplete] | type[ResponseFailed],
        before: list[Event],
    ) -> None:
        step = [*before, kind(RESPONSE)]
        self.log.append(self.log.attempt, len(self.model), step)
        self.model += step
        assert self.log.ended

    @rule(
        step=st.lists(events, min_size=1, max_size=3), attempt=st.integers(-2, 2), number=st.integers(-3, 3)
    )
    def append_what_is_not_next(self, step: list[Event], attempt: int, number: int) -> None:
        if not attempt and not number and not self.log.ended:
            return
        size, wakes = self.log.size_bytes, [follower.wakes.count for follower in self.followers]
        with pytest.raises(Refused):
            self.log.append(self.log.attempt + attempt, len(self.model) + number, step)
        assert self.log.events == self.model
        assert self.log.size_bytes == size
        assert [follower.wakes.count for follower in self.followers] == wakes

    @precondition(lambda self: not self.log.ended)
    @rule()
    def begin_another_attempt(self) -> None:
        self.log.attempt += 1

    @rule(data=st.data())
    def attach(self, data: st.DataObject) -> None:
        after = data.draw(st.integers(-1, len(self.model) - 1))
        wakes = Wakes()
        self.followers.append(_Follower(self.log.attach(after, wakes), after, wakes))

    @precondition(lambda self: self.followers)
    @rule(data=st.data(), max_events=st.integers(1, 4), max_bytes=st.integers(0, 700))
    def take_some(self, data: st.DataObject, max_events: int, max_bytes: int) -> None:
        follower = data.draw(st.sampled_from(self.followers))
        cursor = follower.cursor
        number, pending = cursor.next_number, cursor.pending
        taken = cursor.take(max_events, max_bytes)
        assert min(pending, 1) <= len(taken) <= max_events
        assert cursor.pending == pending - len(taken)
        follower.got += enumerate(taken, number)

    @precondition(lambda self: self.followers)
    @rule(data=st.data(), max_events=st.integers(1, 10))
    def take_joined(self, data: st.DataObject, max_events: int) -> None:
        follower = data.draw(st.sampled_from(self.followers))
        number = follower.cursor.next_number
        taken = follower.cursor.take(max_events, 1 << 20)
        joined = list(join_deltas(number, taken))
        check_joined(number, taken, joined)
        follower.got += enumerate(taken, number)

    @precondition(lambda self: self.followers)
    @rule(data=st.data())
    def detach(self, data: st.DataObject) -> None:
        follower = data.draw(st.sampled_from(self.followers))
        follower.cursor.close()
        follower.cursor.close()  # harmless
        self.followers.remove(follower)
        assert follower.cursor not in self.log.cursors

    @invariant()
    def followers_got_what_is_behind_their_cursor(self) -> None:
        assert self.log.events == self.model
        for follower in self.followers:
            follower.check(self.model)
            cursor = follower.cursor
            assert cursor.pending == len(self.model) - cursor.next_number
            assert cursor.done == (self.log.ended and not cursor.pending)

    def teardown(self) -> None:
        for follower in self.followers:
            while follower.cursor.pending:
                number = follower.cursor.next_number
                follower.got += enumerate(follower.cursor.take(3, 200), number)
            follower.check(self.model)


def check_joined(first: int, taken: Sequence[Event], joined: Sequence[tuple[int, Event]]) -> None:
    """Each joined event stands for all events since the one before it, and carries the last number."""
    behind = first
    for number, event in joined:
        part = taken[behind - first : number + 1 - first]
        assert part
        if isinstance(event, (TextDelta, ReasoningDelta)):
            assert {type(delta) for delta in part} == {type(event)}
            assert "".join(map(text_of, part)) == event
        else:
            assert list(part) == [event]
        behind = number + 1
    assert behind == first + len(taken)


TestLogMachine = LogMachine.TestCase
TestLogMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(st.integers(0, 5), st.lists(events, max_size=30))
def test_joined_deltas_carry_the_last_number_and_all_the_text(first: int, taken: list[Event]) -> None:
    check_joined(first, taken, list(join_deltas(first, taken)))


@given(st.lists(events, max_size=30))
def test_no_two_joined_neighbours_could_have_been_one(taken: list[Event]) -> None:
    joined = [event for _, event in join_deltas(0, taken)]
    for one, other in pairwise(joined):
        assert not isinstance(one, (TextDelta, ReasoningDelta)) or type(one) is not type(other)


def test_a_joined_delta_is_bounded() -> None:
    taken = [TextDelta("x" * 1000)] * 30
    joined = list(join_deltas(0, taken))
    check_joined(0, taken, joined)
    assert max(len(text_of(event)) for _, event in joined) < JOINED_CHARS + 1000


SCORE = TokenScore("so", -0.5, tuple((f"{n}", -1.0) for n in range(20)))


def test_deltas_with_scores_are_joined_with_them() -> None:
    one, other = TokenScore("a", -1.0), TokenScore("b", -2.0, (("a", -1.0),))
    taken: list[Event] = [
        TextDelta("x"),
        ScoredDelta("a", (one,)),
        ScoredDelta("b", (other,)),
        ReasoningDelta("hm"),
    ]
    joined = list(join_deltas(3, taken))
    assert joined == [(3, "x"), (5, "ab"), (6, "hm")]
    assert [type(event) for _, event in joined] == [TextDelta, ScoredDelta, ReasoningDelta]
    assert scores_of([text_of(event) for _, event in joined]) == (one, other)


def test_a_joined_delta_has_few_scores() -> None:
    taken = [ScoredDelta("so", (SCORE,))] * 1000
    joined = list(join_deltas(0, taken))
    check_joined(0, taken, joined)
    found = [len(scores_of([text_of(event)])) for _, event in joined]
    assert max(found) < 250
    assert sum(found) == 1000


def test_scores_have_a_size() -> None:
    plain, scored = ResponseLog("resp_1"), ResponseLog("resp_2")
    plain.append(0, 0, [TextDelta("so")] * 10)
    scored.append(0, 0, [ScoredDelta("so", (SCORE,))] * 10)
    assert scored.size_bytes > plain.size_bytes + 10 * 21 * 100
    cursor = scored.attach(-1, Wakes())
    assert len(cursor.take(10, 10_000)) < 5


def test_what_is_done_can_be_told_without_scores() -> None:
    item = OutputItem(ItemKind.MESSAGE, "so", scores=(SCORE,))
    ended = replace(RESPONSE, output=(item,))
    bare = replace(item, scores=())
    for event, expected in (
        (TextDone(ItemKind.MESSAGE, "so", 0, (SCORE,)), TextDone(ItemKind.MESSAGE, "so", 0)),
        (PartDone(ItemKind.MESSAGE, "so", 0, (SCORE,)), PartDone(ItemKind.MESSAGE, "so", 0)),
        (ItemDone(item, 0), ItemDone(bare, 0)),
        (ResponseCompleted(ended), ResponseCompleted(replace(ended, output=(bare,)))),
        (ResponseQueued(RESPONSE), ResponseQueued(RESPONSE)),
    ):
        assert unscored(event) == expected


def test_a_log_that_has_ended_takes_nothing_more() -> None:
    log = ResponseLog("resp_1")
    log.append(0, 0, [ResponseCompleted(RESPONSE)])
    with pytest.raises(Refused):
        log.append(0, 1, [TextDelta("late")])
    assert log.events == [ResponseCompleted(RESPONSE)]


def test_an_event_larger_than_the_limit_is_taken_alone() -> None:
    log = ResponseLog("resp_1")
    log.append(0, 0, [TextDelta("x" * 1000), TextDelta("y" * 1000), TextDelta("z")])
    cursor = log.attach(-1, Wakes())
    assert cursor.take(10, 500) == ["x" * 1000]
    assert cursor.take(10, 500) == ["y" * 1000]
    assert cursor.take(10, 500) == ["z"]


def test_a_log_knows_which_output_item_an_event_belongs_to() -> None:
    log = ResponseLog("resp_1")
    log.append(0, 0, [ItemAdded(ItemKind.REASONING, 0), PartAdded(ItemKind.REASONING, 0)])
    log.append(0, 2, [ReasoningDelta("hm")])
    log.append(0, 3, [ItemAdded(ItemKind.MESSAGE, 1), PartAdded(ItemKind.MESSAGE, 1), TextDelta("so")])
    log.append(0, 6, [TextDelta("!")])
    assert [log.output_index(number) for number in (0, 2, 3, 5, 6)] == [0, 0, 1, 1, 1]


def test_the_size_of_a_log_grows_with_its_text() -> None:
    log = ResponseLog("resp_1")
    log.append(0, 0, [TextDelta("x" * 10_000)])
    one = log.size_bytes
    log.append(0, 1, [TextDelta("x" * 10_000), TextDelta("")])
    assert one >= 10_000
    assert log.size_bytes >= 2 * one


def test_an_announcement_reaches_only_who_asked(make_reader: Callable[[], "Reader"]) -> None:
    log = ResponseLog("resp_1")
    asks, rests = make_reader(), make_reader()
    log.attach(-1, asks, queue_updates=True)
    log.attach(-1, rests)
    log.announce(QueueUpdate(3))
    assert asks.updates == [QueueUpdate(3)]
    assert rests.updates == []
    assert log.events == []


def test_who_has_left_is_not_woken(make_reader: Callable[[], "Reader"]) -> None:
    log, reader = ResponseLog("resp_1"), make_reader()
    cursor = log.attach(-1, reader, queue_updates=True)
    cursor.close()
    log.append(0, 0, [TextDelta("x")])
    log.announce(QueueUpdate(0))
    assert (reader.wakes, reader.updates) == (0, [])
