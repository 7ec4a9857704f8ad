"""The engine that asks the upstreams of those who ask, on upstreams that behave as the test wants."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from internal.biz.errors import InvalidRequest, SluiceError, Unavailable
from internal.biz.events import TextDelta
from internal.biz.generation import Finished, FinishReason, Job, Output
from internal.biz.models import Message, Role, Settings
from internal.biz.own_upstreams import OwnUpstream
from internal.generator.openai.options import Bounds, OpenAIOptions
from internal.generator.own.engine import OwnGenerator

if TYPE_CHECKING:
    from test.conftest import Eventually, Sink
    from test.generator.openai.conftest import Call, Upstream

KEY = "sk-do-not-tell-4711"


class Site:
    """What users have set, and the engine that asks it. Counts retries."""

    def __init__(self, sink: "Sink") -> None:
        self.sink = sink
        self.upstreams: dict[str, OwnUpstream | Exception] = {}
        self.failures: list[SluiceError] = []
        """What looking up says first."""
        self.now_s = 1000.0
        self.retries = 0
        self._engines: list[OwnGenerator] = []

    def upstream_retried(self, model: str) -> None:
        assert model == "own"
        self.retries += 1

    async def of(self, user_id: str) -> OwnUpstream:
        if self.failures:
            raise self.failures.pop(0)
        found = self.upstreams.get(user_id)
        if isinstance(found, Exception):
            raise found
        if found is None:
            raise InvalidRequest("you have set none", code="no_upstream")
        return found

    async def start(
        self, *, slots: int = 8, user_slots: int = 4, only_public: bool = False, **options: Any
    ) -> OwnGenerator:
        given = OpenAIOptions("", (), **{"retries": 0, **options})
        engine = OwnGenerator(
            "own",
            given,
            self,
            self,
            slots=slots,
            user_slots=user_slots,
            only_public=only_public,
            clock=lambda: self.now_s,
            chance=lambda: 0.0,
        )
        self._engines.append(engine)
        await engine.start(self.sink, lambda _: None)
        return engine

    async def ask(self, engine: OwnGenerator, user: str = "ada", **more: Any) -> list[Output]:
        job = ask(user, **more)
        engine.submit(job)
        return await self.sink.outputs(job)

    async def stop(self) -> None:
        for engine in self._engines:
            await engine.stop()


@pytest.fixture
async def site(watched_loop: None, sink: "Sink") -> AsyncIterator[Site]:
    site = Site(sink)
    yield site
    await site.stop()


@pytest.fixture
async def others(watched_loop: None, upstream: "Upstream") -> AsyncIterator["Upstream"]:
    """Somebody else's upstream."""
    another = type(upstream)()
    await another.start()
    yield another
    await another.stop()


def ask(user: str, said: str = "hello", emitted: str = "", **settings: Any) -> Job:
    messages = (Message(Role.USER, said),)
    return Job("resp_1", messages, Settings(**settings), emitted, user=user)


def text(outputs: Sequence[Output]) -> str:
    return "".join(output for output in outputs if isinstance(output, TextDelta))


def failure(outputs: Sequence[Output]) -> SluiceError:
    end = outputs[-1]
    assert isinstance(end, Finished)
    assert end.reason is FinishReason.ERROR
    assert end.error is not None
    return end.error


# ── whom it asks ─────────────────────────────────────────────────────────────────────────────────


async def test_it_asks_what_the_user_has_set(site: Site, upstream: "Upstream") -> None:
    site.upstreams["ada"] = OwnUpstream(f"{upstream.url}/", KEY, "theirs")
    upstream.will(upstream.say("so ", "it is"))
    outputs = await site.ask(await site.start(), max_output_tokens=9, stop=("END",))
    assert text(outputs) == "so it is"
    (call,) = upstream.calls
    assert call.request.headers["Authorization"] == f"Bearer {KEY}"
    assert (call.body["model"], call.body["max_tokens"], call.body["stop"]) == ("theirs", 9, ["END"])


