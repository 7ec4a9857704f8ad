"""The engine that asks an upstream, on an upstream that behaves as the test wants."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from internal.biz.errors import ContextLengthExceeded
from internal.biz.events import ReasoningDelta, TextDelta
from internal.biz.generation import Chunk, Finished, FinishReason, Job, Output
from internal.biz.inbox import StepInbox
from internal.biz.models import Message, Role, Settings, ToolCall, Truncation, Usage
from internal.generator.openai.engine import OpenAIGenerator
from internal.generator.openai.options import Bounds

if TYPE_CHECKING:
    from test.conftest import Sink
    from test.generator.openai.conftest import Call, Engines, Upstream

KEY = "sk-do-not-tell-4711"
STOP = b'data: {"choices": [{"delta": {}, "finish_reason": "stop"}]}\n\n'
DONE = b"data: [DONE]\n\n"


def ask(*said: str | Message, **settings: Any) -> Job:
    messages = [Message(Role.USER, one) if isinstance(one, str) else one for one in said or ("hello",)]
    return Job("resp_1", tuple(messages), Settings(**settings))


async def attempt(engine: OpenAIGenerator, sink: "Sink", job: Job | None = None) -> list[Output]:
    job = job or ask()
    engine.submit(job)
    return await sink.outputs(job)


def text(outputs: Sequence[Output]) -> str:
    return "".join(output for output in outputs if isinstance(output, TextDelta))


def end(outputs: Sequence[Output]) -> Finished:
    last = outputs[-1]
    assert isinstance(last, Finished)
    return last


def code(outputs: Sequence[Output]) -> str:
    """How a job failed."""
    assert end(outputs).reason is FinishReason.ERROR
    error = end(outputs).error
    assert error is not None
    assert not error.retryable, "the queue would try it again"
    return error.code


def message(outputs: Sequence[Output]) -> str:
    error = end(outputs).error
    assert error is not None
    return error.message


# ── what it says ─────────────────────────────────────────────────────────────────────────────────


async def test_it_says_what_the_upstream_says(engines: "Engines", upstream: "Upstream", sink: "Sink") -> None:
    counts = upstream.usage(12, 3, prompt_tokens_details={"cached_tokens": 9})
    upstream.will(upstream.write(*upstream.texts("", "so", " it ", "is"), STOP, counts, DONE))
    outputs = await attempt(await engines.start(), sink, ask("is it?", max_output_tokens=9))
    assert text(outputs) == "so it is"
    assert end(outputs) == Finished(FinishReason.STOP, Usage(12, 9, 3, 0))
    (call,) = upstream.calls
    assert call.request.headers["Authorization"] == f"Bearer {KEY}"
    assert call.body == {
        "model": "m",
        "messages": [{"role": "user", "content": "is it?"}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 9,
    }


async def test_tokens_that_come_together_are_one_step(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    upstream.will(upstream.write(b"".join((*upstream.texts("a", "b", "c"), STOP, DONE))))
    engine, job = await engines.start(), ask()
    engine.submit(job)
    steps = await sink.until_ended(job)
    assert steps[0] == [(job, "abc")]


async def test_an_answer_that_is_cut_off_says_so(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    upstream.will(upstream.say("so it", reason="length"))
    outputs = await attempt(await engines.start(), sink)
    assert (text(outputs), end(outputs).reason) == ("so it", FinishReason.LENGTH)


@pytest.mark.parametrize(
    "deltas",
    [
        [{"reasoning_content": "a < b"}, {"content": "so"}],
        [{"reasoning": "a <", "reasoning_content": None}, {"reasoning": " b"}, {"content": "so"}],
        [{"content": "<thi"}, {"content": "nk>\na < b</th"}, {"content": "ink>\n\nso"}],
    ],
)
async def test_thoughts_are_no_answer(
    engines: "Engines", upstream: "Upstream", sink: "Sink", deltas: list[dict[str, Any]]
) -> None:
    upstream.will(upstream.write(*map(upstream.chunk, deltas), STOP, DONE))
    outputs = await attempt(await engines.start(), sink)
    thoughts = "".join(output for output in outputs if isinstance(output, ReasoningDelta))
    assert (thoughts, text(outputs)) == ("a < b", "so")
    assert end(outputs).usage.reasoning_tokens > 0


async def test_calls_are_told_whole_and_last(engines: "Engines", upstream: "Upstream", sink: "Sink") -> None:
    first = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "now", "arguments": ""}}
    pieces: list[dict[str, Any]] = [
        {"content": "I look."},
        {"tool_calls": [first]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"zone": '}}]},
        {"tool_calls": [{"index": 1, "id": "call_2", "function": {"name": "rain", "arguments": "{}"}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"UTC"}'}}]},
    ]
    upstream.will(upstream.write(*map(upstream.chunk, pieces), upstream.chunk(reason="tool_calls"), DONE))
    outputs = await attempt(await engines.start(), sink)
    assert text(outputs) == "I look."
    assert outputs[-3:-1] == [ToolCall("call_1", "now", '{"zone": "UTC"}'), ToolCall("call_2", "rain", "{}")]
    assert end(outputs).reason is FinishReason.STOP


async def test_an_answer_in_one_piece_is_an_answer(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    async def whole(call: "Call") -> web.StreamResponse:
        answer = {"role": "assistant", "content": "so it is", "tool_calls": None}
        choices = [{"index": 0, "message": answer, "finish_reason": "stop"}]
        return web.json_response({"choices": choices, "usage": {"prompt_tokens": 3, "completion_tokens": 4}})

    upstream.will(whole)
    outputs = await attempt(await engines.start(), sink)
    assert text(outputs) == "so it is"
    assert end(outputs) == Finished(FinishReason.STOP, Usage(3, 0, 4, 0))


async def test_tokens_are_estimated_where_nobody_counts_them(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    upstream.will(upstream.say("so", " it", " is"))
    outputs = await attempt(await engines.start(), sink, ask("x" * 40))
    assert end(outputs).usage == Usage(10, 0, 3, 0)


async def test_a_refusal_fails_and_is_there_to_be_read(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    engine = await engines.start(refusals=("i can't help",))
    upstream.will(upstream.say("Sorry, I ca", "n’t HELP with that."), upstream.say("I can."))
    outputs = await attempt(engine, sink)
    assert text(outputs) == "Sorry, I can’t HELP with that."
    assert code(outputs) == "refused_by_model"
    assert end(await attempt(engine, sink)).reason is FinishReason.STOP


async def test_far_behind_the_beginning_the_same_words_are_no_refusal(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    engine = await engines.start(refusals=("i can't help",))
    upstream.will(upstream.say("She said: " + "la " * 200, "I can't help it."))
    assert end(await attempt(engine, sink)).reason is FinishReason.STOP


async def test_a_filter_fails_the_answer_and_what_was_said_stays(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    upstream.will(upstream.say("so <", reason="content_filter"))
    outputs = await attempt(await engines.start(), sink)
    assert (text(outputs), code(outputs)) == ("so <", "content_filter")


# ── what it must not say ─────────────────────────────────────────────────────────────────────────

GARBAGE: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"data: {so it is\n\n", "text/event-stream"),
    "not UTF-8": (b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n', "text/event-stream"),
    "a number": (b"data: 4711\n\n", "text/event-stream"),
    "no text": (b'data: {"choices": [{"delta": {"content": {"a": 1}}}]}\n\n', "text/event-stream"),
    "no choice": (b'data: {"choices": {"a": 1}}\n\n', "text/event-stream"),
    "no call": (
        b'data: {"choices": [{"delta": {"tool_calls": [{"function": 3}]}}]}\n\n',
        "text/event-stream",
    ),
    "no end": (b'data: {"choices": [{"delta": {"content": ""}}]}\n\n', "text/event-stream"),
    "nothing": (b"", "text/event-stream"),
    "only an end": (DONE, "text/event-stream"),
    "a page": (b"<html>It works!</html>", "text/html"),
    "an error": (b'{"error": {"message": "out of memory"}}', "application/json"),
    "half an answer": (b'{"choices": [{"mess', "application/json"),
    "an error event": (
        b'data: {"error": {"message": "out of memory", "type": "x"}}\n\n',
        "text/event-stream",
    ),
    "llama.cpp's error": (b'error: {"error": {"message": "out of memory"}}\n\n', "text/event-stream"),
}


@pytest.mark.parametrize("kind", GARBAGE)
async def test_garbage_is_tried_again_and_then_fails(
    engines: "Engines", upstream: "Upstream", sink: "Sink", kind: str
) -> None:
    body, content_type = GARBAGE[kind]
    upstream.will(upstream.write(body, content_type=content_type))
    outputs = await attempt(await engines.start(retries=1), sink)
    assert (text(outputs), code(outputs)) == ("", "upstream_failed")
    assert len(upstream.calls) == 2


@pytest.mark.parametrize(
    "kind", [kind for kind, (body, what) in GARBAGE.items() if what == "text/event-stream" and body != DONE]
)
async def test_garbage_behind_a_beginning_is_not_tried_again(
    engines: "Engines", upstream: "Upstream", sink: "Sink", kind: str
) -> None:
    body, _ = GARBAGE[kind]
    upstream.will(upstream.write(*upstream.texts("so it"), body))
    outputs = await attempt(await engines.start(), sink)
    assert (text(outputs), code(outputs)) == ("so it", "upstream_failed")
    assert len(upstream.calls) == 1


async def test_a_line_without_end_fails(engines: "Engines", upstream: "Upstream", sink: "Sink") -> None:
    async def endless(call: "Call") -> web.StreamResponse:
        response = await call.stream()
        while True:
            await response.write(b"x" * 50_000)
            await asyncio.sleep(0)

    upstream.will(endless)
    outputs = await attempt(await engines.start(retries=0, bounds=Bounds(event_bytes=100_000)), sink)
    assert code(outputs) == "upstream_failed"
    await asyncio.wait_for(upstream.calls[0].left.wait(), 5)


async def test_an_answer_without_end_fails(
    engines: "Engines", upstream: "Upstream", sink: "Sink", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("internal.generator.openai.answer.MAX_ANSWER_CHARS", 10_000)

    async def endless(call: "Call") -> web.StreamResponse:
        response = await call.stream()
        while True:
            await response.write(upstream.chunk({"content": "la " * 100}))
            await asyncio.sleep(0)

    upstream.will(endless)
    outputs = await attempt(await engines.start(), sink)
    assert code(outputs) == "upstream_failed"
    assert 0 < len(text(outputs)) <= 10_000


@pytest.mark.parametrize("then", ["cut", "end"])
async def test_what_was_said_before_the_connection_broke_stays(
    engines: "Engines", upstream: "Upstream", sink: "Sink", then: Any
) -> None:
    upstream.will(upstream.write(*upstream.texts("so it"), then=then))
    outputs = await attempt(await engines.start(), sink)
    assert (text(outputs), code(outputs)) == ("so it", "upstream_failed")
    assert len(upstream.calls) == 1


@pytest.mark.parametrize(
    ("last", "then"), [(STOP, "end"), (STOP, "cut"), (DONE, "end"), (DONE, "cut"), (DONE, "hang")]
)
async def test_an_answer_is_whole_when_nothing_but_its_count_is_missing(
    engines: "Engines", upstream: "Upstream", sink: "Sink", last: bytes, then: Any
) -> None:
    upstream.will(upstream.write(*upstream.texts("so it is"), last, then=then))
    outputs = await attempt(await engines.start(), sink)
    assert (text(outputs), end(outputs).reason) == ("so it is", FinishReason.STOP)


async def test_comments_and_carriage_returns_are_no_matter(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    said = b"".join(upstream.texts("so ", "it ", "is ✓")).replace(b"\n", b"\r\n")
    upstream.will(upstream.write(b": hold on\r\n\r\nretry: 3\r\n", said, STOP, DONE))
    assert text(await attempt(await engines.start(), sink)) == "so it is ✓"


# ── tries ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
async def test_what_may_pass_is_tried_again(
    engines: "Engines", upstream: "Upstream", sink: "Sink", status: int
) -> None:
    upstream.will(upstream.refuse(status), upstream.refuse(status), upstream.say("so"))
    assert text(await attempt(await engines.start(), sink)) == "so"
    assert engines.retries == 2


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, "upstream_refused_request"),
        (404, "upstream_refused_request"),
        (422, "upstream_refused_request"),
        (401, "upstream_unauthorized"),
        (402, "upstream_unauthorized"),
        (403, "upstream_unauthorized"),
        (302, "upstream_failed"),
    ],
)
async def test_what_will_not_pass_is_asked_once(
    engines: "Engines", upstream: "Upstream", sink: "Sink", status: int, expected: str
) -> None:
    upstream.will(upstream.refuse(status, headers={"Location": "http://127.0.0.1:9/"}))
    assert code(await attempt(await engines.start(), sink)) == expected
    assert len(upstream.calls) == 1


async def test_who_asked_is_told_what_the_upstream_says_but_never_a_key(
    engines: "Engines", upstream: "Upstream", sink: "Sink", caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    engine = await engines.start(headers={"X-Team": "team-secret"}, retries=0)
    upstream.will(
        upstream.refuse(400, f"{KEY}, team-secret: 'temperature' is\ntoo high " + "la" * 9999),
        upstream.refuse(401, f"Incorrect API key provided: {KEY}"),
        upstream.write(upstream.event({"error": {"message": f"key {KEY} is spent"}})),
        upstream.write(upstream.event({"error": {"message": f"no {KEY}", "code": 401}})),
        upstream.refuse(500, KEY),
    )
    said = [message(await attempt(engine, sink)) for _ in range(5)]
    assert "***, ***: 'temperature' is too high" in said[0]
    assert len(said[0]) < 500
    assert "key *** is spent" in said[2]
    logged = [str(vars(record)) for record in caplog.records]
    shown = [repr(engine), repr(vars(engine)), repr(vars(engine)["_options"])]
    everything = " ".join((*said, *logged, *shown))
    assert KEY not in everything
    assert "team-secret" not in everything


async def test_a_retry_comes_when_the_upstream_wants_it(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    upstream.will(upstream.refuse(429, headers={"Retry-After": "0.2"}), upstream.say("so"))
    begun_s = asyncio.get_running_loop().time()
    assert text(await attempt(await engines.start(), sink)) == "so"
    assert asyncio.get_running_loop().time() - begun_s >= 0.2


async def test_a_retry_that_would_come_too_late_is_none(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    upstream.will(upstream.refuse(429, headers={"Retry-After": "3600"}))
    assert code(await attempt(await engines.start(), sink)) == "upstream_rate_limited"
    assert len(upstream.calls) == 1


async def test_a_connection_that_was_closed_while_idle_is_nobody_s_fault(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    seen = set()

    async def once(call: "Call") -> web.StreamResponse:
        if call.request.transport in seen:
            call.cut()
        seen.add(call.request.transport)
        return await upstream.say("so")(call)

    upstream.will(once)
    engine = await engines.start(retries=0, breaker_failures=1)
    jobs = [ask() for _ in range(3)]
    for _ in range(3):  # at first each on a connection of its own
        for job in jobs:
            engine.submit(job)
        steps = await sink.until_ended(*jobs)
        assert sum(output == "so" for step in steps for _, output in step) == 3
    assert len(seen) > 3
    assert engines.retries == 0


async def test_an_upstream_that_is_away_is_waited_for_but_not_for_long(
    engines: "Engines", upstream: "Upstream", sink: "Sink", caplog: pytest.LogCaptureFixture
) -> None:
    await upstream.stop()
    engine = await engines.start(check_interval_s=5.0)
    assert code(await attempt(engine, sink)) == "upstream_unavailable"
    assert "does not answer" in caplog.text
    reasons = [getattr(record, "reason", "") for record in caplog.records]
    assert any("Connect call failed" in reason for reason in reasons)
    assert engines.up == {upstream.url: False}
    upstream.will(upstream.say("so"))
    await upstream.start()
    assert text(await attempt(engine, sink)) == "so"
    assert engines.up == {upstream.url: True}


# ── too long ─────────────────────────────────────────────────────────────────────────────────────


def dialogue(turns: int) -> list[Message]:
    said = [Message(Role.SYSTEM, "Be brief.")]
    for turn in range(turns):
        said += [Message(Role.USER, f"question {turn}"), Message(Role.ASSISTANT, f"answer {turn}")]
    return [*said, Message(Role.USER, "last")]


async def test_a_prompt_that_is_too_long_is_an_error(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    upstream.will(upstream.refuse(400, "too long", code="context_length_exceeded"))
    outputs = await attempt(await engines.start(), sink, ask(*dialogue(3)))
    assert isinstance(end(outputs).error, ContextLengthExceeded)
    assert len(upstream.calls) == 1


async def test_the_oldest_turns_are_left_out_where_the_client_wants_it(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    too_long = upstream.refuse(400, "too long", type="exceed_context_size_error", code=400)
    upstream.will(too_long, too_long, too_long, upstream.say("so"))
    job = ask(*dialogue(9), truncation=Truncation.AUTO)
    assert text(await attempt(await engines.start(retries=0), sink, job)) == "so"
    first = [body["messages"][1]["content"] for body in upstream.bodies]
    assert first == ["question 0", "question 1", "question 2", "question 4"]
    assert {body["messages"][0]["content"] for body in upstream.bodies} == {"Be brief."}


async def test_the_last_turn_is_never_left_out(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    upstream.will(upstream.refuse(400, "too long", code="context_length_exceeded"))
    job = ask(*dialogue(2), truncation=Truncation.AUTO)
    assert isinstance(end(await attempt(await engines.start(), sink, job)).error, ContextLengthExceeded)
    assert upstream.bodies[-1]["messages"][1:] == [{"role": "user", "content": "last"}]


async def test_a_dialogue_that_is_too_long_stays_on_its_node(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    other = await engines.upstream()
    too_long = upstream.refuse(400, "too long", code="context_length_exceeded")
    upstream.will(too_long, upstream.say("so"))
    job = ask(*dialogue(3), truncation=Truncation.AUTO)
    assert text(await attempt(await engines.start(), sink, job)) == "so"
    assert (len(upstream.calls), len(other.calls)) == (2, 0)


# ── time ─────────────────────────────────────────────────────────────────────────────────────────


async def test_who_does_not_begin_in_time_has_failed(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    async def comments(call: "Call") -> web.StreamResponse:
        response = await call.stream()
        while True:
            await response.write(b": still thinking\n\n")
            await asyncio.sleep(0.01)

    engine = await engines.start(first_token_timeout_s=0.1)
    for script in (upstream.hang, upstream.write(then="hang"), comments):
        upstream.will(script)
        outputs = await attempt(engine, sink)
        assert code(outputs) == "upstream_timeout"
        assert "0.1 s" in message(outputs)
        await asyncio.wait_for(upstream.calls[-1].left.wait(), 5)
    assert len(upstream.calls) == 3


async def test_who_does_not_let_anybody_in_has_failed(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        for _ in range(4):  # from then on the kernel drops who knocks
            knocking = sockets.enter_context(socket.socket())
            knocking.setblocking(False)
            knocking.connect_ex(listener.getsockname())
        await upstream.stop()
        upstream.move(listener.getsockname()[1])
        outputs = await attempt(await engines.start(retries=0, connect_timeout_s=0.1), sink)
    assert code(outputs) == "upstream_timeout"
    assert "cannot be reached" in message(outputs)


async def test_who_falls_silent_has_failed(engines: "Engines", upstream: "Upstream", sink: "Sink") -> None:
    upstream.will(upstream.write(*upstream.texts("so it"), then="hang"))
    outputs = await attempt(await engines.start(token_timeout_s=0.05), sink)
    assert (text(outputs), code(outputs)) == ("so it", "upstream_timeout")
    assert "silent" in message(outputs)


async def test_who_never_ends_has_failed(engines: "Engines", upstream: "Upstream", sink: "Sink") -> None:
    async def chatter(call: "Call") -> web.StreamResponse:
        response = await call.stream()
        while True:
            await response.write(upstream.chunk({"content": "la "}))
            await asyncio.sleep(0.01)

    upstream.will(chatter)
    outputs = await attempt(await engines.start(timeout_s=0.1), sink)
    assert code(outputs) == "upstream_timeout"
    assert text(outputs).startswith("la la ")


async def test_who_does_not_hang_up_after_the_end_is_not_waited_for(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    upstream.will(upstream.write(*upstream.texts("so"), STOP, DONE, then="hang"))
    assert end(await attempt(await engines.start(), sink)).reason is FinishReason.STOP


async def test_who_refuses_slowly_is_not_waited_for(
    engines: "Engines", upstream: "Upstream", sink: "Sink", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("internal.generator.openai.exchange.REFUSAL_WAIT_S", 0.05)

    async def slowly(call: "Call") -> web.StreamResponse:
        response = web.StreamResponse(status=400)
        await response.prepare(call.request)
        await asyncio.Event().wait()
        return response

    upstream.will(slowly)
    assert code(await attempt(await engines.start(), sink)) == "upstream_refused_request"


# ── the end of a job ─────────────────────────────────────────────────────────────────────────────


async def test_a_cancel_stops_the_upstream(engines: "Engines", upstream: "Upstream", sink: "Sink") -> None:
    upstream.will(upstream.write(*upstream.texts("so it"), then="hang"))
    engine, job = await engines.start(), ask()
    engine.submit(job)
    assert await sink.step() == [(job, "so it")]
    engine.cancel(job)
    ((told, last),) = await sink.step()
    assert told is job
    assert isinstance(last, Finished)
    assert (last.reason, last.usage.output_tokens) == (FinishReason.CANCELLED, 1)
    await asyncio.wait_for(upstream.calls[0].left.wait(), 5)
    engine.cancel(job)  # nobody knows it any more


async def test_a_job_that_is_cancelled_before_it_begins_is_told_about(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    engine, job = await engines.start(), ask()
    engine.submit(job)
    engine.cancel(job)
    assert end(await sink.outputs(job)).reason is FinishReason.CANCELLED
    assert upstream.calls == []


async def test_a_stop_ends_the_requests_without_a_word(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    upstream.will(upstream.hang)
    engine, job = await engines.start(), ask()
    engine.submit(job)
    call = await upstream.called()
    await engine.stop()
    await asyncio.wait_for(call.left.wait(), 5)
    upstream.will(upstream.say("so"))
    other, next_job = await engines.start(), ask()
    other.submit(next_job)
    steps = await sink.until_ended(next_job)
    assert {told for step in steps for told, _ in step} == {next_job}


async def test_an_engine_may_be_started_again(engines: "Engines", upstream: "Upstream", sink: "Sink") -> None:
    engine = await engines.start(slots=1)
    for word in ("so", "it is"):
        upstream.will(upstream.hang)
        engine.submit(ask())
        call = await upstream.called()
        await engine.stop()
        await engine.stop()  # which is harmless
        await asyncio.wait_for(call.left.wait(), 5)
        await engine.start(sink, lambda _: None)
        upstream.will(upstream.say(word))
        outputs = await attempt(engine, sink)
        assert text(outputs) == word


async def test_a_worker_that_lags_stops_the_reading_and_nothing_else(
    engines: "Engines", upstream: "Upstream"
) -> None:
    inbox = StepInbox(asyncio.get_running_loop(), max_chunks=1)

    async def chatter(call: "Call") -> web.StreamResponse:
        response = await call.stream()
        for _ in range(2000):
            await response.write(upstream.chunk({"content": "la " * 1000}))
        await response.write(STOP)
        return response

    upstream.will(chatter)
    engine, job = await engines.start(sink=inbox, token_timeout_s=0.05), ask()
    engine.submit(job)
    await upstream.called()
    await asyncio.sleep(0.1)  # for longer than the upstream may be silent
    chunks: list[Chunk] = []
    held = 0
    while not any(isinstance(output, Finished) for _, output in chunks):
        taken = await inbox.take()
        held = max(held, sum(len(output) for _, output in taken if isinstance(output, str)))
        chunks += taken
    outputs = [output for _, output in chunks]
    assert end(outputs).reason is FinishReason.STOP
    assert len(text(outputs)) == 2000 * 3000
    assert held < 1 << 20


# ── a job that another attempt began ─────────────────────────────────────────────────────────────


async def test_a_begun_answer_is_not_begun_anew(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    engine = await engines.start()
    for job in (
        Job("r", ask().messages, Settings(), "so i"),
        Job("r", ask().messages, Settings(), "", "a < b"),
        Job("r", ask().messages, Settings(), "so i", "a < b"),
    ):
        (last,) = await attempt(engine, sink, job)
        assert code([last]) == "upstream_interrupted"
    assert upstream.calls == []


@pytest.mark.parametrize(
    ("continuation", "marks", "fields"),
    [
        ("message", {}, {}),
        ("prefix", {"prefix": True}, {}),
        ("vllm", {}, {"continue_final_message": True, "add_generation_prompt": False}),
    ],
)
async def test_a_begun_answer_goes_on_where_the_upstream_can(
    engines: "Engines",
    upstream: "Upstream",
    sink: "Sink",
    continuation: str,
    marks: dict[str, Any],
    fields: dict[str, Any],
) -> None:
    upstream.will(upstream.say("t is"))
    job = Job("r", ask().messages, Settings(max_output_tokens=9), "so i", "a < b")
    outputs = await attempt(await engines.start(continuation=continuation), sink, job)
    assert text(outputs) == "t is"
    (body,) = upstream.bodies
    assert body["messages"][-1] == {"role": "assistant", "content": "so i", **marks}
    assert fields.items() <= body.items()
    assert body["max_tokens"] == 8


async def test_a_call_that_was_told_was_all(engines: "Engines", upstream: "Upstream", sink: "Sink") -> None:
    job = Job("r", ask().messages, Settings(), called=(ToolCall("c", "now", "{}"),))
    (last,) = await attempt(await engines.start(), sink, job)
    assert isinstance(last, Finished)
    assert last.reason is FinishReason.STOP
    assert upstream.calls == []
