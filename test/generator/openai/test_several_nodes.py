"""Nodes that fail, come back and share the load, seen from the engine."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from internal.biz.events import TextDelta
from internal.biz.generation import Finished, FinishReason, Job, Output
from internal.biz.models import Message, Role, Settings

if TYPE_CHECKING:
    from internal.generator.openai.engine import OpenAIGenerator
    from test.conftest import Sink
    from test.generator.openai.conftest import Engines, Upstream

Settle = Callable[[], Awaitable[None]]


def ask(*said: str | Message, **settings: Any) -> Job:
    messages = [Message(Role.USER, one) if isinstance(one, str) else one for one in said or ("hello",)]
    return Job("resp_1", tuple(messages), Settings(**settings))


async def attempt(engine: "OpenAIGenerator", sink: "Sink", job: Job | None = None) -> list[Output]:
    job = job or ask()
    engine.submit(job)
    return await sink.outputs(job)


def text(outputs: Sequence[Output]) -> str:
    return "".join(output for output in outputs if isinstance(output, TextDelta))


def code(outputs: Sequence[Output]) -> str | None:
    """How a job failed; None: it did not."""
    last = outputs[-1]
    assert isinstance(last, Finished)
    return last.error.code if last.error is not None else None


def counts(*upstreams: "Upstream") -> list[int]:
    return [len(upstream.calls) for upstream in upstreams]


# ── the breaker ──────────────────────────────────────────────────────────────────────────────────


async def test_a_node_that_fails_is_left_alone_until_a_probe_succeeds(
    engines: "Engines", upstream: "Upstream", sink: "Sink", caplog: pytest.LogCaptureFixture
) -> None:
    engine = await engines.start(breaker_failures=2, breaker_reset_s=30.0, retries=0)
    upstream.will(upstream.refuse(500))
    assert [code(await attempt(engine, sink)) for _ in range(3)] == [
        "upstream_failed",
        "upstream_failed",
        "upstream_unavailable",
    ]
    assert len(upstream.calls) == 2
    assert "left alone" in caplog.text
    assert engines.up == {upstream.url: False}
    engines.now_s += 30
    assert code(await attempt(engine, sink)) == "upstream_failed"
    assert code(await attempt(engine, sink)) == "upstream_unavailable"
    engines.now_s += 30
    upstream.will(upstream.say("so"))
    assert [text(await attempt(engine, sink)) for _ in range(2)] == ["so", "so"]
    assert engines.up == {upstream.url: True}
    assert engines.retries == 0


async def test_only_one_probes_and_the_first_token_is_enough(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    engine = await engines.start(breaker_failures=1, retries=0)
    upstream.will(upstream.refuse(500))
    await attempt(engine, sink)
    engines.now_s += 30
    upstream.will(upstream.write(*upstream.texts("so"), then="hang"), upstream.say("it is"))
    probe = ask()
    engine.submit(probe)
    assert code(await attempt(engine, sink)) == "upstream_unavailable"
    assert await sink.step() == [(probe, "so")]
    assert text(await attempt(engine, sink)) == "it is"


async def test_a_probe_that_is_cancelled_leaves_its_place(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    engine = await engines.start(breaker_failures=1, retries=0)
    upstream.will(upstream.refuse(500), upstream.hang, upstream.say("so"))
    await attempt(engine, sink)
    engines.now_s += 30
    probe = ask()
    engine.submit(probe)
    await upstream.called(2)
    engine.cancel(probe)
    await sink.outputs(probe)
    assert text(await attempt(engine, sink)) == "so"


async def test_one_request_closes_a_node_to_nobody_however_often_it_is_tried(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    engine = await engines.start(breaker_failures=2, retries=4)
    upstream.will(upstream.refuse(500))
    assert code(await attempt(engine, sink)) == "upstream_failed"
    assert len(upstream.calls) == 5
    upstream.will(upstream.say("so"))
    assert text(await attempt(engine, sink)) == "so"


async def test_what_clients_do_wrong_is_not_the_node_s_fault(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    engine = await engines.start(breaker_failures=1, retries=0)
    upstream.will(*map(upstream.refuse, (400, 403, 413, 422, 429)), upstream.say("so"))
    for _ in range(5):
        assert code(await attempt(engine, sink)) != "upstream_unavailable"
    assert text(await attempt(engine, sink)) == "so"


# ── several nodes ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("trouble", ["away", 500, 429])
async def test_another_node_is_tried_at_once(
    engines: "Engines", upstream: "Upstream", sink: "Sink", trouble: str | int
) -> None:
    other = await engines.upstream()
    other.will(other.say("so"))
    engine = await engines.start()
    if isinstance(trouble, int):
        upstream.will(upstream.refuse(trouble, headers={"Retry-After": "200"}))
    else:
        await upstream.stop()
    assert text(await attempt(engine, sink)) == "so"


async def test_a_node_that_wants_rest_is_not_asked_meanwhile(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    other = await engines.upstream()
    other.will(other.say("so"))
    upstream.will(upstream.refuse(429, headers={"Retry-After": "20"}))
    engine = await engines.start()
    for _ in range(4):
        assert text(await attempt(engine, sink)) == "so"
    assert counts(upstream, other) == [1, 4]
    engines.now_s += 20
    for _ in range(2):
        await attempt(engine, sink)
    assert counts(upstream, other)[0] == 2


async def test_a_wrong_key_makes_no_node_the_most_attractive_one(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    other = await engines.upstream()
    other.will(other.say("so"))
    upstream.will(upstream.refuse(401))
    engine = await engines.start(breaker_failures=1)
    codes = [code(await attempt(engine, sink)) for _ in range(6)]
    assert codes.count("upstream_unauthorized") == 1
    assert counts(upstream, other) == [1, 5]


async def test_a_conversation_stays_on_its_node_and_moves_with_its_history(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    other = await engines.upstream()
    for one in (upstream, other):
        one.will(one.say("hi"))
    engine = await engines.start()
    said = [Message(Role.USER, "hello")]
    for turn in range(4):
        job = ask(*said, conversation_id="conv_1")
        assert text(await attempt(engine, sink, job)) == "hi"
        await attempt(engine, sink, ask("somebody else"))
        said += [Message(Role.ASSISTANT, "hi"), Message(Role.USER, f"and {turn}?")]
    ours = [body["messages"] for body in upstream.bodies if body["messages"][0]["content"] == "hello"]
    assert [len(messages) for messages in ours] == [1, 3, 5, 7]
    await upstream.stop()
    assert text(await attempt(engine, sink, ask(*said, conversation_id="conv_1"))) == "hi"
    assert [message["content"] for message in other.bodies[-1]["messages"]] == [m.content for m in said]


async def test_no_node_gets_more_than_it_takes(
    engines: "Engines", upstream: "Upstream", sink: "Sink", settle: Settle
) -> None:
    other = await engines.upstream()
    for one in (upstream, other):
        one.will(one.hang)
    engine = await engines.start(slots=2)
    assert engine.capabilities.slots == 4
    jobs = [ask() for _ in range(5)]
    for job in jobs:
        engine.submit(job)
    for one in (upstream, other):
        await one.called(2)
    await settle()
    assert counts(upstream, other) == [2, 2]
    upstream.will(upstream.say("so"))
    engine.cancel(jobs[0])
    outputs = await sink.until_ended(jobs[0], jobs[4])
    assert (jobs[4], "so") in [chunk for step in outputs for chunk in step]


async def test_a_job_does_not_wait_for_a_place_for_ever(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    upstream.will(upstream.write(*upstream.texts("so"), then="hang"))
    engine = await engines.start(slots=1, first_token_timeout_s=0.1)
    running, waiting = ask(), ask()
    engine.submit(running)
    assert await sink.step() == [(running, "so")]
    assert code(await attempt(engine, sink, waiting)) == "upstream_timeout"


# ── health ───────────────────────────────────────────────────────────────────────────────────────


async def test_a_node_that_is_ill_is_not_asked_until_it_is_well(
    engines: "Engines", upstream: "Upstream", sink: "Sink", caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    other = await engines.upstream()
    for one in (upstream, other):
        one.will(one.say("so"))
    upstream.is_well = False
    engine = await engines.start(check_interval_s=0.01)
    await upstream.checked(2)
    for _ in range(4):
        assert text(await attempt(engine, sink)) == "so"
    assert counts(upstream, other) == [0, 4]
    assert engines.up == {upstream.url: False, other.url: True}
    assert caplog.text.count("does not answer") == 1
    upstream.is_well = True
    await upstream.checked(2)
    for _ in range(2):
        await attempt(engine, sink)
    assert counts(upstream, other) == [1, 5]
    assert "answers again" in caplog.text


async def test_a_check_may_be_refused_and_shows_the_key_to_the_node_only(
    engines: "Engines", upstream: "Upstream", sink: "Sink", caplog: pytest.LogCaptureFixture
) -> None:
    other = await engines.upstream()
    for one in (upstream, other):
        one.will(one.say("so"))
    engine = await engines.start(check_interval_s=0.01, check_path="/nowhere")
    for _ in range(2):
        assert text(await attempt(engine, sink)) == "so"
    assert counts(upstream, other) == [1, 1]
    assert caplog.text == ""


async def test_all_nodes_are_away_and_come_back(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    other = await engines.upstream()
    for one in (upstream, other):
        one.will(one.say("so"))
        await one.stop()
    engine = await engines.start(breaker_failures=1, check_interval_s=0.01)
    assert code(await attempt(engine, sink)) == "upstream_unavailable"
    assert code(await attempt(engine, sink)) == "upstream_unavailable"
    for one in (upstream, other):
        await one.start()
    engines.now_s += 30
    jobs = [ask() for _ in range(2)]
    for job in jobs:
        engine.submit(job)
    steps = await sink.until_ended(*jobs)
    ends = [output.reason for step in steps for _, output in step if isinstance(output, Finished)]
    assert ends == [FinishReason.STOP] * 2


async def test_many_answers_at_once_do_not_mix(
    engines: "Engines", upstream: "Upstream", sink: "Sink"
) -> None:
    upstream.will(upstream.say(*(f"{number} " for number in range(50))))
    engine = await engines.start(slots=20)
    jobs = [ask() for _ in range(20)]
    for job in jobs:
        engine.submit(job)
    chunks = [chunk for step in await sink.until_ended(*jobs) for chunk in step]
    for job in jobs:
        assert text([output for one, output in chunks if one is job]) == " ".join(map(str, range(50))) + " "