async def test_two_users_with_two_upstreams_at_the_same_time(
    site: Site, upstream: "Upstream", others: "Upstream"
) -> None:
    site.upstreams = {
        "ada": OwnUpstream(upstream.url, "key-of-ada", "a"),
        "eve": OwnUpstream(others.url, "", "b"),
    }
    upstream.will(upstream.say("for ada"))
    others.will(others.say("for eve"))
    engine, ada, eve = await site.start(), ask("ada"), ask("eve")
    engine.submit(ada)
    engine.submit(eve)
    chunks = [chunk for step in await site.sink.until_ended(ada, eve) for chunk in step]
    assert text([output for job, output in chunks if job is ada]) == "for ada"
    assert text([output for job, output in chunks if job is eve]) == "for eve"
    (of_ada,), (of_eve,) = upstream.calls, others.calls
    assert (of_ada.body["model"], of_eve.body["model"]) == ("a", "b")
    assert of_ada.request.headers["Authorization"] == "Bearer key-of-ada"
    assert "Authorization" not in of_eve.request.headers


async def test_what_a_user_changes_counts_from_then_on(
    site: Site, upstream: "Upstream", others: "Upstream"
) -> None:
    upstream.will(upstream.say("one"))
    others.will(others.say("two"))
    engine = await site.start()
    site.upstreams["ada"] = OwnUpstream(upstream.url, KEY, "m")
    assert text(await site.ask(engine)) == "one"
    site.upstreams["ada"] = OwnUpstream(others.url, "another", "m")
    assert text(await site.ask(engine)) == "two"
    assert KEY not in str(others.calls[0].request.headers)


async def test_who_has_set_none_is_told(site: Site) -> None:
    error = failure(await site.ask(await site.start()))
    assert (error.code, error.retryable) == ("no_upstream", False)


