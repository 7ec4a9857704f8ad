"""/v1/batches, /v1/tasks and the form of /v1/chat/completions."""

import asyncio
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import FormData, MultipartWriter

from internal.biz.errors import GenerationFailed, RateLimited
from internal.biz.generation import FinishReason
from internal.biz.limits import Budget
from internal.biz.models import Sampling, Truncation
from internal.service.api.batches import MAX_FILES

if TYPE_CHECKING:
    from test.server.conftest import Api


async def begin(api: "Api", token: str | None, **body: Any) -> Any:
    """A batch for both models."""
    reply = await api.call("POST", "/v1/batches", {"model": "m, other", "prompt": "hello", **body}, token)
    assert reply.status == 202, await reply.text()
    return await reply.json()


async def get(api: "Api", path: str, token: str | None) -> Any:
    reply = await api.call("GET", path, token=token)
    assert reply.status == 200, await reply.text()
    return await reply.json()


async def test_a_batch_from_its_beginning_to_its_end(api: "Api") -> None:
    token = await api.user()
    begun = await begin(api, token)
    path = f"/v1/batches/{begun['batch_id']}"
    assert begun["message"] == "2 models are answering."
    assert begun["conversation_id"].startswith("conv_")
    batch = await get(api, path, token)
    assert batch["status"] == "in_progress"
    assert (batch["prompt"], batch["conversation_id"]) == ("hello", begun["conversation_id"])
    assert abs(time.time() - datetime.fromisoformat(batch["created_at"]).timestamp()) < 5
    assert [task["task_id"] for task in batch["tasks"]] == begun["task_ids"]
    assert [(task["model_name"], task["status"]) for task in batch["tasks"]] == [
        ("m", "queued"),
        ("other", "queued"),
    ]
    one, two = await api.engine.claim("m"), await api.engine.claim("other")
    await one.say("so ", "far")
    task = await get(api, f"/v1/tasks/{begun['task_ids'][0]}", token)
    assert (task["status"], task["response_text"], task["error_msg"]) == ("in_progress", "so far", None)
    await one.finish(FinishReason.ERROR, GenerationFailed("it broke"))
    await two.say("hi")
    await two.finish()
    ended = await get(api, path, token)
    assert (ended["status"], ended["chosen"]) == ("completed", None)
    told = [(it["status"], it["response_text"], it["error_msg"]) for it in ended["tasks"]]
    assert told == [("failed", "", "it broke"), ("completed", "hi", None)]
    assert all(0 <= task["cost_time"] < 5 for task in ended["tasks"])
    later = await get(api, path, token)
    assert [task["cost_time"] for task in later["tasks"]] == [task["cost_time"] for task in ended["tasks"]]


async def test_what_is_asked_reaches_every_model(api: "Api") -> None:
    token = await api.user()
    await begin(api, token, model=["m", "other"], temperature=0.5, truncation="auto", max_output_tokens=7)
    for model in ("m", "other"):
        settings = (await api.engine.claim(model)).request.settings
        assert (settings.sampling, settings.truncation) == (Sampling(temperature=0.5), Truncation.AUTO)
        assert settings.max_output_tokens == 7


async def test_a_batch_may_be_of_one_model_and_say_input(api: "Api") -> None:
    token = await api.user()
    body = {"input": [{"role": "user", "content": "hi"}]}
    reply = await api.call("POST", "/v1/batches", body, token)
    begun = await reply.json()
    assert (reply.status, len(begun["task_ids"]), begun["message"]) == (202, 1, "1 model is answering.")
    assert (await get(api, f"/v1/batches/{begun['batch_id']}", token))["prompt"] == "hi"


async def test_an_answer_is_chosen(api: "Api") -> None:
    token = await api.user()
    begun = await begin(api, token)
    path, (first, second) = f"/v1/batches/{begun['batch_id']}", begun["task_ids"]
    early = await api.call("PATCH", path, {"chosen": second}, token)
    assert (early.status, (await early.json())["error"]["code"]) == (409, "conversation_locked")
    await (await api.engine.claim("m")).finish(FinishReason.ERROR, GenerationFailed("it broke"))
    two = await api.engine.claim("other")
    await two.say("hi")
    await two.finish()
    for chosen, status, code in (
        (first, 400, "task_failed"),
        ("resp_none", 404, "task_not_found"),
    ):
        refused = await api.call("PATCH", path, {"chosen": chosen}, token)
        error = (await refused.json())["error"]
        assert (refused.status, error["code"], error["param"]) == (status, code, "chosen")
    for _ in range(2):
        reply = await api.call("PATCH", path, {"chosen": second}, token)
        assert (reply.status, (await reply.json())["chosen"]) == (200, second)


