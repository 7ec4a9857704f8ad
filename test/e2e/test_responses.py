"""`/v1/responses`: the unmodified `openai` package, and what Sluice adds to the API."""

import asyncio
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import responses as types

if TYPE_CHECKING:
    from test.e2e.conftest import JSON, OpenResponses, RunServer, Server

Chunks = Callable[..., list[str]]


@pytest.fixture(scope="module")
def server(run_server: "RunServer") -> Iterator["Server"]:
    models = [
        {"name": "echo", "generator": "echo", "options": {"interval": "5ms"}},
        {"name": "slow", "generator": "echo", "options": {"chunks": 20, "interval": "10ms"}},
        {"name": "endless", "generator": "echo", "options": {"chunks": 3000, "interval": "10ms"}},
        {"name": "single", "generator": "echo", "options": {"chunks": 30, "interval": "10ms", "slots": 1}},
    ]
    with run_server({"models": models}) as server:
        yield server


EVENTS_OF_AN_ECHO = [
    "response.queued",
    "response.created",
    "response.in_progress",
    "response.output_item.added",
    "response.content_part.added",
    *["response.output_text.delta"] * 5,
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "response.completed",
]


def check_typed(events: list[Any], text: str) -> None:
    """The events of one whole answer, as the `openai` package has typed them."""
    assert [event.type for event in events] == EVENTS_OF_AN_ECHO
    assert [event.sequence_number for event in events] == list(range(len(events)))
    first, added, part, last = events[0], events[3], events[4], events[-1]
    assert isinstance(first, types.ResponseQueuedEvent)
    assert isinstance(added, types.ResponseOutputItemAddedEvent)
    assert isinstance(part, types.ResponseContentPartAddedEvent)
    deltas = [event for event in events if isinstance(event, types.ResponseTextDeltaEvent)]
    assert "".join(delta.delta for delta in deltas) == text
    assert {delta.item_id for delta in deltas} == {added.item.id}
    assert isinstance(events[-4], types.ResponseTextDoneEvent)
    assert events[-4].text == text
    assert isinstance(last, types.ResponseCompletedEvent)
    response = last.response
    assert response.output_text == text
    assert (response.id, response.status, response.model) == (first.response.id, "completed", "echo")
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (2, 5)
    assert response.usage.total_tokens == 7
    assert response.usage.input_tokens_details.cached_tokens == 0


async def test_the_openai_package_gets_typed_events(server: "Server", echo_chunks: Chunks) -> None:
    async with (
        AsyncOpenAI(base_url=server.http("/v1"), api_key="unused") as client,
        client.responses.connect() as connection,
    ):
        for message in ("hello there", "and again"):
            await connection.response.create(model="echo", input=message)
            events = []
            async for event in connection:
                events.append(event)
                if event.type == "response.completed":
                    break
            check_typed(events, "".join(echo_chunks(message)))


@pytest.mark.filterwarnings(r"ignore:connect\(\) must be used as a context manager:DeprecationWarning")
async def test_the_synchronous_openai_client_works_too(server: "Server", echo_chunks: Chunks) -> None:
    def talk() -> list[Any]:
        with (
            OpenAI(base_url=server.http("/v1"), api_key="unused") as client,
            client.responses.connect() as connection,
        ):
            connection.response.create(model="echo", input="hello there")
            events = []
            for event in connection:
                events.append(event)
                if event.type == "response.completed":
                    break
            return events

    check_typed(await asyncio.to_thread(talk), "".join(echo_chunks("hello there")))


async def test_the_openai_package_gets_errors_and_goes_on(server: "Server") -> None:
    async with (
        AsyncOpenAI(base_url=server.http("/v1"), api_key="unused") as client,
        client.responses.connect() as connection,
    ):
        await connection.response.create(
            model="echo",
            input="hello",
            tools=[{"type": "function", "name": "add", "parameters": {}, "strict": False}],
        )
        error: Any = await connection.recv()
        assert error.type == "error"
        assert error.status == 400
        assert error.error.code == "unsupported_parameter"
        assert error.error.param == "tools"
        await connection.response.create(model="echo", input="hello")
        assert (await connection.recv()).type == "response.queued"


