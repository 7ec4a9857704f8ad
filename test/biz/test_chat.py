"""Asking a model: what is refused, what is stored, what reaches the queue."""

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from internal.biz.chat import Ask
from internal.biz.errors import Conflict, InvalidRequest, NotFound, SluiceError, Unavailable
from internal.biz.ids import new_id
from internal.biz.models import Message, Request, Role, Settings
from internal.data.memory_queue import QueueLimits

if TYPE_CHECKING:
    from test.biz.conftest import Server

HELLO = (Message(Role.USER, "hello"),)


def after(response_id: str) -> Settings:
    return Settings(previous_response_id=response_id)


async def test_the_first_model_is_the_default(server: "Server") -> None:
    assert server.chat.require_model(None) == "m"
    assert server.chat.require_model("other") == "other"


async def test_an_unknown_model_is_refused_and_the_known_ones_are_named(server: "Server") -> None:
    with pytest.raises(NotFound) as error:
        await server.chat.submit("ada", Ask(HELLO, "nonsense"), new_id("resp"))
    assert error.value.code == "model_not_found"
    assert error.value.param == "model"
    assert "m, other" in error.value.message


async def test_an_empty_turn_is_refused(server: "Server") -> None:
    with pytest.raises(InvalidRequest) as error:
        await server.chat.submit("ada", Ask(()), new_id("resp"))
    assert error.value.param == "input"
    assert await server.waiting() == 0


async def test_instructions_stand_before_the_dialogue_and_are_not_kept(server: "Server") -> None:
    settings = Settings(instructions="be brief")
    await server.chat.submit("ada", Ask(HELLO, settings=settings), new_id("resp"))
    run = await server.claim()
    assert run.delivery.request.messages == (Message(Role.SYSTEM, "be brief"), *HELLO)
    await run.say("hi")
    await run.finish()
    await server.chat.submit("ada", Ask(HELLO, settings=after(run.id)), new_id("resp"))
    following = await server.claim()
    assert following.delivery.request.messages == (*HELLO, Message(Role.ASSISTANT, "hi"), *HELLO)


@pytest.mark.parametrize("previous", ["resp_unknown", ""])
async def test_continuing_an_unknown_response_is_refused(server: "Server", previous: str) -> None:
    with pytest.raises(NotFound) as error:
        await server.chat.submit("ada", Ask(HELLO, settings=after(previous)), new_id("resp"))
    assert error.value.param == "previous_response_id"
    assert error.value.code == "previous_response_not_found"


async def test_continuing_a_running_response_is_refused_for_now(server: "Server") -> None:
    running = "resp_running"
    await server.chat.submit("ada", Ask(HELLO), running)
    with pytest.raises(Conflict) as error:
        await server.chat.submit("ada", Ask(HELLO, settings=after(running)), new_id("resp"))
    assert error.value.retryable


async def test_a_response_that_is_not_stored_cannot_be_continued(server: "Server") -> None:
    await server.chat.submit("ada", Ask(HELLO, settings=Settings(store=False)), new_id("resp"))
    run = await server.claim()
    await run.finish()
    with pytest.raises(NotFound):
        await server.chat.submit("ada", Ask(HELLO, settings=after(run.id)), new_id("resp"))


async def test_a_full_queue_is_told(server_type: "type[Server]") -> None:
    server = server_type(QueueLimits(max_pending=1))
    await server.chat.submit("ada", Ask(HELLO), new_id("resp"))
    with pytest.raises(Unavailable):
        await server.chat.submit("ada", Ask(HELLO), new_id("resp"))


async def test_cancelling_what_nobody_follows_spares_what_is_followed(server: "Server") -> None:
    client = server.client()
    await client.ask()
    followed = await server.claim()
    await server.chat.submit("ada", Ask(HELLO), new_id("resp"))
    alone = await server.claim()
    for response_id in (followed.id, alone.id, "resp_unknown"):
        await server.chat.cancel_unfollowed(response_id)
    assert server.revoked == [alone.id]


def test_ids_sort_by_time_and_cannot_be_guessed() -> None:
    ids = [new_id("resp") for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(len(one) == len("resp_") + 32 for one in ids)
    stamps = [one[:17] for one in ids]
    assert stamps == sorted(stamps)
    assert len({one[17:] for one in ids}) == 1000


def test_every_error_has_a_stable_code_and_says_whether_to_retry() -> None:
    pending: list[type[SluiceError]] = [SluiceError]
    codes = []
    while pending:
        kind = pending.pop()
        pending += kind.__subclasses__()
        codes.append(kind.default_code)
        error = kind("a sentence", param="field")
        assert (error.code, error.message, error.param) == (kind.default_code, "a sentence", "field")
        assert str(error) == "a sentence"
        assert kind("x", code="own").code == "own"
    assert len(set(codes)) == len(codes)


async def test_a_turn_that_could_not_be_published_does_not_wait_for_ever(
    server_type: "type[Server]",
) -> None:
    server = server_type(QueueLimits(max_pending=1))
    await server.chat.submit("ada", Ask(HELLO), "resp_1")
    with pytest.raises(Unavailable):
        await server.chat.submit("ada", Ask(HELLO), "resp_2")
    assert await server.history.messages("resp_2") == HELLO


async def test_what_was_asked_before_can_be_asked_again_and_continued(server: "Server") -> None:
    await server.chat.submit("ada", Ask(HELLO), new_id("resp"))
    first = await server.claim()
    await first.say("hi")
    await first.finish()
    settings = Settings(instructions="be brief", previous_response_id=first.id, temperature=0.5)
    await server.chat.submit("ada", Ask(HELLO, "other", settings), new_id("resp"))
    asked = (await server.claim("other")).delivery.request

    await server.chat.submit_again(asked, "resp_again")
    again = await server.claim("other")
    assert again.delivery.request == replace(
        asked, response_id="resp_again", created_at=again.delivery.request.created_at
    )
    await again.say("well")
    await again.finish()
    assert await server.history.messages("resp_again") == (
        *HELLO,
        Message(Role.ASSISTANT, "hi"),
        *HELLO,
        Message(Role.ASSISTANT, "well"),
    )


async def test_what_is_asked_again_needs_nothing_of_what_was_stored_before(server: "Server") -> None:
    dialogue = (*HELLO, Message(Role.ASSISTANT, "hi"), *HELLO)
    settings = Settings(instructions="be brief", previous_response_id="resp_forgotten")
    messages = (Message(Role.SYSTEM, "be brief"), *dialogue)
    await server.chat.submit_again(Request("resp_old", "m", "ada", 0.0, messages, settings), "resp_new")
    again = await server.claim()
    assert again.delivery.request.messages == messages
    assert again.delivery.request.created_at > 0.0
    await again.finish()
    assert await server.history.messages("resp_new") == dialogue