async def test_all_that_still_runs_is_stopped(api: "Api") -> None:
    token = await api.user()
    begun = await begin(api, token)
    one, two = await api.engine.claim("m"), await api.engine.claim("other")
    await one.say("done")
    await one.finish()
    reply = await api.call("POST", f"/v1/batches/{begun['batch_id']}/cancel", token=token)
    assert (reply.status, (await reply.json())["status"]) == (200, "in_progress")
    assert await api.engine.revoked.get() == begun["task_ids"][1]
    assert api.engine.revoked.empty()
    await two.finish(FinishReason.CANCELLED)
    batch = await get(api, f"/v1/batches/{begun['batch_id']}", token)
    assert batch["status"] == "completed"
    assert [(it["status"], it["error_msg"]) for it in batch["tasks"]] == [
        ("completed", None),
        ("incomplete", "the answer was stopped"),
    ]


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"model": "m, nonsense"}, 404, "model_not_found", "model"),
        ({"model": "m, m"}, 400, "invalid_value", "model"),
        ({"model": "m,"}, 400, "invalid_value", "model"),
        ({"model": []}, 400, "invalid_value", "model"),
        ({"model": ["m"] * 65}, 400, "invalid_value", "model"),
        ({"input": "and this"}, 400, "invalid_value", "prompt"),
        ({"prompt": None}, 400, "invalid_value", "prompt"),
        ({"conversation_id": "conv_none"}, 404, "conversation_not_found", "conversation_id"),
        ({"conversation_id": "c", "previous_response_id": "r"}, 400, "invalid_value", "conversation_id"),
        ({"seed": 1}, 400, "unsupported_parameter", "seed"),
    ],
)
async def test_what_is_wrong_with_a_batch_is_told_before_anything_is_stored(
    api: "Api", body: dict[str, Any], status: int, code: str, param: str
) -> None:
    token = await api.user()
    reply = await api.call("POST", "/v1/batches", {"model": "m, other", "prompt": "hello", **body}, token)
    error = (await reply.json())["error"]
    assert (reply.status, error["code"], error["param"]) == (status, code, param)
    assert api.storage.requests == []


async def test_a_budget_is_told_and_held(api: "Api") -> None:
    api.limiter.budget = Budget(5, 3, 24)
    reply = await api.call("POST", "/v1/batches", {"model": "m, other", "prompt": "hello"})
    assert reply.headers["X-RateLimit-Remaining"] == "3"
    api.limiter.refusal = RateLimited("come back", limit=5, retry_after_s=11.2)
    reply = await api.call("POST", "/v1/batches", {"model": "m, other", "prompt": "hello"})
    assert (reply.status, reply.headers["Retry-After"]) == (429, "12")


async def test_what_a_guest_began_is_seen_by_whoever_knows_its_id_but_not_chosen_from(api: "Api") -> None:
    begun = await begin(api, None)
    api.client.session.cookie_jar.clear()
    path = f"/v1/batches/{begun['batch_id']}"
    assert (await get(api, path, None))["prompt"] == "hello"
    reply = await api.call("PATCH", path, {"chosen": begun["task_ids"][0]})
    assert reply.status == 404


# ── as a form ────────────────────────────────────────────────────────────────────────────────────


def form(**fields: str) -> FormData:
    data = FormData(default_to_multipart=True)
    for name, value in {"prompt": "hello", "model": "m,other", **fields}.items():
        data.add_field(name, value)
    return data


async def post(api: "Api", data: Any, token: str | None) -> tuple[int, Any]:
    reply = await api.call("POST", "/v1/chat/completions", token=token, data=data)
    return reply.status, await reply.json()


async def test_a_form_begins_the_same_batch(api: "Api") -> None:
    token = await api.user()
    conversation = await api.begin(token)
    status, begun = await post(api, form(conversation_id=conversation), token)
    assert status == 202
    assert set(begun) == {"batch_id", "conversation_id", "message", "task_ids"}
    assert begun["conversation_id"] == conversation
    batch = await get(api, f"/v1/batches/{begun['batch_id']}", token)
    assert [task["model_name"] for task in batch["tasks"]] == ["m", "other"]


