"""Answers asked for over HTTP, on another server than the one that was asked: followed, stopped, deleted, and
resumed when that one was killed."""

import itertools
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import openai
import pytest
from openai import AsyncOpenAI

if TYPE_CHECKING:
    from test.faults.conftest import JSON, Client, Cluster, Process, RunCluster

CHUNKS = 50
ECHO: "JSON" = {"name": "echo", "generator": "echo", "options": {"chunks": CHUNKS, "interval": "30ms"}}
WHOLE = "".join(f"chunk {number}: hello" for number in range(1, CHUNKS + 1))


def client_of(server: "Process") -> AsyncOpenAI:
    return AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="unused", max_retries=0)


async def first(stream: AsyncIterator[Any], count: int) -> list[Any]:
    return [await anext(stream) for _ in range(count)]


async def a_server_is_as_good_as_another(here: AsyncOpenAI, there: AsyncOpenAI) -> None:
    begun = await here.responses.create(model="echo", input="hello", background=True)
    async with await there.responses.retrieve(begun.id, stream=True) as stream:
        heard = await first(stream, 10)
    assert [event.sequence_number for event in heard] == list(range(10))
    seen = await here.responses.retrieve(begun.id)
    assert WHOLE.startswith(seen.output_text)
    stopped = await there.responses.cancel(begun.id)
    assert stopped.status == "incomplete"
    assert await here.responses.retrieve(begun.id) == stopped
    (item,) = (await there.responses.input_items.list(begun.id)).data
    assert item.type == "message"
    await there.responses.delete(begun.id)
    for client, call in itertools.product((here, there), ("retrieve", "cancel", "delete")):
        with pytest.raises(openai.NotFoundError):
            await getattr(client.responses, call)(begun.id)


async def an_answer_of_a_killed_server_is_resumed(
    cluster: "Cluster", here: AsyncOpenAI, there: AsyncOpenAI
) -> None:
    victim, other = cluster.servers
    stream = await here.responses.create(model="echo", input="hello", stream=True)
    heard = await first(stream, 15)
    victim.kill()
    await stream.close()
    response_id = heard[0].response.id
    (socket,) = await cluster.connect(1, other, message="hello")
    await resume(socket, response_id, after=9)
    async with await there.responses.retrieve(response_id, stream=True, starting_after=14) as again:
        heard += [event async for event in again]
    await socket.ended()
    numbers = [event.sequence_number for event in heard]
    assert numbers == list(range(len(heard)))
    deltas = [event.delta for event in heard if event.type == "response.output_text.delta"]
    assert "".join(deltas) == WHOLE
    assert deltas[5:] == socket.deltas
    assert [event.sequence_number for event in heard[10:]] == socket.numbers
    polled = await there.responses.retrieve(response_id)
    assert polled == heard[-1].response
    assert polled.output_text == WHOLE


async def resume(socket: "Client", response_id: str, after: int) -> None:
    await socket._send({"type": "response.resume", "response_id": response_id, "starting_after": after})


async def test_an_answer_is_everybody_s_on_every_server(run_cluster: "RunCluster") -> None:
    async with run_cluster(servers=2, workers=1, models=[ECHO]) as cluster:
        victim, other = cluster.servers
        async with client_of(victim) as here, client_of(other) as there:
            await a_server_is_as_good_as_another(here, there)
            await an_answer_of_a_killed_server_is_resumed(cluster, here, there)