async def test_a_storage_that_is_away_is_waited_for(
    site: Site, upstream: "Upstream", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("internal.generator.own.run.FIRST_PAUSE_S", 0.01)
    site.upstreams["ada"] = OwnUpstream(upstream.url, KEY, "m")
    site.failures = [Unavailable("away"), Unavailable("away")]
    upstream.will(upstream.say("so"))
    assert text(await site.ask(await site.start())) == "so"


async def test_a_storage_that_stays_away_has_the_request_tried_again_later(site: Site) -> None:
    site.failures = [Unavailable("away")] * 100
    error = failure(await site.ask(await site.start(first_token_timeout_s=0.05)))
    assert error.retryable


async def test_an_answer_that_another_worker_has_begun_fails(site: Site, upstream: "Upstream") -> None:
    site.upstreams["ada"] = OwnUpstream(upstream.url, KEY, "m")
    upstream.will(upstream.say("so"))
    error = failure(await site.ask(await site.start(), emitted="so it"))
    assert (error.code, upstream.calls) == ("upstream_interrupted", [])


async def test_it_can_be_started_again(site: Site, upstream: "Upstream") -> None:
    site.upstreams["ada"] = OwnUpstream(upstream.url, KEY, "m")
    upstream.will(upstream.say("so"))
    engine = await site.start()
    assert text(await site.ask(engine)) == "so"
    await engine.stop()
    await engine.start(site.sink, lambda _: None)
    assert text(await site.ask(engine)) == "so"


async def test_a_cancel_ends_the_request(site: Site, upstream: "Upstream") -> None:
    site.upstreams["ada"] = OwnUpstream(upstream.url, KEY, "m")
    upstream.will(upstream.hang)
    engine, job = await site.start(), ask("ada")
    engine.submit(job)
    call = await upstream.called()
    engine.cancel(job)
    outputs = await site.sink.outputs(job)
    assert outputs == [Finished(FinishReason.CANCELLED)]
    await asyncio.wait_for(call.left.wait(), 5)


# ── what it does not tell ────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0x7f000001", "[::ffff:127.0.0.1]"])
async def test_only_public_addresses_are_asked(site: Site, upstream: "Upstream", host: str) -> None:
    port = upstream.url.split(":")[2]
    site.upstreams["ada"] = OwnUpstream(f"http://{host}:{port}", KEY, "m")
    error = failure(await site.ask(await site.start(only_public=True, retries=2)))
    assert (error.code, upstream.calls, site.retries) == ("upstream_forbidden", [], 0)
    assert host not in error.message


async def test_a_number_is_no_address(site: Site, upstream: "Upstream") -> None:
    port = upstream.url.split(":")[2]
    site.upstreams["ada"] = OwnUpstream(f"http://2130706433:{port}", KEY, "m")
    error = failure(await site.ask(await site.start(only_public=True)))
    assert (error.code, upstream.calls) == ("upstream_unavailable", [])


async def test_why_an_upstream_cannot_be_reached_is_not_told(site: Site) -> None:
    with socket.socket() as silent, socket.socket() as closed:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # and nobody answers who wants TLS
        closed.bind(("127.0.0.1", 0))
        site.upstreams = {
            "silent": OwnUpstream(f"https://127.0.0.1:{silent.getsockname()[1]}", KEY, "m"),
            "closed": OwnUpstream(f"http://127.0.0.1:{closed.getsockname()[1]}", KEY, "m"),
            "unknown": OwnUpstream("http://nobody.invalid", KEY, "m"),
        }
        engine = await site.start(connect_timeout_s=0.1)
        errors = [failure(await site.ask(engine, user)) for user in site.upstreams]
    assert {error.code for error in errors} == {"upstream_unavailable"}
    assert len({error.message for error in errors}) == 1


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_redirect_is_not_followed(
    site: Site, upstream: "Upstream", others: "Upstream", status: int
) -> None:
    site.upstreams["ada"] = OwnUpstream(upstream.url, KEY, "m")
    upstream.will(upstream.refuse(status, headers={"Location": f"{others.url}/chat/completions"}))
    assert failure(await site.ask(await site.start())).code == "upstream_failed"
    assert not others.calls


async def test_a_proxy_of_the_environment_is_not_used(
    site: Site, upstream: "Upstream", others: "Upstream", monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, others.url)
    site.upstreams["ada"] = OwnUpstream(upstream.url, KEY, "m")
    upstream.will(upstream.say("so"))
    assert text(await site.ask(await site.start())) == "so"


async def test_a_key_that_is_not_accepted_is_the_user_s_to_mend(site: Site, upstream: "Upstream") -> None:
    site.upstreams["ada"] = OwnUpstream(upstream.url, KEY, "m")
    upstream.will(upstream.refuse(401, f"wrong key {KEY}"))
    error = failure(await site.ask(await site.start()))
    assert error.code == "upstream_unauthorized"
    assert "your key" in error.message
    assert "operator" not in error.message


async def test_neither_address_nor_key_is_told(
    site: Site, upstream: "Upstream", caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    site.upstreams["ada"] = OwnUpstream(upstream.url, KEY, "m")
    site.upstreams["eve"] = ValueError(f"nobody expected {upstream.url} and {KEY}")
    upstream.will(
        upstream.refuse(400, f"{KEY} at {upstream.url}"),
        upstream.refuse(500),
        upstream.write(upstream.event({"error": {"message": f"{KEY} at {upstream.url}"}})),
        upstream.write(b"<html>", content_type="text/html"),
    )
    engine = await site.start(breaker_failures=2)
    errors = [failure(await site.ask(engine)) for _ in range(4)]
    await upstream.stop()
    errors += [failure(await site.ask(engine)) for _ in range(2)]
    errors.append(failure(await site.ask(engine, "eve")))
    logged = [str(vars(record)) for record in caplog.records if record.name.startswith("internal.")]
    assert any("left alone" in one for one in logged)
    assert any("ValueError" in one for one in logged)
    port = upstream.url.removeprefix("http://127.0.0.1:").removesuffix("/v1")
    for told in [*logged, *(error.message for error in errors), repr(site.upstreams["ada"])]:
        assert KEY not in told
        assert f"127.0.0.1:{port}" not in told


# ── what nobody else suffers ─────────────────────────────────────────────────────────────────────


async def test_a_dead_upstream_is_left_alone_for_its_user_only(site: Site, upstream: "Upstream") -> None:
    """Though the other one asks the very same."""
    site.upstreams = {user: OwnUpstream(upstream.url, KEY, "m") for user in ("ada", "eve")}
    upstream.will(upstream.refuse(404), upstream.refuse(404), upstream.say("so"))
    engine = await site.start(breaker_failures=2)
    for _ in range(2):
        assert failure(await site.ask(engine)).code == "upstream_refused_request"
    assert "try again in" in failure(await site.ask(engine)).message
    assert text(await site.ask(engine, "eve")) == "so"
    site.now_s += 31
    assert text(await site.ask(engine)) == "so"


async def test_a_silent_upstream_takes_up_only_its_user_s_slots(
    site: Site, upstream: "Upstream", others: "Upstream"
) -> None:
    site.upstreams = {"ada": OwnUpstream(upstream.url, KEY, "m"), "eve": OwnUpstream(others.url, KEY, "m")}
    upstream.will(upstream.hang)
    others.will(others.say("so"))
    engine = await site.start(slots=4, user_slots=2)
    running = [ask("ada"), ask("ada")]
    for job in running:
        engine.submit(job)
    await upstream.called(2)
    error = failure(await site.ask(engine))
    assert (error.code, len(upstream.calls)) == ("upstream_busy", 2)
    assert text(await site.ask(engine, "eve")) == "so"
    engine.cancel(running[0])
    await site.sink.outputs(running[0])
    upstream.will(upstream.say("now"))
    assert text(await site.ask(engine)) == "now"


async def test_who_asked_longest_ago_is_forgotten(
    site: Site, upstream: "Upstream", monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("internal.generator.own.places.MAX_PLACES", 2)
    site.upstreams = {user: OwnUpstream(upstream.url, KEY, "m") for user in ("ada", "eve", "bob", "joe")}
    upstream.will(upstream.hang, upstream.say("so"))
    engine, job = await site.start(), ask("ada")
    engine.submit(job)
    await upstream.called()
    for user in ("eve", "bob", "joe"):
        assert text(await site.ask(engine, user)) == "so"
    places = vars(vars(engine)["_places"])["_places"]
    assert [user for user, _, _ in places] == ["ada", "joe"], "what runs stays"
    engine.cancel(job)
    await site.sink.outputs(job)


async def test_an_endless_flood_is_read_at_a_walk(
    site: Site, upstream: "Upstream", monkeypatch: pytest.MonkeyPatch
) -> None:
    rate = 50_000
    monkeypatch.setattr("internal.generator.own.engine.BOUNDS", Bounds(bytes_per_s=rate))
    site.upstreams["ada"] = OwnUpstream(upstream.url, KEY, "m")
    nothing = b"data: {}\n\n"
    upstream.will(upstream.write(nothing * (rate * 3 // 2 // len(nothing))))
    began_at_s = asyncio.get_running_loop().time()
    assert failure(await site.ask(await site.start())).code == "upstream_failed"
    assert asyncio.get_running_loop().time() - began_at_s >= 0.45


async def test_an_answer_without_end_fails(site: Site, upstream: "Upstream") -> None:
    site.upstreams["ada"] = OwnUpstream(upstream.url, KEY, "m")

    async def endless(call: "Call") -> web.StreamResponse:
        response = await call.stream("application/json")
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b"[" * 50_000)
                await asyncio.sleep(0)
        return response

    upstream.will(endless)
    assert failure(await site.ask(await site.start())).code == "upstream_failed"


async def test_a_name_that_nobody_answers_for_holds_up_its_user_only(
    site: Site, upstream: "Upstream", monkeypatch: pytest.MonkeyPatch, eventually: "Eventually"
) -> None:
    """And is looked up once, however often it is asked for."""
    looked_up: list[str] = []
    answered = asyncio.Event()
    loop = asyncio.get_running_loop()

    def never(host: str, *_: Any, **__: Any) -> Any:
        looked_up.append(host)
        asyncio.run_coroutine_threadsafe(answered.wait(), loop).result()
        raise socket.gaierror

    monkeypatch.setattr("internal.generator.openai.addresses.Lookups.__init__.__defaults__", (never,))
    site.upstreams["ada"] = OwnUpstream("http://slow.example", KEY, "m")
    site.upstreams["eve"] = OwnUpstream(upstream.url, KEY, "m")
    upstream.will(upstream.say("so"))
    engine = await site.start(connect_timeout_s=0.1, user_slots=8, slots=9)
    jobs = [ask("ada") for _ in range(8)]
    for job in jobs:
        engine.submit(job)
    assert text(await site.ask(engine, "eve")) == "so"
    steps = await site.sink.until_ended(*jobs)
    ends = [output for step in steps for _, output in step if isinstance(output, Finished)]
    assert {failure([end]).code for end in ends} == {"upstream_unavailable"}
    assert looked_up == ["slow.example"]
    answered.set()
