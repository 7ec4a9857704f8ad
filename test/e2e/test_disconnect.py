"""What becomes of an answer whose reader has left: the grace, resuming, several readers."""

import asyncio
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from test.e2e.conftest import JSON, Answer, OpenResponses, OpenText, RunServer, Server

Chunks = Callable[..., list[str]]

COUNT, INTERVAL_S, GRACE_S = 75, 0.02, 0.4
MODELS = [
    {"name": "slow", "generator": "echo", "options": {"chunks": COUNT, "interval": "20ms"}},
    {"name": "echo", "generator": "echo", "options": {"interval": "5ms"}},
]


@pytest.fixture(scope="module")
def cancels(run_server: "RunServer") -> Iterator["Server"]:
    session = {"on_disconnect": "cancel", "grace": "400ms"}
    with run_server({"session": session, "models": MODELS}) as server:
        yield server


@pytest.fixture(scope="module")
def continues(run_server: "RunServer") -> Iterator["Server"]:
    session = {"on_disconnect": "continue", "grace": "0"}
    with run_server({"session": session, "models": MODELS}) as server:
        yield server


async def begin(server: "Server", open_responses: "OpenResponses", *, abort: bool = False) -> "list[JSON]":
    """Ask, read up to the third delta, leave. Returns what was read."""
    async with open_responses(server) as socket:
        await socket.create("hello", model="slow")
        seen: list[JSON] = []
        for _ in range(3):
            seen += await socket.until("response.output_text.delta")
        if abort:
            socket.connection.transport.abort()
    return seen


def deltas(answer: "Answer") -> int:
    return answer.types.count("response.output_text.delta")


async def ended(server: "Server", status: str, before: float) -> None:
    await server.metric_becomes("sluice_responses_total", before + 1, model="slow", status=status)


async def count(server: "Server", status: str) -> float:
    return (await server.metrics()).value("sluice_responses_total", model="slow", status=status)


@pytest.mark.parametrize("abort", [False, True])
async def test_an_abandoned_answer_is_cancelled_after_the_grace(
    cancels: "Server", responses_socket: "OpenResponses", echo_chunks: Chunks, abort: bool
) -> None:
    before = await count(cancels, "incomplete")
    seen = await begin(cancels, responses_socket, abort=abort)
    await ended(cancels, "incomplete", before)
    async with responses_socket(cancels) as socket:
        await socket.resume(seen[0]["response"]["id"])
        answer = await socket.rest()
    assert answer.events[: len(seen)] == seen
    assert answer.response["incomplete_details"] == {"reason": "cancelled"}
    assert answer.text == answer.output_text == "".join(echo_chunks("hello", deltas(answer)))
    assert GRACE_S / INTERVAL_S / 2 < deltas(answer) < COUNT


async def test_a_text_client_s_answer_is_cancelled_too(cancels: "Server", text_socket: "OpenText") -> None:
    before = await count(cancels, "incomplete")
    async with text_socket(cancels, "/ws?model=slow") as socket:
        await socket.send("hello")
        await socket.recv()
    await ended(cancels, "incomplete", before)


async def test_resuming_within_the_grace_loses_and_repeats_nothing(
    cancels: "Server", responses_socket: "OpenResponses", echo_chunks: Chunks
) -> None:
    seen = await begin(cancels, responses_socket, abort=True)
    response_id = seen[0]["response"]["id"]
    # Three times in a row, each time a little further, the last time to the end.
    for _ in range(3):
        async with responses_socket(cancels) as socket:
            await socket.resume(response_id, starting_after=seen[-1]["sequence_number"])
            for _ in range(5):
                seen.append(await socket.event())
            socket.connection.transport.abort()
    async with responses_socket(cancels) as socket:
        await socket.resume(response_id, starting_after=seen[-1]["sequence_number"])
        answer = await socket.rest(seen)
    assert answer.numbers == list(range(len(answer.numbers)))
    assert answer.response["status"] == "completed"
    assert answer.text == answer.output_text == "".join(echo_chunks("hello", COUNT))


async def test_the_grace_begins_anew_with_each_disconnect(
    cancels: "Server", responses_socket: "OpenResponses"
) -> None:
    seen = await begin(cancels, responses_socket)
    response_id = seen[0]["response"]["id"]
    async with responses_socket(cancels) as socket:
        await socket.resume(response_id)
        # By now most of the first disconnect's grace has passed.
        while (event := await socket.event())["sequence_number"] < seen[-1]["sequence_number"] + 15:
            assert event["type"] != "response.incomplete"
    left_at = event["sequence_number"]
    async with responses_socket(cancels) as socket:
        # Not resumed before the first grace is over; well within the second one.
        await asyncio.sleep(GRACE_S / 2)
        await socket.resume(response_id, starting_after=left_at)
        answer = await socket.rest()
    assert answer.response["status"] == "completed"
    assert answer.numbers == list(range(left_at + 1, left_at + 1 + len(answer.numbers)))


async def test_an_answer_goes_on_while_somebody_else_follows(
    cancels: "Server", responses_socket: "OpenResponses", echo_chunks: Chunks
) -> None:
    async with responses_socket(cancels) as second, responses_socket(cancels) as third:
        async with responses_socket(cancels) as first:
            await first.create("hello", model="slow")
            seen = await first.until("response.output_text.delta")
            response_id = seen[0]["response"]["id"]
            await second.resume(response_id)
            await third.resume(response_id, starting_after=seen[-1]["sequence_number"])
            await first.until("response.output_text.delta")
        # The one that asked has left, longer than the grace before the end.
        whole, rest = await second.rest(), await third.rest()
    assert whole.numbers == list(range(len(whole.numbers)))
    assert whole.text == whole.output_text == "".join(echo_chunks("hello", COUNT))
    assert rest.events == whole.events[len(seen) :]


async def test_with_continue_an_abandoned_answer_is_completed(
    continues: "Server", responses_socket: "OpenResponses", echo_chunks: Chunks
) -> None:
    before = await count(continues, "completed")
    seen = await begin(continues, responses_socket, abort=True)
    await ended(continues, "completed", before)
    async with responses_socket(continues) as socket:
        await socket.resume(seen[0]["response"]["id"], starting_after=seen[-1]["sequence_number"])
        answer = await socket.rest(seen)
    assert answer.numbers == list(range(len(answer.numbers)))
    assert answer.response["status"] == "completed"
    assert answer.text == answer.output_text == "".join(echo_chunks("hello", COUNT))


@pytest.mark.parametrize("value", [-1, 10**6, 2**53 + 1, 2**70, 1.5, "3", True, [], {}])
async def test_a_starting_after_that_is_no_event_s_number_is_an_error(
    cancels: "Server", responses_socket: "OpenResponses", value: object
) -> None:
    async with responses_socket(cancels) as socket:
        answer = await socket.ask("hello", model="echo")
        await socket.resume(answer.id, starting_after=value)
        error = await socket.error()
        assert error["type"] == "invalid_request_error"
        assert error["param"] == "starting_after"
        await socket.resume(answer.id)
        assert (await socket.rest()).events == answer.events