async def test_the_default_model_answers_lists_of_messages(
    server: "Server", responses_socket: "OpenResponses", echo_chunks: Chunks
) -> None:
    async with responses_socket(server) as socket:
        parts = [{"type": "input_text", "text": "hel"}, {"type": "input_text", "text": "lo"}]
        answer = await socket.ask(
            [
                {"role": "developer", "content": "be brief"},
                {"role": "user", "content": "first"},
                {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "1"}]},
                {"type": "message", "role": "user", "content": parts},
            ]
        )
    assert answer.response["model"] == "echo"
    assert answer.text == answer.output_text == "".join(echo_chunks("hello"))


async def test_parameters_are_told_back(server: "Server", responses_socket: "OpenResponses") -> None:
    fields: JSON = {
        "model": "echo",
        "instructions": "be brief",
        "metadata": {"order": "4711"},
        "temperature": 0.5,
        "top_p": 0.25,
        "max_output_tokens": 100,
        "truncation": "auto",
        "store": True,
    }
    async with responses_socket(server) as socket:
        answer = await socket.ask("hello", **fields, stream=True)
    for event in (answer.events[0], answer.events[-1]):
        for name, value in fields.items():
            assert event["response"][name] == value


async def test_max_output_tokens_ends_incomplete(
    server: "Server", responses_socket: "OpenResponses", echo_chunks: Chunks
) -> None:
    async with responses_socket(server) as socket:
        answer = await socket.ask("hello", model="echo", max_output_tokens=2)
    assert answer.types[-1] == "response.incomplete"
    assert answer.response["status"] == "incomplete"
    assert answer.response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert answer.response["usage"]["output_tokens"] == 2
    assert answer.text == answer.output_text == "".join(echo_chunks("hello", 2))
    assert answer.numbers == list(range(len(answer.numbers)))


async def test_an_answer_can_be_continued_unless_it_was_not_stored(
    server: "Server", responses_socket: "OpenResponses"
) -> None:
    async with responses_socket(server) as socket:
        first = await socket.ask("hello", model="echo")
        second = await socket.ask("again", model="echo", previous_response_id=first.id)
        assert second.response["previous_response_id"] == first.id
        assert second.response["status"] == "completed"
        unstored = await socket.ask("hello", model="echo", store=False)
        assert unstored.response["store"] is False
        for unknown in (unstored.id, "resp_none"):
            await socket.create("again", previous_response_id=unknown)
            error = await socket.error()
            assert error["code"] == "previous_response_not_found"
            assert error["param"] == "previous_response_id"
    # Another connection may continue it as well: who knows the id may.
    async with responses_socket(server) as socket:
        third = await socket.ask("and again", model="echo", previous_response_id=second.id)
        assert third.response["status"] == "completed"


async def test_a_running_answer_cannot_be_continued_yet(
    server: "Server", responses_socket: "OpenResponses"
) -> None:
    async with responses_socket(server) as socket:
        await socket.create("hello", model="slow")
        running = (await socket.until("response.created"))[-1]["response"]["id"]
        async with responses_socket(server) as other:
            await other.create("again", previous_response_id=running)
            assert (await other.error())["code"] == "conflict"
        await socket.rest()


