"""The operator's command, on a real Redis: its parts in this process, and the program as it is called."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio
import yaml

from cmd import queue as command
from cmd.terminal import moment, pretty, span
from cmd.wire.queue_desk import build_desk
from internal.biz.chat import Ask
from internal.biz.errors import InvalidRequest, NotFound
from internal.biz.events import Event, ResponseFailed, TextDelta
from internal.biz.generation import Delivery, Finished, FinishReason, Transcript
from internal.biz.ids import new_id
from internal.biz.log import Cursor
from internal.biz.models import (
    Caller,
    Condition,
    Message,
    ModelState,
    Order,
    Request,
    Response,
    Role,
    Sampling,
)
from internal.biz.models import Settings as Asked
from internal.conf.settings import Settings
from internal.data.redis.keys import Keys
from internal.data.redis.link import RedisLink
from internal.data.redis.queue import RedisQueue, RedisQueueOptions
from internal.data.redis.work_queue import RedisWorkQueue
from internal.metrics.instruments import Instruments

if TYPE_CHECKING:
    from test.conftest import Ended, OwnRedis, Reader, RunProgram

ROOT = Path(__file__).parents[2]
PATIENCE_S = 20.0
HELLO = (Message(Role.USER, "hello"),)
MODELS = ("m", "other")


def settings_for(url: str, prefix: str, folder: Path) -> Settings:
    return Settings.model_validate(
        {
            "storage": {"url": f"sqlite:///{folder}/sluice.db"},
            "queue": {"driver": "redis", "url": url, "prefix": prefix},
            "models": [{"name": name, "generator": "echo"} for name in MODELS],
        }
    )


class Site:
    """A server and a worker on one Redis, beside the operator's desk."""

    slots = room = 10

    def __init__(self, url: str, prefix: str, folder: Path) -> None:
        self.settings = settings_for(url, prefix, folder)
        self.desk = build_desk(self.settings)
        self.chat = self.desk.chat
        self.keys, self._meter = Keys(prefix), Instruments()
        self.link = RedisLink(url, self.keys.tick("test"), self._meter)
        args = (self.link, self.keys, RedisQueueOptions(max_attempts=1))
        # A model that was taken out of the configuration may still have something in the queue.
        models = (*MODELS, "former")
        self.queue = RedisQueue("server", models, *args, self._settle, self._meter)
        self.work = RedisWorkQueue("worker", models, *args, self._settle, self._meter)

    async def _settle(self, responses: object) -> None:
        return None

    def revoke(self, delivery: Delivery) -> None:
        raise AssertionError("nobody cancels")

    lose = revoke

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Site"]:
        await self.desk.storage.connect()
        async with self.desk.connected():
            tasks = [asyncio.create_task(part.run()) for part in (self.link, self.queue, self.work)]
            await self.link.wait_heard()
            yield self
            for task in reversed(tasks):
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def claim(self, model: str = "m") -> Delivery:
        async with asyncio.timeout(PATIENCE_S):
            delivery, *others = await self.work.claim(model, self)
        assert not others
        return delivery

    async def bury(self, request: Request) -> None:
        """Let a request fail as often as it may."""
        await self.queue.publish(request)
        await self.work.retry(await self.claim(request.model), "the engine died")

    async def poison(self, request: Request, payload: bytes) -> None:
        """Bury something that is no request."""
        await self.queue.publish(request)
        meta = f"{self.keys.base(request.model)}:meta:{request.response_id}"
        await self.link.command("HSET", meta, "request", payload)
        claiming = asyncio.create_task(self.work.claim(request.model, self))
        async with asyncio.timeout(PATIENCE_S):
            while not (await self.desk.operator.backlog(request.model)).dead:  # noqa: ASYNC110
                await asyncio.sleep(0.002)
        claiming.cancel()
        await asyncio.gather(claiming, return_exceptions=True)

    async def answer(self, delivery: Delivery, text: str) -> Response:
        run = Transcript(delivery)
        run.start()
        run.add(TextDelta(text))
        response = run.finish(Finished(FinishReason.STOP))
        assert not await self.work.append([run])
        return response


@pytest.fixture
async def site(redis_url: str, redis_prefix: str, tmp_path: Path) -> AsyncIterator[Site]:
    async with Site(redis_url, redis_prefix, tmp_path).running() as site:
        yield site


