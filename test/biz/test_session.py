"""A session over a connection that is the test's: what a client gets, however slowly it reads."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from internal.biz import session as session_module
from internal.biz.chat import Ask
from internal.biz.close import CloseCode
from internal.biz.commands import Cancel, Create, Reply, Resume
from internal.biz.errors import GenerationFailed
from internal.biz.events import Event, QueueUpdate, ReasoningDelta, ResponseQueued, TextDelta
from internal.biz.generation import FinishReason
from internal.biz.models import Caller, Message, Role, Settings

if TYPE_CHECKING:
    from test.biz.conftest import Frame, Run, Server
    from test.conftest import Clock

    Settle = Callable[[], Awaitable[None]]


# ── the whole text, once, in order ───────────────────────────────────────────────────────────────


def check_frames(frames: "Sequence[Frame]", after: int, log: Sequence[Event]) -> int:
    """`frames` are the events of `log` behind `after`, deltas perhaps joined; returns the last number."""
    last = after
    for frame in frames:
        assert frame.number > last
        part = log[last + 1 : frame.number + 1]
        assert {type(event).__name__ for event in part} == {frame.kind}
        if frame.text is None:
            assert len(part) == 1
        else:
            assert (
                "".join(event for event in part if isinstance(event, (TextDelta, ReasoningDelta)))
                == frame.text
            )
        last = frame.number
    return last


RESPONSES, CLIENTS = 2, 3
which = st.integers(0, RESPONSES - 1)
who = st.integers(0, CLIENTS - 1)
operations = st.one_of(
    st.tuples(st.just("say"), which, st.integers(1, 12), st.booleans()),
    st.tuples(st.just("say"), which, st.integers(1, 12), st.just(True)),
    st.tuples(st.just("say wrong"), which, st.integers(-1, 1), st.integers(-2, 2)),
    st.tuples(st.just("follow"), who, which, st.integers(0, 40)),
    st.tuples(st.just("follow"), who, which, st.just(0)),
    st.tuples(st.just("leave"), who),
    st.tuples(st.just("room"), who, st.integers(0, 2)),
    st.tuples(st.just("tick"), st.integers(1, 3)),
    st.tuples(st.just("retry"), which),
    st.tuples(st.just("cancel"), who, which),
    st.tuples(st.just("end"), which),
)


class Script:
    """Runs operations against real sessions; knows what each client must have got in the end."""

    def __init__(self, server: "Server") -> None:
        self.server = server
        self.runs: list[Run] = []
        self.ended: set[int] = set()
        self.clients = [server.client(max_in_flight=100) for _ in range(CLIENTS)]
        self.left: set[int] = set()
        self.following: dict[tuple[int, int], int] = {}
        """The cursor that each client began to follow each response with."""

    async def begin(self, make_request: Callable[..., Any]) -> None:
        for number in range(RESPONSES):
            await self.server.queue.publish(make_request(response_id=f"r{number}"))
            self.runs.append(await self.server.claim())

    def log(self, response: int) -> list[Event]:
        run = self.runs[response]
        return [run.delivery.emitted[0], *self.server.model.get(run.id, [])]

    async def perform(self, operation: tuple[Any, ...]) -> None:
        match operation:
            case ("tick", ticks):
                for _ in range(ticks):
                    await asyncio.sleep(0)
            case ("room", who, room):
                self.clients[who].connection.congest(room)
            case ("leave", who) if who not in self.left:
                self.left.add(who)
                await self.clients[who].session.close()
            case ("follow", who, which, after) if who not in self.left and (who, which) not in self.following:
                after = after % (len(self.log(which)) + 1) - 1
                resume = self.clients[who].send(Resume(f"r{which}", after))
                # A client that does not read waits with what it asks.
                await self._shortly(resume, who)
                self.following[who, which] = after
            case ("cancel", who, which) if who not in self.left:
                await self._shortly(self.clients[who].send(Cancel(f"r{which}")), who)
                if which not in self.ended:
                    assert f"r{which}" in self.server.revoked
                    await self._end(which, FinishReason.CANCELLED)
            case (_, which, *more) if (
                operation[0] in ("say", "say wrong", "retry", "end") and which not in self.ended
            ):
                await self._work(operation[0], which, more)

    async def _shortly(self, sending: Any, who: int) -> None:
        task = asyncio.create_task(sending)
        await asyncio.sleep(0)
        if not task.done():
            self.clients[who].connection.make_room()
        await task

    async def _work(self, what: str, which: int, more: list[Any]) -> None:
        run = self.runs[which]
        match what, more:
            case "say", (count, is_text):
                words = [f"{len(self.log(which))}.{i} " for i in range(count)]
                await run.say(*words, kind=TextDelta if is_text else ReasoningDelta)
            case "say wrong", (attempt, number) if attempt or number:
                before = len(self.log(which))
                wrong = Wrong(run, attempt, number)
                assert await self.server.queue.append([wrong]) == [wrong]
                assert len(self.log(which)) == before
            case "retry", _ if run.delivery.attempt < 3:
                await self.server.queue.retry(run.delivery, "again")
                self.runs[which] = again = await self.server.claim()
                assert len(again.delivery.emitted) == len(self.log(which))
            case "end", _:
                await self._end(which, FinishReason.STOP)

    async def _end(self, which: int, reason: FinishReason) -> None:
        self.ended.add(which)
        await self.runs[which].finish(reason)

    async def check(self, settle: "Settle") -> None:
        for client in self.clients:
            client.connection.make_room()
        for _ in range(10):
            await settle()
        for (who, which), after in self.following.items():
            log = self.log(which)
            last = check_frames(self.clients[who].of(f"r{which}"), after, log)
            assert who in self.left or last == len(log) - 1
        for client in self.clients:
            assert client.errors == []


class Wrong:
    """An append that is off."""

    def __init__(self, run: "Run", attempt: int, number: int) -> None:
        right = run.transcript
        self.response_id = right.response_id
        self.receipt = right.receipt
        self.attempt = right.attempt + attempt
        self.number = right.number + number
        self.events = [TextDelta("wrong")]


@given(script=st.lists(operations, max_size=50))
async def test_whatever_happens_each_client_gets_the_text_behind_its_cursor_once_and_in_order(
    script: list[tuple[Any, ...]],
    server_type: "type[Server]",
    request_factory: Callable[[], Callable[..., Any]],
    settle: "Settle",
) -> None:
    with pytest.MonkeyPatch.context() as small:
        # So that a script of a few words passes every bound of a write.
        small.setattr(session_module, "EVENTS_PER_WRITE", 4)
        small.setattr(session_module, "EVENTS_PER_JOIN", 16)
        small.setattr(session_module, "BYTES_PER_WRITE", 2000)
        server = server_type()
        run = Script(server)
        await run.begin(request_factory())
        for operation in script:
            await run.perform(operation)
        await run.check(settle)
        await server.close()


async def test_slow_client_gets_every_token_late(server: "Server", settle: "Settle") -> None:
    client = server.client()
    await client.ask()
    run = await server.claim()
    client.connection.congest()
    for word in range(1000):
        await run.say(f"{word} ")
        await asyncio.sleep(0)
    await run.finish()
    await settle()
    assert len(client.connection.writes) == 1
    client.connection.make_room()
    await settle()
    assert client.text(run.id) == "".join(f"{word} " for word in range(1000))
    assert client.frames[-1].kind == "ResponseCompleted"
    # Joined: far fewer frames than tokens.
    assert len(client.frames) < 50


async def test_a_slow_client_does_not_delay_a_fast_one(server: "Server", settle: "Settle") -> None:
    slow, fast = server.client(), server.client()
    await slow.ask("slow")
    await fast.ask("fast")
    runs = [await server.claim(), await server.claim()]
    slow.connection.congest()
    for words in ("one ", "two "):
        for run in runs:
            await run.say(words)
        await settle()
    assert fast.text(runs[1].id) == "one two "
    assert slow.text(runs[0].id) == "one "
    slow.connection.make_room()
    await settle()
    assert slow.text(runs[0].id) == "one two "


async def test_a_client_that_keeps_up_gets_every_token_in_its_own_frame(
    server: "Server", settle: "Settle"
) -> None:
    client = server.client()
    await client.ask()
    run = await server.claim()
    for word in ("a", "b", "c"):
        await run.say(word)
        await settle()
    assert [frame.text for frame in client.frames if frame.text] == ["a", "b", "c"]


async def test_eight_ready_chunks_leave_in_one_write(server: "Server", settle: "Settle") -> None:
    client = server.client()
    for lane in "abcdefgh":
        await client.ask(lane, lane=lane)
    runs = [await server.claim() for _ in range(8)]
    for run in runs:
        await run.say("first")
    await settle()
    before = len(client.connection.writes)
    for run in runs:
        await run.say("second")
    await settle()
    (write,) = client.connection.writes[before:]
    assert len(write) == 8


async def test_two_clients_follow_one_response(server: "Server", settle: "Settle") -> None:
    one, other = server.client(), server.client()
    await one.ask()
    run = await server.claim()
    await run.say("half ")
    await other.send(Resume(run.id))
    await run.say("whole")
    await run.finish()
    await settle()
    assert one.text(run.id) == other.text(run.id) == "half whole"


async def test_a_resumed_response_goes_on_behind_the_cursor(server: "Server", settle: "Settle") -> None:
    first = server.client()
    await first.ask()
    run = await server.claim()
    await run.say("heard ")
    await settle()
    heard = first.frames[-1].number
    assert await first.session.close() == [run.id]
    await run.say("missed ")
    second = server.client()
    await second.send(Resume(run.id, heard, "lane"))
    await run.say("new")
    await settle()
    assert second.text(run.id) == "missed new"
    assert [frame.number for frame in second.frames] == [heard + 1, heard + 2]
    assert {frame.lane for frame in second.frames} == {"lane"}


async def test_a_response_followed_twice_in_one_session_is_refused(
    server: "Server", settle: "Settle"
) -> None:
    client = server.client()
    await client.ask()
    run = await server.claim()
    await client.send(Resume(run.id))
    await settle()
    assert client.errors == ["invalid_request"]
    await run.say("once")
    await settle()
    assert client.text(run.id) == "once"


# ── lanes and limits ─────────────────────────────────────────────────────────────────────────────


async def test_messages_of_one_lane_run_one_after_another(server: "Server", settle: "Settle") -> None:
    client = server.client()
    await client.ask("first", lane="a")
    await client.ask("second", lane="a")
    await client.ask("third", lane="a")
    for text in ("first", "second", "third"):
        run = await server.claim()
        assert run.delivery.request.messages[-1].content == text
        assert await server.waiting() == 0
        await run.finish()
    await settle()
    assert client.session.in_flight == 0
    ends = [frame for frame in client.frames if frame.kind == "ResponseCompleted"]
    assert len(ends) == 3


async def test_lanes_run_side_by_side(server: "Server", settle: "Settle") -> None:
    client = server.client()
    for lane in ("a", "b", None):
        await client.ask(str(lane), lane=lane)
    assert await server.waiting() == 3
    runs = [await server.claim() for _ in range(3)]
    for run in reversed(runs):
        await run.say("x")
        await run.finish()
    await settle()
    lanes = {frame.response_id: frame.lane for frame in client.frames}
    assert lanes == {runs[0].id: "a", runs[1].id: "b", runs[2].id: None}


async def test_a_failed_response_does_not_hold_up_its_lane(server: "Server", settle: "Settle") -> None:
    client = server.client()
    await client.ask("first")
    await client.ask("second")
    run = await server.claim()
    await run.finish(FinishReason.ERROR, GenerationFailed("broke"))
    assert (await server.claim()).delivery.request.messages[-1].content == "second"


async def test_a_message_that_cannot_start_does_not_hold_up_its_lane(
    server: "Server", settle: "Settle"
) -> None:
    client = server.client()
    await client.ask("first", lane="a")
    await client.ask("lost", lane="a", model="nonsense")
    await client.ask("third", lane="a")
    run = await server.claim()
    await run.finish()
    assert (await server.claim()).delivery.request.messages[-1].content == "third"
    assert client.errors == ["model_not_found"]
    (told,) = (frame for frame in client.frames if frame.kind == "error")
    assert told.lane == "a"


async def test_a_lane_can_be_used_again_after_an_error(server: "Server", settle: "Settle") -> None:
    client = server.client(max_in_flight=1)
    await client.ask("x", lane="a", model="nonsense")
    assert client.session.in_flight == 0
    await client.ask("y", lane="a")
    assert (await server.claim()).delivery.request.messages[-1].content == "y"
    assert client.errors == ["model_not_found"]


async def test_more_in_flight_than_allowed_is_refused_and_the_rest_goes_on(
    server: "Server", settle: "Settle"
) -> None:
    client = server.client(max_in_flight=2)
    await client.ask("runs")
    await client.ask("waits")
    await client.ask("is refused", lane="other")
    await client.send(Resume("resp_unknown"))
    assert client.errors == ["too_many_in_flight"] * 2
    for text in ("runs", "waits"):
        run = await server.claim()
        assert run.delivery.request.messages[-1].content == text
        await run.finish()
        await settle()
    await client.ask("is welcome")
    assert client.errors == ["too_many_in_flight"] * 2
    assert (await server.claim()).delivery.request.messages[-1].content == "is welcome"


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (Resume("resp_unknown"), "response_not_found"),
        (Cancel("resp_unknown"), "response_not_found"),
        (Create(Ask(())), "invalid_request"),
        (Create(Ask((Message(Role.USER, "x"),), "nonsense")), "model_not_found"),
    ],
    ids=["resume", "cancel", "empty", "model"],
)
async def test_what_is_wrong_with_a_frame_is_told(
    server: "Server", command: Create | Resume | Cancel, code: str
) -> None:
    client = server.client()
    await client.send(command)
    assert client.errors == [code]
    assert client.session.idle


async def test_a_frame_that_means_nothing_is_told(server: "Server") -> None:
    client = server.client()
    await client.session.receive(b"gibberish")
    assert client.errors == ["invalid_request"]


async def test_what_the_codec_answers_by_itself_waits_until_the_client_has_caught_up(
    server: "Server", settle: "Settle"
) -> None:
    client = server.client()
    client.connection.congest()
    await client.ask()
    await settle()
    reply = asyncio.create_task(client.send(Reply([b'["reply", "", 0, null, null]'])))
    await settle()
    assert [frame.kind for frame in client.frames] == ["ResponseQueued"]
    client.connection.make_room()
    await reply
    assert [frame.kind for frame in client.frames] == ["ResponseQueued", "reply"]


async def test_a_codec_may_name_the_response(server: "Server") -> None:
    client = server.client()
    await client.send(Create(Ask((Message(Role.USER, "hello"),)), response_id="resp_mine"))
    run = await server.claim()
    assert run.id == "resp_mine"


async def test_a_cancelled_response_ends_with_what_it_said(server: "Server", settle: "Settle") -> None:
    client = server.client()
    await client.ask()
    run = await server.claim()
    await run.say("so far")
    await client.send(Cancel(run.id))
    assert server.revoked == [run.id]
    await run.finish(FinishReason.CANCELLED)
    await settle()
    assert client.frames[-1].kind == "ResponseIncomplete"
    assert client.session.idle


# ── a dialogue ───────────────────────────────────────────────────────────────────────────────────


def dialogue(run: "Run") -> list[str]:
    return [message.content for message in run.transcript.messages]


async def test_every_message_of_a_text_socket_continues_the_dialogue(
    server: "Server", settle: "Settle"
) -> None:
    client = server.client(continues=True)
    await client.ask("who are you?")
    await client.ask("and who am I?")
    first = await server.claim()
    assert dialogue(first) == ["who are you?"]
    await first.say("I am ", "Sluice")
    await first.finish()
    second = await server.claim()
    assert dialogue(second) == ["who are you?", "I am Sluice", "and who am I?"]
    await second.say("no idea")
    await second.finish(FinishReason.CANCELLED)
    await settle()
    await client.ask("bye")
    assert dialogue(await server.claim())[-2:] == ["no idea", "bye"]


async def test_a_failed_answer_is_left_out_of_the_dialogue(server: "Server", settle: "Settle") -> None:
    client = server.client(continues=True)
    await client.ask("one")
    run = await server.claim()
    await run.say("first")
    await run.finish()
    await settle()
    await client.ask("two")
    run = await server.claim()
    await run.finish(FinishReason.ERROR, GenerationFailed("broke"))
    await settle()
    await client.ask("three")
    assert dialogue(await server.claim()) == ["one", "first", "three"]


async def test_a_dialogue_whose_history_is_gone_begins_anew(server: "Server", settle: "Settle") -> None:
    client = server.client(continues=True)
    await client.ask("one")
    run = await server.claim()
    await run.finish()
    await settle()
    # Somebody else's turns push it out.
    server.history.__init__(max_turns=0)  # type: ignore[misc]
    await client.ask("two")
    assert dialogue(await server.claim()) == ["two"]
    assert client.errors == []


async def test_other_dialects_continue_only_what_they_name(server: "Server", settle: "Settle") -> None:
    client = server.client()
    for text in ("one", "two"):
        await client.ask(text)
        run = await server.claim()
        assert dialogue(run) == [text]
        await run.finish()
        await settle()


# ── slow readers ─────────────────────────────────────────────────────────────────────────────────


async def test_a_client_that_takes_nothing_for_the_write_deadline_is_closed(
    server: "Server", clock: "Clock"
) -> None:
    client = server.client(write_timeout_s=5.0)
    await client.ask()
    run = await server.claim()
    client.connection.congest()
    client.connection.buffered_bytes = 1000
    await run.say("x")
    await clock.advance(0)
    await clock.advance(4.9)
    assert client.connection.closed_with is None
    await clock.advance(0.2)
    assert client.connection.closed_with is not None
    assert client.connection.closed_with[0] == CloseCode.WRITE_DEADLINE


async def test_a_client_that_takes_a_little_is_not_closed(server: "Server", clock: "Clock") -> None:
    client = server.client(write_timeout_s=5.0)
    await client.ask()
    run = await server.claim()
    client.connection.congest()
    client.connection.buffered_bytes = 1000
    await run.say("x")
    await clock.advance(0)
    for _ in range(5):
        await clock.advance(4.9)
        client.connection.buffered_bytes -= 10
        await clock.advance(0.2)
    assert client.connection.closed_with is None
    client.connection.make_room()
    await clock.advance(0.1)
    assert client.text(run.id) == "x"


async def test_a_write_deadline_of_zero_waits_for_ever(server: "Server", clock: "Clock") -> None:
    client = server.client(write_timeout_s=0.0)
    await client.ask()
    run = await server.claim()
    client.connection.congest()
    await run.say("x")
    await clock.advance(1e6)
    assert client.connection.closed_with is None


async def test_what_a_client_asks_waits_while_it_does_not_read(server: "Server", settle: "Settle") -> None:
    client = server.client()
    await client.ask("one", lane="a")
    run = await server.claim()
    client.connection.congest()
    await run.say("x")
    await settle()
    asking = asyncio.create_task(client.ask("two", lane="b"))
    await settle()
    assert not asking.done()
    assert await server.waiting() == 0
    client.connection.make_room()
    await asking
    assert await server.waiting() == 1


async def test_a_connection_lost_while_it_lags_ends_the_writer(server: "Server", settle: "Settle") -> None:
    client = server.client()
    await client.ask()
    run = await server.claim()
    client.connection.congest()
    await run.say("x")
    await settle()
    client.connection.lose()
    await settle()
    await run.say("y")
    assert await client.session.close() == [run.id]


async def test_who_lags_is_not_pinged(server: "Server", settle: "Settle") -> None:
    client = server.client()
    assert client.session.ping()
    assert client.connection.pings == 1
    await client.ask()
    run = await server.claim()
    client.connection.congest()
    await run.say("x")
    await settle()
    assert not client.session.ping()
    client.connection.make_room()
    await settle()
    assert client.session.ping()


async def test_who_lags_hears_no_queue_updates(server: "Server", settle: "Settle") -> None:
    client = server.client()
    await client.send(Create(Ask((Message(Role.USER, "x"),)), None, True))
    await settle()
    (queued,) = client.frames
    assert queued.kind == ResponseQueued.__name__
    run = await server.claim()
    server.queue.announce(run.delivery, QueueUpdate(0, 1, 2))
    assert client.frames[-1].kind == "update"
    client.connection.congest()
    await run.say("x")
    await settle()
    before = len(client.frames)
    server.queue.announce(run.delivery, QueueUpdate(0, 2, 2))
    assert len(client.frames) == before


# ── ends ─────────────────────────────────────────────────────────────────────────────────────────


async def test_a_draining_session_finishes_what_runs_and_refuses_the_rest(
    server: "Server", settle: "Settle"
) -> None:
    client = server.client()
    await client.ask("runs", lane="a")
    await client.ask("waits", lane="a")
    run = await server.claim()
    client.session.drain()
    await client.ask("comes late", lane="b")
    assert client.errors == ["restarting", "restarting"]
    assert [frame.lane for frame in client.frames if frame.kind == "error"] == ["a", "b"]
    assert not client.session.idle
    await run.say("to the end")
    await run.finish()
    await settle()
    assert client.text(run.id) == "to the end"
    assert client.session.idle
    assert await server.waiting() == 0


async def test_a_session_is_busy_until_everything_was_handed_over(server: "Server", settle: "Settle") -> None:
    client = server.client()
    await client.ask()
    run = await server.claim()
    client.connection.congest()
    await run.say("x")
    await run.finish()
    await settle()
    assert not client.session.idle
    client.connection.make_room()
    await settle()
    assert client.session.idle


async def test_what_runs_in_the_background_is_nobody_s_to_stop_on_close(server: "Server") -> None:
    ask = Ask((Message(Role.USER, "hello"),), settings=Settings(background=True))
    client = server.client()
    await server.chat.submit(client.session.caller, ask, "resp_background")
    await client.send(Resume("resp_background"))
    await client.ask()
    runs = [await server.claim() for _ in range(2)]
    assert await client.session.close() == [run.id for run in runs if run.id != "resp_background"]


async def test_what_is_just_being_asked_for_in_the_background_is_not_stopped_on_close(
    server: "Server", settle: "Settle", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.history, "begin", lambda *_, **__: asyncio.Event().wait())
    client = server.client()
    asking = [
        asyncio.create_task(client.send(Create(Ask((Message(Role.USER, lane),), settings=settings), lane)))
        for lane, settings in (("a", Settings()), ("b", Settings(background=True)))
    ]
    await settle()
    assert len(await client.session.close()) == 1
    for task in asking:
        task.cancel()
    await asyncio.wait(asking)


async def test_close_ends_the_sessions_tasks_and_tells_what_still_runs(
    server: "Server", settle: "Settle"
) -> None:
    client = server.client()
    for lane in "abc":
        await client.ask(lane, lane=lane)
    runs = [await server.claim() for _ in range(3)]
    client.connection.congest()
    await runs[0].say("x")
    await settle()
    await runs[1].finish()
    assert await client.session.close() == [runs[0].id, runs[2].id]
    assert client.session.closed
    for run in runs:
        assert await server.queue.followers(run.id) == 0
    # Nothing is written to a session that is gone (and the test leaves no task behind).
    writes = len(client.connection.writes)
    await runs[0].say("y")
    await settle()
    assert len(client.connection.writes) == writes


async def test_a_lost_peer_is_dropped(server: "Server") -> None:
    client = server.client()
    client.session.lost()
    assert client.connection.aborted


async def test_a_socket_may_continue_a_conversation_that_exists(server: "Server", settle: "Settle") -> None:
    ada = Caller("ada")
    first = server.client(continues=True, caller=ada)
    await first.ask("one")
    run = await server.claim()
    await run.say("1")
    await run.finish()
    await settle()
    conversation_id = run.delivery.request.settings.conversation_id
    second = server.client(continues=True, caller=ada, conversation_id=conversation_id)
    await second.ask("two")
    run = await server.claim()
    assert dialogue(run) == ["one", "1", "two"]
    await run.finish()
    await settle()
    await first.ask("three")  # sees what the other one has said
    assert dialogue(await server.claim()) == ["one", "1", "two", "three"]


async def test_a_conversation_takes_one_message_at_a_time(server: "Server") -> None:
    ada = Caller("ada")
    client = server.client(continues=True, caller=ada)
    await client.ask("one")
    run = await server.claim()
    other = server.client(
        continues=True, caller=ada, conversation_id=run.delivery.request.settings.conversation_id
    )
    await other.ask("two")
    assert other.errors == ["conversation_locked"]


@pytest.mark.parametrize("user", ["ada", "eve"])
async def test_a_conversation_that_is_not_there_or_not_theirs_is_not_found(
    server: "Server", settle: "Settle", user: str
) -> None:
    client = server.client(continues=True, caller=Caller("ada"))
    await client.ask("one")
    run = await server.claim()
    await run.finish()
    await settle()
    theirs = run.delivery.request.settings.conversation_id
    wanted = theirs if user == "eve" else "conv_unknown"
    stranger = server.client(continues=True, caller=Caller(user), conversation_id=wanted)
    for _ in range(2):
        await stranger.ask("two")
    assert stranger.errors == ["conversation_not_found"] * 2
    assert await server.waiting() == 0


async def test_a_login_that_expires_ends_the_session_at_the_next_message(
    server: "Server", monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    client = server.client(caller=Caller("ada", is_guest=False, until=now + 60))
    await client.ask("one")
    monkeypatch.setattr(time, "time", lambda: now + 59)
    await client.ask("two", lane="b")
    assert client.connection.closed_with is None
    monkeypatch.setattr(time, "time", lambda: now + 61)
    await client.ask("three", lane="c")
    assert client.connection.closed_with == (
        CloseCode.UNAUTHENTICATED,
        "your login has expired; log in again",
    )
    assert await server.waiting() == 2


async def test_a_user_who_is_not_let_in_any_more_is_closed_soon(
    server: "Server", monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    client = server.client(caller=Caller("ada", is_guest=False, key_id="key_1"))
    await client.ask("one")
    server.unknown_users.add("ada")
    monkeypatch.setattr(time, "time", lambda: now + 31)
    await client.ask("two", lane="b")
    assert client.connection.closed_with is not None
    assert client.connection.closed_with[0] == CloseCode.UNAUTHENTICATED
    assert await server.waiting() == 1