async def test_files_come_with_the_prompt(api: "Api") -> None:
    token = await api.user()
    data = form()
    data.add_field("files", "one, “ä”".encode(), filename="a.txt", content_type="text/plain")
    data.add_field("files", b"{}", filename="b.json", content_type="application/json")
    status, begun = await post(api, data, token)
    assert status == 202, begun
    for model in ("m", "other"):
        (message,) = (await api.engine.claim(model)).request.messages
        assert message.content == "hello"
        files = [(one.name, one.media_type, one.text) for one in message.attachments]
        assert files == [("a.txt", "text/plain", "one, “ä”"), ("b.json", "text/plain", "{}")]


PNG = bytes.fromhex("89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de")


@pytest.mark.parametrize(
    ("file", "name", "code"),
    [
        (PNG, "cat.png", "unsupported_parameter"),  # "other" has no eyes
        (b"%PDF-1.7", "a.pdf", "unsupported_file"),
        (b"", "a.txt", "file_empty"),
        ("file_none", None, "file_not_found"),
    ],
)
async def test_a_file_that_cannot_be_given_to_all_models_is_refused(
    api: "Api", file: bytes | str, name: str | None, code: str
) -> None:
    data = form()
    data.add_field("files", file, filename=name)
    status, reply = await post(api, data, await api.user())
    assert (status, reply["error"]["code"]) == (404 if name is None else 400, code)
    assert api.storage.requests == []


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "nonsense"}, 404, "model"),
        ({"model": "m,,other"}, 400, "model"),
        ({"prompt": ""}, 400, "prompt"),
        ({"prompt": "a\0b"}, 400, "prompt"),
        ({"conversation_id": "conv_none"}, 404, "conversation_id"),
        ({"conversation_id": "a b"}, 400, "conversation_id"),
        ({"sudo": "1"}, 400, "sudo"),
        ({"files": "no id"}, 400, "files"),
        ({"files": "x" * 65}, 400, "files"),
    ],
)
async def test_what_is_wrong_with_a_form_is_told(
    api: "Api", fields: dict[str, str], status: int, param: str
) -> None:
    refused, reply = await post(api, form(**fields), await api.user())
    assert (refused, reply["error"]["param"]) == (status, param)
    assert api.storage.requests == []


async def test_a_field_that_is_given_twice_is_refused(api: "Api") -> None:
    data = form()
    data.add_field("prompt", "another")
    status, reply = await post(api, data, None)
    assert (status, reply["error"]["param"]) == (400, "prompt")


async def test_json_in_the_same_place_is_a_chat_completion(api: "Api") -> None:
    async with api.engine.answering():
        body = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}
        reply = await api.call("POST", "/v1/chat/completions", body)
    assert (reply.status, (await reply.json())["object"]) == (200, "chat.completion")


async def test_a_form_has_bounds(api_type: "type[Api]") -> None:
    async with api_type(max_body_bytes=2000).serving() as api:
        large = form()
        large.add_field("files", b"x" * 3000, filename="a.txt")

        async def chunks() -> Any:  # whose size nobody was told
            for _ in range(100):
                yield b"x" * 100
                await asyncio.sleep(0)

        unannounced = MultipartWriter("form-data")
        unannounced.append("hello").set_content_disposition("form-data", name="prompt")
        unannounced.append(chunks()).set_content_disposition("form-data", name="files", filename="a")
        many = form()
        for number in range(MAX_FILES + 2):
            many.add_field("files", b"x", filename=f"{number}.txt")
        for data, expected in ((large, 413), (unannounced, 413), (many, 413)):
            status, reply = await post(api, data, None)
            assert status == expected, reply
        assert api.storage.requests == []


@pytest.mark.parametrize(
    "body", [b"", b"nonsense", b"--b\r\n", b'--b\r\nContent-Disposition: form-data; name="prompt"\r\n\r\nhel']
)
async def test_a_form_that_is_broken_or_cut_off_is_refused(api: "Api", body: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    reply = await api.call("POST", "/v1/chat/completions", data=body, headers=headers)
    assert reply.status == 400
    assert api.storage.requests == []