async def test_lanes_run_in_parallel_and_each_in_order(
    server: "Server", responses_socket: "OpenResponses", echo_chunks: Chunks
) -> None:
    async with responses_socket(server) as socket:
        for lane, message in [("a", "a1"), ("a", "a2"), ("b", "b1"), (None, "n1"), ("b", "b2")]:
            await socket.create(message, model="slow", **({"stream_id": lane} if lane else {}))
        events = []
        ended = 0
        while ended < 5:
            events.append(await socket.event())
            ended += events[-1]["type"] == "response.completed"
    kinds = [(event.get("stream_id"), event["type"]) for event in events]
    for lane, messages in {"a": ["a1", "a2"], "b": ["b1", "b2"], None: ["n1"]}.items():
        own = [event for event in events if event.get("stream_id") == lane]
        answers = [list(answer) for new, answer in itertools.groupby(own, key=_counter("response.completed"))]
        assert len(answers) == len(messages)
        for answer, message in zip(answers, messages, strict=True):
            assert [event["sequence_number"] for event in answer] == list(range(len(answer)))
            text = "".join(e["delta"] for e in answer if e["type"] == "response.output_text.delta")
            assert text == "".join(echo_chunks(message, 20))
    # Side by side: every lane began before any had an end.
    first_end = next(i for i, (_, kind) in enumerate(kinds) if kind == "response.completed")
    assert {lane for lane, _ in kinds[:first_end]} == {"a", "b", None}


def _counter(last: str) -> Callable[["JSON"], int]:
    """A key that counts the answers: it goes up behind each event of type `last`."""
    count = 0

    def key(event: "JSON") -> int:
        nonlocal count
        number = count
        count += event["type"] == last
        return number

    return key


async def test_an_error_in_a_lane_names_it_and_the_next_in_line_goes_on(
    server: "Server", responses_socket: "OpenResponses"
) -> None:
    async with responses_socket(server) as socket:
        await socket.create("first", model="slow", stream_id="a")
        await socket.create("second", model="none", stream_id="a")
        await socket.create("third", model="echo", stream_id="a")
        first = await socket.rest()
        assert first.response["model"] == "slow"
        error = await socket.event()
        assert (error["type"], error["stream_id"]) == ("error", "a")
        assert (error["status"], error["error"]["code"]) == (404, "model_not_found")
        third = await socket.rest()
        assert third.response["model"] == "echo"


async def test_cancel_ends_an_answer_within_a_step(
    server: "Server", responses_socket: "OpenResponses", echo_chunks: Chunks
) -> None:
    async with responses_socket(server) as socket:
        await socket.create("hello", model="endless")
        seen = await socket.until("response.output_text.delta")
        await socket.cancel(seen[0]["response"]["id"])
        answer = await socket.rest(seen)
        assert answer.types[-1] == "response.incomplete"
        assert answer.response["incomplete_details"] == {"reason": "cancelled"}
        assert answer.response["output"][0]["status"] == "incomplete"
        assert answer.numbers == list(range(len(answer.numbers)))
        said = answer.types.count("response.output_text.delta")
        assert said < 50, "the engine went on"
        assert answer.text == answer.output_text == "".join(echo_chunks("hello", said))
        # Once more is harmless, and the socket goes on.
        await socket.cancel(answer.id)
        assert (await socket.ask("hello", model="echo")).response["status"] == "completed"


async def test_cancel_from_another_socket(server: "Server", responses_socket: "OpenResponses") -> None:
    async with responses_socket(server) as socket, responses_socket(server) as other:
        await socket.create("hello", model="endless")
        seen = await socket.until("response.output_text.delta")
        await other.cancel(seen[0]["response"]["id"])
        assert (await socket.rest(seen)).response["incomplete_details"] == {"reason": "cancelled"}


async def test_cancel_of_nothing_is_an_error(server: "Server", responses_socket: "OpenResponses") -> None:
    async with responses_socket(server) as socket:
        await socket.cancel("resp_none")
        error = await socket.error()
        assert (error["code"], error["param"]) == ("response_not_found", "response_id")


