"""Asking a model: what is refused, what is stored, what reaches the queue."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from internal.biz.chat import Ask, Chat, ChatRules
from internal.biz.errors import (
    Conflict,
    InvalidRequest,
    NotFound,
    SluiceError,
    TooManyRequests,
    Unavailable,
    UnsupportedParameter,
)
from internal.biz.ids import new_id
from internal.biz.limits import NoLimits
from internal.biz.models import (
    Attachment,
    Caller,
    Feature,
    Message,
    OutputFormat,
    Request,
    Response,
    Role,
    Sampling,
    Settings,
    Tool,
    Tooling,
)
from internal.biz.sampling import RareSampling
from internal.data.memory_history import MemoryHistory
from internal.data.memory_queue import QueueLimits

if TYPE_CHECKING:
    from test.biz.conftest import Server
    from test.conftest import Reader

    MakeReader = Callable[[], Reader]

ADA = Caller("ada")
HELLO = (Message(Role.USER, "hello"),)


def after(response_id: str) -> Settings:
    return Settings(previous_response_id=response_id)


async def test_the_first_model_is_the_default(server: "Server") -> None:
    assert server.chat.require_model(None) == "m"
    assert server.chat.require_model("other") == "other"


async def test_an_unknown_model_is_refused_and_the_known_ones_are_named(server: "Server") -> None:
    with pytest.raises(NotFound) as error:
        await server.chat.submit(ADA, Ask(HELLO, "nonsense"), new_id("resp"))
    assert error.value.code == "model_not_found"
    assert error.value.param == "model"
    assert "m, other" in error.value.message


async def test_an_empty_turn_is_refused(server: "Server") -> None:
    with pytest.raises(InvalidRequest) as error:
        await server.chat.submit(ADA, Ask(()), new_id("resp"))
    assert error.value.param == "input"
    begins = Settings(conversation_id="conv_1")
    with pytest.raises(InvalidRequest):
        await server.chat.submit(ADA, Ask((), settings=begins, begins=True), new_id("resp"))
    assert await server.waiting() == 0


async def test_nothing_new_is_enough_where_there_is_something_to_go_by(server: "Server") -> None:
    await server.chat.submit(ADA, Ask((), settings=Settings(instructions="greet")), new_id("resp"))
    first = await server.claim()
    assert [message.content for message in first.transcript.messages] == ["greet"]
    await first.say("hello")
    await first.finish()
    await server.chat.submit(ADA, Ask((), settings=after(first.id)), new_id("resp"))
    second = await server.claim()
    assert [message.content for message in second.transcript.messages] == ["hello"]


@pytest.mark.parametrize("previous", ["resp_unknown", ""])
async def test_continuing_an_unknown_response_is_refused(server: "Server", previous: str) -> None:
    with pytest.raises(NotFound) as error:
        await server.chat.submit(ADA, Ask(HELLO, settings=after(previous)), new_id("resp"))
    assert error.value.param == "previous_response_id"
    assert error.value.code == "previous_response_not_found"


async def test_what_the_models_engine_cannot_do_is_refused_by_name(server: "Server") -> None:
    rules = ChatRules(("m", "other"), features={"m": frozenset((Feature.STOP, Feature.TOOLS))})
    chat = Chat(server.queue, server.history, NoLimits(), server.history.finish, rules)
    tools = Tooling((Tool("add"),))
    for settings, param in (
        (Settings(stop=("x",), sampling=Sampling(seed=0)), "seed"),
        (Settings(tooling=tools, output_format=OutputFormat()), "response_format"),
        (Settings(sampling=Sampling(top_k=0)), "top_k"),
        (Settings(sampling=Sampling(rare=RareSampling(top_a=0.1))), "top_a"),
        (Settings(output_format=OutputFormat(pattern="a")), "pattern"),
    ):
        with pytest.raises(UnsupportedParameter, match=f"'m' cannot do this: {param}") as error:
            await chat.submit(ADA, Ask(HELLO, settings=settings), new_id("resp"))
        assert error.value.param == param
    image = Message(Role.USER, "what is it?", attachments=(Attachment("a.png", "image/png", "file_1"),))
    with pytest.raises(UnsupportedParameter, match="images"):
        await chat.submit(ADA, Ask((image,)), new_id("resp"))
    with pytest.raises(UnsupportedParameter, match="'other'"):
        await chat.submit(ADA, Ask(HELLO, "other", Settings(stop=("x",))), new_id("resp"))
    await chat.submit(ADA, Ask(HELLO, settings=Settings(stop=("x",), tooling=tools)), "resp_1")
    not_chosen = Settings(
        tooling=Tooling(tools.tools, "none"),
        sampling=Sampling(repetition_penalty=1.0, rare=RareSampling(top_a=0.0)),
    )
    await chat.submit(ADA, Ask(HELLO, "other", not_chosen), "resp_2")
    assert (await server.claim("other")).id == "resp_2"


async def test_continuing_a_running_response_is_refused_for_now(server: "Server") -> None:
    running = "resp_running"
    await server.chat.submit(ADA, Ask(HELLO), running)
    with pytest.raises(Conflict) as error:
        await server.chat.submit(ADA, Ask(HELLO, settings=after(running)), new_id("resp"))
    assert error.value.retryable


async def test_a_response_that_is_not_stored_cannot_be_continued(server: "Server") -> None:
    await server.chat.submit(ADA, Ask(HELLO, settings=Settings(store=False)), new_id("resp"))
    run = await server.claim()
    await run.finish()
    with pytest.raises(NotFound):
        await server.chat.submit(ADA, Ask(HELLO, settings=after(run.id)), new_id("resp"))


async def test_a_full_queue_is_told(server_type: "type[Server]") -> None:
    server = server_type(QueueLimits(max_pending=1))
    await server.chat.submit(ADA, Ask(HELLO), new_id("resp"))
    with pytest.raises(Unavailable):
        await server.chat.submit(ADA, Ask(HELLO), new_id("resp"))


async def test_cancelling_what_nobody_follows_spares_what_is_followed(server: "Server") -> None:
    client = server.client()
    await client.ask()
    followed = await server.claim()
    await server.chat.submit(ADA, Ask(HELLO), new_id("resp"))
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
    await server.chat.submit(ADA, Ask(HELLO), "resp_1")
    with pytest.raises(Unavailable):
        await server.chat.submit(ADA, Ask(HELLO), "resp_2")
    assert await server.said("resp_2") == ["hello"]


async def test_what_was_asked_before_can_be_asked_again_and_continued(server: "Server") -> None:
    await server.chat.submit(ADA, Ask(HELLO), new_id("resp"))
    first = await server.claim()
    await first.say("hi")
    await first.finish()
    settings = Settings(
        instructions="be brief", previous_response_id=first.id, sampling=Sampling(temperature=0.5)
    )
    await server.chat.submit(ADA, Ask(HELLO, "other", settings), new_id("resp"))
    asked = (await server.claim("other")).delivery.request

    await server.chat.submit_again(asked, "resp_again")
    again = await server.claim("other")
    assert again.delivery.request == replace(
        asked, response_id="resp_again", created_at=again.delivery.request.created_at
    )
    await again.say("well")
    await again.finish()
    assert await server.said("resp_again") == ["hello", "hi", "hello", "well"]


async def test_what_is_asked_again_begins_anew_when_what_was_said_before_is_forgotten(
    server: "Server",
) -> None:
    for gone in (
        Settings(previous_response_id="resp_gone"),
        Settings(conversation_id="conv_gone"),
        Settings(conversation_id="conv_gone", replaces="resp_gone"),
    ):
        settings = replace(gone, instructions="be brief")
        await server.chat.submit_again(Request("resp_old", "m", "ada", 0.0, HELLO, settings), new_id("resp"))
        again = await server.claim()
        assert again.delivery.request.messages == HELLO
        assert again.delivery.request.settings == Settings(instructions="be brief")
        assert again.delivery.request.created_at > 0.0
        await again.finish()
        assert await server.said(again.id) == ["hello"]


async def test_where_owners_only_may_a_response_of_somebody_else_is_not_found(
    server_type: "type[Server]", make_reader: "MakeReader"
) -> None:
    server = server_type(rules=ChatRules(("m",), owners_only=True))
    eve, reader = Caller("eve"), make_reader()
    await server.chat.submit(ADA, Ask(HELLO), "resp_1")
    with pytest.raises(NotFound):
        await server.chat.follow(eve, "resp_1", -1, reader)
    with pytest.raises(NotFound):
        await server.chat.cancel(eve, "resp_1")
    run = await server.claim()
    await run.say("hi")
    await server.chat.cancel(ADA, "resp_1")
    assert server.revoked == ["resp_1"]
    (await server.chat.follow(ADA, "resp_1", -1, reader)).close()
    await run.finish()
    assert await server.queue.followers("resp_1") == 0
    with pytest.raises(NotFound):
        await server.chat.submit(eve, Ask(HELLO, settings=after("resp_1")), new_id("resp"))
    await server.chat.submit(ADA, Ask(HELLO, settings=after("resp_1")), new_id("resp"))


async def test_elsewhere_it_is_enough_to_know_an_id(server: "Server", make_reader: "MakeReader") -> None:
    eve = Caller("eve")
    await server.chat.submit(ADA, Ask(HELLO), "resp_1")
    (await server.chat.follow(eve, "resp_1", -1, make_reader())).close()
    await (await server.claim()).finish()
    await server.chat.submit(eve, Ask(HELLO, settings=after("resp_1")), new_id("resp"))


class Budgets(NoLimits):
    """Refuses the caller, or remembers who has places."""

    def __init__(self, refusal: SluiceError | None = None) -> None:
        self.places: list[str] = []
        self._refusal = refusal

    async def admit(self, caller: Caller, *response_ids: str) -> None:
        if self._refusal is not None:
            raise self._refusal
        self.places += response_ids

    async def settle(self, responses: Sequence[Response]) -> None:
        for response in responses:
            self.places.remove(response.id)


def limited(server: "Server", budgets: Budgets) -> Chat:
    async def settle(responses: Sequence[Response]) -> None:
        await server.history.finish(responses)
        await budgets.settle(responses)

    return Chat(server.queue, server.history, budgets, settle, ChatRules(("m",)))


async def test_who_has_spent_a_budget_is_refused_before_anything_is_stored(server: "Server") -> None:
    chat = limited(server, Budgets(TooManyRequests("enough")))
    with pytest.raises(TooManyRequests):
        await chat.submit(ADA, Ask(HELLO), "resp_1")
    assert await server.history.unfinished(time.time() + 1, "", 10) == []


async def test_a_request_that_could_not_be_published_gives_its_place_back(
    server_type: "type[Server]",
) -> None:
    server, budgets = server_type(QueueLimits(max_pending=1)), Budgets()
    chat = limited(server, budgets)
    await chat.submit(ADA, Ask(HELLO), "resp_1")
    with pytest.raises(Unavailable):
        await chat.submit(ADA, Ask(HELLO), "resp_2")
    assert budgets.places == ["resp_1"]


async def test_a_request_that_is_given_up_before_it_is_stored_gives_its_place_back(server: "Server") -> None:
    budgets, storing = Budgets(), asyncio.Event()

    class Slow(MemoryHistory):
        async def begin(self, *args: object, **options: object) -> None:
            storing.set()
            await asyncio.Event().wait()

    chat = Chat(server.queue, Slow(), budgets, server.history.finish, ChatRules(("m",)))
    asking = asyncio.create_task(chat.submit(ADA, Ask(HELLO), "resp_1"))
    await storing.wait()
    assert budgets.places == ["resp_1"]
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()
    assert budgets.places == []


@pytest.mark.parametrize("error", [NotFound("no such answer"), Conflict("not yet"), RuntimeError("a bug")])
async def test_a_turn_that_is_refused_gives_its_place_back_and_has_no_end_to_store(
    server: "Server", error: Exception
) -> None:
    budgets, ends = Budgets(), list[Response]()

    class Refusing(MemoryHistory):
        async def begin(self, *args: object, **options: object) -> None:
            raise error

    async def settle(responses: Sequence[Response]) -> None:
        ends.extend(responses)
        await budgets.settle(responses)

    chat = Chat(server.queue, Refusing(), budgets, settle, ChatRules(("m",)))
    with pytest.raises(type(error)):
        await chat.submit(ADA, Ask(HELLO), "resp_1")
    assert (budgets.places, ends) == ([], [])


async def test_who_leaves_while_a_budget_is_looked_up_gives_the_place_back(server: "Server") -> None:
    class Slow(Budgets):
        async def admit(self, caller: Caller, *response_ids: str) -> None:
            await super().admit(caller, *response_ids)
            await asyncio.Event().wait()

    budgets = Slow()
    asking = asyncio.create_task(limited(server, budgets).submit(ADA, Ask(HELLO), "resp_1"))
    await asyncio.sleep(0)
    assert budgets.places == ["resp_1"]
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()
    assert budgets.places == []


# ── files ────────────────────────────────────────────────────────────────────────────────────────


def with_file(**fields: str) -> Ask:
    attachment = Attachment(fields.pop("name", ""), fields.pop("media_type", ""), **fields)
    return Ask((Message(Role.USER, "what is it?", attachments=(attachment,)),))


async def test_the_text_of_a_file_goes_along_and_is_remembered(server: "Server") -> None:
    await server.chat.submit(ADA, with_file(name="a.txt", url="data:;base64,aGVsbG8="), "resp_1")
    run = await server.claim()
    (message,) = run.delivery.request.messages
    assert message.content == "what is it?"
    assert message.attachments == (Attachment("a.txt", "text/plain", text="hello"),)
    await run.finish()
    following = Request("", "m", "", 0.0, (), after("resp_1"))
    assert await server.history.before([following], 0) == [(message,)]


async def test_a_model_without_eyes_is_shown_no_image(server_type: "type[Server]") -> None:
    png = "data:;base64,iVBORw0KGgo="
    server = server_type(rules=ChatRules(("m", "eyes"), features={"eyes": frozenset({Feature.IMAGES})}))
    for ask in (with_file(url=png, media_type="image/*"), with_file(url=png, name="a.txt")):
        with pytest.raises(UnsupportedParameter) as refusal:
            await server.chat.submit(ADA, ask, new_id("resp"))
        assert "'m'" in refusal.value.message
        assert refusal.value.param == "images"
        assert await server.waiting() == 0
        await server.chat.submit(ADA, replace(ask, model="eyes"), new_id("resp"))
        (message,) = (await server.claim("eyes")).delivery.request.messages
        assert message.attachments[0].url == "data:image/png;base64,iVBORw0KGgo="


async def test_who_attaches_what_is_not_theirs_is_told_and_takes_no_place(server: "Server") -> None:
    budgets = Budgets()
    with pytest.raises(NotFound) as refusal:
        await limited(server, budgets).submit(ADA, with_file(file_id="file_of_bob"), "resp_1")
    assert refusal.value.code == "file_not_found"
    assert (budgets.places, await server.waiting()) == ([], 0)