MakeRequest = Callable[..., Request]
MakeReader = Callable[[], "Reader"]


async def said(follower: "Reader", cursor: Cursor) -> list[Event]:
    async with asyncio.timeout(PATIENCE_S):
        return await follower.read(cursor)


# ── status ───────────────────────────────────────────────────────────────────────────────────────


async def test_status_tells_what_waits_and_runs_and_who_works(
    site: Site, make_request: MakeRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    await site.queue.publish(make_request())
    await site.claim()
    for age_s in (7200, 0):
        await site.queue.publish(make_request(created_at=time.time() - age_s))
    async with asyncio.timeout(PATIENCE_S):
        while not await site.desk.operator.workers("m"):  # noqa: ASYNC110  # its first heartbeat
            await asyncio.sleep(0.002)
    assert await command.status_text(site.desk) == 0
    printed = capsys.readouterr().out.splitlines()
    lines = [line.split() for line in printed]
    assert lines[0] == ["model", "waiting", "running", "oldest", "dead", "workers"]
    assert lines[1] == ["m", "2", "1", "2", "h", "0", "1"]
    assert lines[2][:6] == ["other", "0", "0", "-", "0", "0"]
    assert printed[2].endswith("no worker: requests wait until one starts")
    assert lines[4] == ["worker", "host", "model", "state", "slots", "busy", "heartbeat", "version"]
    name, _, model, state, slots, busy, *_ = lines[5]
    assert (name, model, state, slots, busy) == ("worker", "m", "loaded", "10", "0")

    assert await command.status_json(site.desk) == 0
    told = json.loads(capsys.readouterr().out)
    first, second = told["models"]
    assert first.pop("oldest_s") == pytest.approx(7200, abs=PATIENCE_S)
    counts = {"waiting": 2, "running": 1, "dead": 0, "workers": 1}
    assert first == {"model": "m", "configured": True, **counts}
    assert (second["model"], second["workers"], second["oldest_s"]) == ("other", 0, None)
    (worker,) = told["workers"]
    assert 0 <= worker["heartbeat_s"] < PATIENCE_S
    assert worker.keys() >= {"name", "host", "model", "slots", "busy", "version"}


class Failed:
    """Implements Resident: its model could not be loaded."""

    condition = Condition(ModelState.UNLOADED, 0.0, failure="there is no model file /srv/m.gguf")

    def order(self, order_id: str, order: Order) -> None:
        raise AssertionError


async def test_status_tells_why_a_model_is_not_loaded(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.work.attend("m", Failed())
    async with asyncio.timeout(PATIENCE_S):
        while not await site.desk.operator.workers("m"):  # noqa: ASYNC110  # its first heartbeat
            await asyncio.sleep(0.002)
    await command.status_text(site.desk)
    assert capsys.readouterr().out.splitlines()[-1].endswith(Failed.condition.failure)


async def test_status_finds_models_that_are_not_configured_any_more(
    site: Site, make_request: MakeRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    await site.queue.publish(make_request(model="former"))
    await command.status_text(site.desk)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("former")]
    assert line.endswith("not in the configuration")


async def test_an_answer_that_is_kept_for_a_while_is_no_reason_to_show_its_model(
    site: Site, make_request: MakeRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    await site.queue.publish(make_request(model="former"))
    await site.desk.operator.purge("former")
    await command.status_json(site.desk)
    assert [one["model"] for one in json.loads(capsys.readouterr().out)["models"]] == list(MODELS)


async def test_another_sluice_on_the_same_redis_is_not_seen(
    site: Site, make_request: MakeRequest, redis_url: str, redis_prefix: str, tmp_path: Path
) -> None:
    # Its prefix begins as ours does.
    async with Site(redis_url, f"{redis_prefix}-b", tmp_path / "b").running() as neighbour:
        await neighbour.queue.publish(make_request(model="former"))
        assert await site.desk.models() == list(MODELS)
        assert await neighbour.desk.models() == [*MODELS, "former"]
        await command.purge_waiting(site.desk)
        assert (await neighbour.desk.operator.backlog("former")).waiting == 1


# ── dead letters ─────────────────────────────────────────────────────────────────────────────────


async def test_dead_letters_are_listed_the_oldest_first(
    site: Site, make_request: MakeRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    await command.list_dead(site.desk)
    assert capsys.readouterr().out == "there are no dead letters\n"
    requests = [make_request(model=model) for model in ("other", "m", "former")]
    for request in requests:
        await site.bury(request)
    assert await command.list_dead(site.desk) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["id", *(request.response_id for request in requests)]
    _, _, _, model, code, tries, consumer, *reason = lines[1].split()
    assert (model, code, tries, consumer) == ("other", "max_attempts_exceeded", "1", "worker")
    assert " ".join(reason) == "the engine died"


async def test_more_letters_than_one_call_brings_are_all_listed(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("internal.data.redis.dead_letters.AT_ONCE", 3)
    for number in range(7):
        await site.link.command("XADD", f"{site.keys.base('m')}:dead", "*", "id", f"resp_{number}")
    letters = await site.desk.dead_letters.of(["m"])
    assert [letter.response_id for letter in letters] == [f"resp_{number}" for number in range(7)]
    assert letters[0].tries == 0  # what a letter does not say is left open


async def test_a_letter_is_shown_with_its_request(
    site: Site, make_request: MakeRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    request = make_request("hällo\x1b[2J\x9b31m\n\u202e")
    await site.bury(request)
    assert await command.show_dead(site.desk, request.response_id) == 0
    out = capsys.readouterr().out
    head, _, payload = out.partition("\n\n")
    assert "reason    the engine died" in head
    assert json.loads(payload)["messages"][0]["content"] == request.messages[0].content
    assert "hällo" in payload
    assert all(char.isprintable() or char == "\n" for char in out)


async def test_what_is_no_request_is_shown_as_it_is(
    site: Site, make_request: MakeRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    request = make_request()
    await site.poison(request, b'{"half": "\x1b]0;\xff')
    await command.show_dead(site.desk, request.response_id)
    assert capsys.readouterr().out.endswith('{"half": "\\u001b]0;\\xff\n')


@pytest.mark.parametrize("payload", [b"[" * 100_000, b"9" * 5000, b"", b'"\\ud800"', b"\xff\xfe"])
def test_nothing_in_a_request_can_break_its_printing(payload: bytes) -> None:
    pretty(payload).encode()


@pytest.mark.parametrize("name", ["show_dead", "requeue"])
async def test_an_unknown_letter_is_an_error(site: Site, name: str) -> None:
    with pytest.raises(NotFound, match="resp_unknown"):
        await getattr(command, name)(site.desk, "resp_unknown")


async def test_a_requeued_request_runs_under_a_new_id_and_can_be_continued(
    site: Site, make_request: MakeRequest, make_reader: MakeReader, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = make_request(settings=Asked(sampling=Sampling(temperature=0.5)), created_at=time.time() - 86_400)
    await site.bury(asked)
    assert await command.requeue(site.desk, asked.response_id) == 0
    again = capsys.readouterr().out.strip()
    assert again != asked.response_id
    delivery = await site.claim()
    request = delivery.request
    assert (request.response_id, request.user) == (again, asked.user)
    assert (request.messages, request.settings) == (asked.messages, asked.settings)
    assert time.time() - request.created_at < PATIENCE_S  # its time to wait begins anew
    assert not await site.desk.dead_letters.of(MODELS)

    follower = make_reader()
    cursor = await site.queue.follow(again, -1, follower)
    ended = await site.answer(delivery, "hi")
    assert TextDelta("hi") in await said(follower, cursor)
    # As a worker does.
    await site.desk.storage.history.finish([ended])
    ask = Ask(HELLO, "m", Asked(previous_response_id=again))
    await site.chat.submit(Caller("ada"), ask, new_id("resp"))
    following = await site.claim()
    (before,) = await site.desk.storage.history.before([following.request], 0)
    assert before == (*asked.messages, Message(Role.ASSISTANT, "hi"))


async def test_a_finished_log_does_not_change_when_its_request_is_requeued(
    site: Site, make_request: MakeRequest
) -> None:
    request = make_request()
    await site.bury(request)
    log = f"{site.keys.base('m')}:log:{request.response_id}"
    before = await site.link.command("LRANGE", log, 0, -1)
    await command.requeue(site.desk, request.response_id)
    assert await site.link.command("LRANGE", log, 0, -1) == before


async def test_what_cannot_be_decoded_cannot_be_requeued_and_stays(
    site: Site, make_request: MakeRequest
) -> None:
    request = make_request()
    await site.poison(request, b'{"response_id": "resp_1"}')
    with pytest.raises(InvalidRequest, match="cannot be decoded"):
        await command.requeue(site.desk, request.response_id)
    assert len(await site.desk.dead_letters.of(MODELS)) == 1
    assert (await site.desk.operator.backlog("m")).waiting == 0


async def test_a_request_for_a_model_that_is_not_configured_cannot_be_requeued_and_stays(
    site: Site, make_request: MakeRequest
) -> None:
    request = make_request(model="former")
    await site.bury(request)
    with pytest.raises(NotFound, match="former"):
        await command.requeue(site.desk, request.response_id)
    assert len(await site.desk.dead_letters.of(["former"])) == 1


async def test_dead_letters_are_purged_of_all_models(
    site: Site, make_request: MakeRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await command.count_dead(site.desk) == ""
    for model in ("m", "m", "former"):
        await site.bury(make_request(model=model))
    assert await command.count_dead(site.desk) == "Delete 3 dead letters (m: 2, former: 1)?"
    assert await command.purge_dead(site.desk) == 0
    assert capsys.readouterr().out == "deleted 3 dead letters (m: 2, former: 1)\n"
    assert not await site.desk.dead_letters.of([*MODELS, "former"])
    stream = f"{site.keys.base('m')}:dead"
    assert await site.link.command("TTL", stream) != -1  # it still expires


# ── purge ────────────────────────────────────────────────────────────────────────────────────────


async def test_purging_ends_what_waits_and_leaves_what_runs(
    site: Site, make_request: MakeRequest, make_reader: MakeReader, capsys: pytest.CaptureFixture[str]
) -> None:
    running = make_request()
    await site.queue.publish(running)
    delivery = await site.claim()
    waiting = [make_request(user=user, model=model) for user in ("ada", "bob") for model in ("m", "former")]
    # A server whose clock is ahead has made it.
    waiting.append(make_request(created_at=time.time() + 3600))
    followers = []
    for request in waiting:
        await site.queue.publish(request)
        follower = make_reader()
        followers.append((follower, await site.queue.follow(request.response_id, -1, follower)))

    assert await command.count_waiting(site.desk) == "End 5 waiting requests (m: 3, former: 2)?"
    assert await command.purge_waiting(site.desk) == 0
    assert capsys.readouterr().out == "ended 5 waiting requests (m: 3, former: 2)\n"
    for follower, cursor in followers:
        last = (await said(follower, cursor))[-1]
        assert isinstance(last, ResponseFailed)
        assert last.response.failure is not None
        assert last.response.failure.code == "purged"
    assert await command.count_waiting(site.desk) == ""
    backlog = await site.desk.operator.backlog("m")
    assert (backlog.waiting, backlog.running) == (0, 1)
    assert (await site.answer(delivery, "hi")).text == "hi"


async def test_many_are_purged_and_what_comes_afterwards_is_served(
    site: Site, make_request: MakeRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("internal.data.redis.operator.AT_ONCE", 3)
    await asyncio.gather(*(site.queue.publish(make_request(user=f"user {n % 4}")) for n in range(11)))
    assert await site.desk.operator.purge("m") == 11
    assert await site.desk.operator.purge("m") == 0
    request = make_request(user="user 1")
    await site.queue.publish(request)
    assert (await site.claim()).request == request


async def test_what_was_purged_leaves_nothing_that_does_not_expire(
    site: Site, make_request: MakeRequest, redis_prefix: str
) -> None:
    await site.queue.publish(make_request())
    await command.purge_waiting(site.desk)
    _, names = await site.link.command("SCAN", 0, "MATCH", f"*{redis_prefix}*", "COUNT", 100_000)
    assert names
    for name in names:
        assert await site.link.command("TTL", name) > 0, name


async def test_on_a_cluster_what_is_touched_together_shares_a_slot(
    redis_cluster_url: str, make_request: MakeRequest, tmp_path: Path
) -> None:
    async with Site(redis_cluster_url, "p", tmp_path).running() as site:
        buried = make_request()
        await site.bury(buried)
        await site.queue.publish(make_request(model="former"))
        assert await site.desk.models() == [*MODELS, "former"]
        await command.requeue(site.desk, buried.response_id)
        assert [await site.desk.operator.purge(model) for model in ("m", "former")] == [1, 1]
        assert await site.desk.dead_letters.purge("m") == 0


# ── the program ──────────────────────────────────────────────────────────────────────────────────


class Program:
    """`python -m cmd.queue`, called with a configuration."""

    def __init__(self, run: "RunProgram", folder: Path, url: str, prefix: str, driver: str = "redis") -> None:
        self._run = run
        self.conf = folder / "sluice.yaml"
        models = [{"name": name, "generator": "echo"} for name in MODELS]
        queue = {"driver": driver, "url": url, "prefix": prefix}
        storage = {"url": f"sqlite:///{folder}/sluice.db"}
        self.conf.write_text(yaml.safe_dump({"queue": queue, "models": models, "storage": storage}))

    def words(self, *words: str) -> list[str]:
        return ["-m", "cmd.queue", "-conf", str(self.conf), *words]

    async def __call__(
        self, *words: str, env: Mapping[str, str] | None = None, fresh: bool = False
    ) -> "Ended":
        ended = await asyncio.to_thread(self._run, *self.words(*words), env=env, fresh=fresh)
        assert "Traceback" not in ended.errors
        return ended

    async def on_a_terminal(self, terminal: int, *words: str) -> tuple[int, str, str]:
        """Its status, and what it said."""
        process = await self.start(*words, stdin=terminal)
        async with asyncio.timeout(PATIENCE_S):
            out, errors = await process.communicate()
        assert process.returncode is not None
        return process.returncode, out.decode(), errors.decode()

    def start(
        self, *words: str, stdin: int = subprocess.DEVNULL, stdout: int = subprocess.PIPE
    ) -> Coroutine[Any, Any, asyncio.subprocess.Process]:
        command = [sys.executable, *self.words(*words)]
        return asyncio.create_subprocess_exec(
            *command, cwd=ROOT, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE
        )


@pytest.fixture
def program(run_program: "RunProgram", tmp_path: Path, redis_url: str, redis_prefix: str) -> Program:
    return Program(run_program, tmp_path, redis_url, redis_prefix)


async def test_the_program_does_what_it_is_told(
    program: Program, site: Site, make_request: MakeRequest
) -> None:
    buried = make_request("hällo")
    await site.bury(buried)
    await site.queue.publish(make_request())

    status, out, errors = await program("status", "-json")
    assert (status, errors) == (0, "")
    assert json.loads(out)["models"][0]["waiting"] == 1
    status, out, _ = await program("status")
    assert status == 0
    assert out.startswith("model ")
    status, out, _ = await program("dead", "list")
    assert status == 0
    assert buried.response_id in out
    # Also where only ASCII can be printed.
    status, out, _ = await program(
        "dead", "show", buried.response_id, env={"PYTHONIOENCODING": "ascii"}, fresh=True
    )
    assert status == 0
    assert "h\\xe4llo" in out

    status, out, errors = await program("dead", "requeue", buried.response_id)
    assert (status, errors) == (0, "")
    assert out.startswith("resp_")
    assert await program("dead", "requeue", buried.response_id) == (
        1,
        "",
        f"there is no dead letter of '{buried.response_id}'\n",
    )
    assert await program("purge", "-yes") == (0, "ended 2 waiting requests (m: 2)\n", "")
    assert await program("dead", "purge", "-yes") == (0, "deleted 0 dead letters\n", "")


async def test_without_a_terminal_nothing_is_purged_unasked(
    program: Program, site: Site, make_request: MakeRequest
) -> None:
    await site.queue.publish(make_request())
    for words in (("purge",), ("dead", "purge")):
        status, out, errors = await program(*words)
        assert (status, out) == (2, "")
        assert "-yes" in errors
    assert (await site.desk.operator.backlog("m")).waiting == 1


@pytest.mark.parametrize(("typed", "status", "left"), [(b"y\n", 0, 0), (b"\n", 1, 1), (b"\x04", 1, 1)])
async def test_on_a_terminal_it_asks_first(
    program: Program, site: Site, make_request: MakeRequest, typed: bytes, status: int, left: int
) -> None:
    await site.queue.publish(make_request())
    ours, theirs = os.openpty()
    try:
        os.write(ours, typed)
        told, out, _ = await program.on_a_terminal(theirs, "purge")
    finally:
        os.close(ours)
        os.close(theirs)
    assert told == status
    assert out.startswith("End 1 waiting request (m: 1)? [y/N]")
    assert (await site.desk.operator.backlog("m")).waiting == left


async def test_a_question_can_be_interrupted(program: Program, site: Site, make_request: MakeRequest) -> None:
    await site.queue.publish(make_request())
    ours, theirs = os.openpty()
    process = await program.start("purge", stdin=theirs)
    try:
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            await process.stdout.readuntil(b"[y/N] ")
            ended = asyncio.ensure_future(process.communicate())
            # A signal that comes just before Python reads is noticed only behind the answer: a person would
            # press the keys again.
            while not ended.done():
                process.send_signal(signal.SIGINT)
                await asyncio.wait([ended], timeout=1)
            _, errors = await ended
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(ours)
        os.close(theirs)
    assert (process.returncode, errors) == (130, b"")


@pytest.mark.parametrize("words", [("status",), ("dead", "show", "resp_1"), ("purge", "-yes")])
async def test_a_redis_that_is_away_is_told_at_once_and_its_password_is_not(
    run_program: "RunProgram", tmp_path: Path, own_redis: "OwnRedis", words: tuple[str, ...]
) -> None:
    address = own_redis.url.removeprefix("redis://")
    await own_redis.stop()
    since_s = time.monotonic()
    status, out, errors = await Program(run_program, tmp_path, f"redis://:hunter2@{address}", "p")(*words)
    assert time.monotonic() - since_s < PATIENCE_S / 2
    assert (status, out) == (1, "")
    assert errors.startswith("Redis cannot be reached: ")
    assert errors.count("\n") == 1
    assert "hunter2" not in errors


async def test_a_redis_that_does_not_answer_is_not_waited_for(
    run_program: "RunProgram", tmp_path: Path, own_redis: "OwnRedis"
) -> None:
    await own_redis.pause()
    try:
        status, _, errors = await Program(run_program, tmp_path, own_redis.url, "p")("status")
    finally:
        await own_redis.resume()
    assert status == 1
    assert errors.startswith("Redis cannot be reached: ")


@pytest.mark.parametrize("login", [":hunter2", "hunter2:hunter2"])
async def test_a_login_that_is_refused_is_told_without_it(
    run_program: "RunProgram", tmp_path: Path, own_redis: "OwnRedis", login: str
) -> None:
    async with redis.asyncio.Redis.from_url(own_redis.url) as client:
        await client.config_set("requirepass", "another")
    url = own_redis.url.replace("redis://", f"redis://{login}@")
    status, _, errors = await Program(run_program, tmp_path, url, "p")("status")
    assert status == 1
    assert errors.startswith("queue.url: Redis refuses the login")
    assert "hunter2" not in errors


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2/x@127.0.0.1:6379/0",
        "redis://:hunter2@127.0.0.1:6379/0?hunter2=1",
        "http://:hunter2@127.0.0.1",
    ],
)
async def test_an_address_that_is_none_is_not_quoted(
    run_program: "RunProgram", tmp_path: Path, url: str
) -> None:
    status, out, errors = await Program(run_program, tmp_path, url, "p")("status")
    assert status in (1, 2)
    assert "queue.url" in errors
    assert "hunter2" not in out + errors


async def test_a_queue_in_memory_is_refused(run_program: "RunProgram", tmp_path: Path) -> None:
    program = Program(run_program, tmp_path, "redis://127.0.0.1:1/0", "p", driver="memory")
    status, out, errors = await program("status")
    assert (status, out) == (2, "")
    assert errors.startswith("queue.driver is memory")


@pytest.mark.parametrize("words", [(), ("dead",), ("dead", "show"), ("nonsense",), ("status", "-yes")])
async def test_a_wrong_command_line_is_refused(program: Program, words: tuple[str, ...]) -> None:
    status, out, errors = await program(*words)
    assert (status, out) == (2, "")
    assert errors.startswith("usage: ")


async def test_who_stops_reading_is_no_error_of_ours(program: Program) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        process = await program.start("status", stdout=writing)
        _, errors = await process.communicate()
    finally:
        os.close(writing)
    assert (process.returncode, errors) == (1, b"")


# ── words ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (9.94, "9.9 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (86400 * 3, "3 d")],
)
def test_a_span_is_told_in_its_largest_unit(seconds: float, text: str) -> None:
    assert span(seconds) == text


def test_a_moment_that_is_none_is_left_open() -> None:
    assert moment(0.0) == "1970-01-01 00:00:00Z"
    assert moment(1e18) == "?"