async def test_resume_of_an_ended_answer_gives_exactly_the_rest(
    server: "Server", responses_socket: "OpenResponses"
) -> None:
    async with responses_socket(server) as socket:
        answer = await socket.ask("hello", model="echo")
        await socket.resume(answer.id)
        assert (await socket.rest()).events == answer.events
        await socket.resume(answer.id, starting_after=None)
        assert (await socket.rest()).events == answer.events
        for number in (0, 6, len(answer.events) - 2):
            await socket.resume(answer.id, starting_after=number)
            assert (await socket.rest()).events == answer.events[number + 1 :]
        await socket.resume(answer.id, starting_after=3, stream_id="again")
        again = await socket.rest()
        assert [event.pop("stream_id") for event in again.events] == ["again"] * len(again.events)
        assert again.events == answer.events[4:]
        # Behind the last event there is nothing to send, and nothing stays behind either.
        for _ in range(10):
            await socket.resume(answer.id, starting_after=len(answer.events) - 1)
            assert (await socket.ask("hello", model="echo")).response["status"] == "completed"


async def test_what_is_followed_already_cannot_be_resumed(
    server: "Server", responses_socket: "OpenResponses"
) -> None:
    async with responses_socket(server) as socket:
        await socket.create("hello", model="slow")
        seen = await socket.until("response.in_progress")
        await socket.resume(seen[0]["response"]["id"])
        events = [await socket.event()]
        while events[-1]["type"] != "error":
            events.append(await socket.event())
        assert events[-1]["error"]["param"] == "response_id"
        answer = await socket.rest([*seen, *events[:-1]])
        assert answer.numbers == list(range(len(answer.numbers)))


async def test_who_waits_is_told_the_position(server: "Server", responses_socket: "OpenResponses") -> None:
    async with (
        responses_socket(server) as first,
        responses_socket(server) as second,
        responses_socket(server) as third,
        responses_socket(server) as silent,
    ):
        await first.create("1", model="single")
        seen = await first.until("response.output_text.delta")
        assert seen[0]["queue"] == {"position": 0}
        await second.create("2", model="single")
        assert (await second.event())["queue"] == {"position": 0}
        await third.create("3", model="single", include=["queue"], stream_id="lane")
        assert (await third.event())["queue"] == {"position": 1}
        await silent.create("4", model="single")
        waiting = await silent.event()
        assert (waiting["type"], waiting["queue"]) == ("response.queued", {"position": 2})
        await server.metric_becomes("sluice_queue_depth", 3, model="single")

        answer = await first.rest(seen)
        assert answer.response["status"] == "completed"
        update = await third.event()
        response_id = update.pop("response_id")
        assert update == {"type": "response.queue", "position": 0, "stream_id": "lane"}

        # The last one gives up while it waits: that ends it at once, and has no output.
        await silent.cancel(waiting["response"]["id"])
        cancelled = await silent.rest([waiting])
        assert cancelled.numbers == [0, 1]
        assert cancelled.response["incomplete_details"] == {"reason": "cancelled"}
        assert cancelled.response["output"] == []

        await second.rest()
        answer = await third.rest()
        assert answer.id == response_id
        # Updates are not in the log: neither now nor for who resumes.
        events = [event for event in answer.events if event["type"] != "response.queue"]
        assert [event["sequence_number"] for event in events] == list(range(1, len(events) + 1))
        await silent.resume(response_id, include=["queue"])
        replayed = await silent.rest()
        assert replayed.numbers == list(range(len(events) + 1))


async def test_a_hundred_answers_at_once_are_all_whole(
    server: "Server", responses_socket: "OpenResponses", echo_chunks: Chunks
) -> None:
    async def talk(name: int) -> str:
        async with responses_socket(server) as socket:
            answer = await socket.ask(f"hello {name}", model="slow")
            assert answer.numbers == list(range(len(answer.numbers)))
            assert answer.text == answer.output_text == "".join(echo_chunks(f"hello {name}", 20))
            return answer.id

    async with asyncio.TaskGroup() as tasks:
        talks = [tasks.create_task(talk(name)) for name in range(100)]
    assert len({talk.result() for talk in talks}) == 100
