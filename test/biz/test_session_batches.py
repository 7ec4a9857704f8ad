"""Several models asked at once on one connection."""

from typing import TYPE_CHECKING

import pytest

from internal.biz.commands import Cancel
from internal.biz.errors import GenerationFailed
from internal.biz.generation import FinishReason
from internal.data.memory_queue import QueueLimits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from test.biz.conftest import Client, Server

    Settle = Callable[[], Awaitable[None]]


def lanes(client: "Client") -> dict[str, str | None]:
    """Under which `stream_id` each response, or error, was told."""
    return {frame.response_id: frame.lane for frame in client.frames}


async def test_every_model_answers_in_a_lane_of_its_own(server: "Server", settle: "Settle") -> None:
    client = server.client()
    await client.ask_all("m", "other")
    one, two = await server.claim("m"), await server.claim("other")
    for word in ("a", "b"):
        await one.say(word)
        await two.say(word.upper())
        await settle()
    assert lanes(client) == {one.id: "m", two.id: "other"}
    said = [(frame.lane, frame.text) for frame in client.frames if frame.text]
    assert said == [("m", "a"), ("other", "A"), ("m", "b"), ("other", "B")]
    await one.finish()
    await two.finish()
    await settle()
    assert (client.text(one.id), client.text(two.id)) == ("ab", "AB")
    assert client.session.idle
    batches = [run.delivery.request.batch for run in (one, two)]
    assert [seat and seat.position for seat in batches] == [0, 1]
    assert len({seat and seat.batch_id for seat in batches}) == 1


async def test_their_lanes_begin_as_the_clients(server: "Server", settle: "Settle") -> None:
    client = server.client()
    await client.ask_all("m", "other", lane="left")
    runs = [await server.claim("m"), await server.claim("other")]
    await settle()
    assert lanes(client) == {runs[0].id: "left:m", runs[1].id: "left:other"}


async def test_the_next_of_a_lane_waits_for_all_their_answers(server: "Server", settle: "Settle") -> None:
    client = server.client()
    await client.ask_all("m", "other", lane="a")
    await client.ask("next", lane="a")
    one, two = await server.claim("m"), await server.claim("other")
    assert client.session.in_flight == 3
    await two.finish()
    await settle()
    assert await server.waiting() == 0
    assert client.session.in_flight == 2
    await one.finish()
    assert (await server.claim()).delivery.request.prompt == "next"


async def test_each_is_cancelled_by_itself(server: "Server", settle: "Settle") -> None:
    client = server.client()
    await client.ask_all("m", "other")
    one, two = await server.claim("m"), await server.claim("other")
    await client.send(Cancel(one.id))
    assert server.revoked == [one.id]
    await one.finish(FinishReason.CANCELLED)
    await two.say("still here")
    await two.finish()
    await settle()
    assert client.of(one.id)[-1].kind == "ResponseIncomplete"
    assert client.of(two.id)[-1].kind == "ResponseCompleted"


async def test_one_that_fails_does_not_fail_the_others(server: "Server", settle: "Settle") -> None:
    client = server.client()
    await client.ask_all("m", "other")
    one, two = await server.claim("m"), await server.claim("other")
    await one.finish(FinishReason.ERROR, GenerationFailed("broke"))
    await two.finish()
    await settle()
    assert [client.of(run.id)[-1].kind for run in (one, two)] == ["ResponseFailed", "ResponseCompleted"]
    assert client.session.idle


async def test_a_model_that_takes_no_more_is_told_in_its_lane_and_the_others_answer(
    server_type: "type[Server]", settle: "Settle"
) -> None:
    server = server_type(QueueLimits(max_pending=1))
    client, busy = server.client(), server.client()
    await busy.ask()
    await client.ask_all("m", "other", lane="a")
    await client.ask_all("m", "other", lane="a", text="next")
    assert client.errors == ["queue_full"]
    assert client.frames[0].lane == "a:m"
    await (await server.claim("m")).finish()
    run = await server.claim("other")
    assert client.session.in_flight == 3
    await run.finish()
    await settle()
    assert {(await server.claim(model)).delivery.request.prompt for model in ("m", "other")} == {"next"}
    assert client.session.in_flight == 2
    task = await server.history.batch(run.delivery.request.batch.batch_id)  # type: ignore[union-attr]
    assert task is not None
    assert [(it.status, it.failure and it.failure.code) for it in task.tasks] == [
        ("failed", "queue_full"),
        ("completed", None),
    ]
    await server.close()


async def test_where_no_model_takes_it_the_lane_goes_on(
    server_type: "type[Server]", settle: "Settle"
) -> None:
    server = server_type(QueueLimits(max_pending=1))
    client, busy = server.client(), server.client()
    await busy.ask(model="m")
    await busy.ask(model="other", lane="b")
    await client.ask_all("m", "other", lane="a")
    assert client.errors == ["queue_full"]
    assert client.frames[0].lane == "a"
    assert client.session.idle
    await server.close()


@pytest.mark.parametrize(
    ("models", "code"),
    [
        (("m", "nonsense"), "model_not_found"),
        (("m", "m"), "invalid_value"),
        (("m", "other") * 5, "invalid_value"),
    ],
)
async def test_what_is_wrong_with_one_refuses_all(
    server: "Server", models: tuple[str, ...], code: str
) -> None:
    client = server.client(max_in_flight=100)
    await client.ask_all(*models)
    assert client.errors == [code]
    assert client.session.idle
    assert await server.waiting() == 0


async def test_each_answer_counts_as_in_flight(server: "Server", settle: "Settle") -> None:
    client = server.client(max_in_flight=3)
    await client.ask_all("m", "other", lane="a")
    await client.ask_all("m", "other", lane="b")
    assert client.errors == ["too_many_in_flight"]
    await client.ask_all("m", "other", lane="a", text="waits")
    assert client.errors == ["too_many_in_flight"] * 2
    await client.ask("fits", lane="a")
    assert client.session.in_flight == 3


async def test_who_leaves_leaves_all_answers_that_run(server: "Server", settle: "Settle") -> None:
    client = server.client()
    await client.ask_all("m", "other", lane="a")
    await client.ask_all("m", "other", lane="a", text="waits")
    one, two = await server.claim("m"), await server.claim("other")
    await one.finish()
    await settle()
    assert await client.session.close() == [two.id]
