"""argon2id in threads: what it promises, and how much of it runs at a time."""

import asyncio
import threading
import time

import argon2
import pytest

from internal.biz.errors import Unavailable
from internal.data.credentials import passwords
from internal.data.credentials.passwords import AT_A_TIME, Argon2Hasher

CHEAP = argon2.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)


@pytest.fixture
def hasher() -> Argon2Hasher:
    return Argon2Hasher(CHEAP)


@pytest.mark.parametrize("password", ["correct horse", "", "\x00", "ä🙂", "x" * 60_000])
async def test_only_the_password_is_the_password(hasher: Argon2Hasher, password: str) -> None:
    hashed = await hasher.hash(password)
    assert await hasher.verify(hashed, password)
    assert not await hasher.verify(hashed, password + " ")
    assert not await hasher.verify(hashed, password[:-1] + "\x01")
    assert await hasher.hash(password) != hashed


async def test_by_default_it_is_what_rfc_9106_recommends() -> None:
    hasher = Argon2Hasher()
    hashed = await hasher.hash("correct horse")
    assert hashed.startswith("$argon2id$v=19$m=65536,t=3,p=4$")
    assert len(hashed) < 255, "the column has no more"
    assert await hasher.verify(hashed, "correct horse")


async def test_what_nobody_has_costs_as_much_as_a_password(
    hasher: Argon2Hasher, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified = []
    verify = argon2.PasswordHasher.verify

    def counting(self: argon2.PasswordHasher, known: str, password: str) -> bool:
        verified.append(known)
        return verify(self, known, password)

    monkeypatch.setattr(argon2.PasswordHasher, "verify", counting)
    real = await hasher.hash("correct horse")
    assert not await hasher.verify(None, "correct horse")
    assert not await hasher.verify(None, "")
    nobody = verified[0]
    parameters = [argon2.extract_parameters(known) for known in (nobody, real)]
    assert parameters[0] == parameters[1]
    assert verified == [nobody, nobody]
    assert Argon2Hasher(CHEAP)._nobody != nobody


@pytest.mark.parametrize("broken", ["", "x", "$argon2id$", "v1:plain", "$2b$12$abcdefghijklmnopqrstuv"])
async def test_what_is_no_hash_fits_no_password(hasher: Argon2Hasher, broken: str) -> None:
    assert not await hasher.verify(broken, "correct horse")


async def test_it_tells_a_hash_that_was_made_with_other_parameters(hasher: Argon2Hasher) -> None:
    other = Argon2Hasher(argon2.PasswordHasher(time_cost=2, memory_cost=8, parallelism=1))
    hashed = await hasher.hash("correct horse")
    assert not hasher.is_outdated(hashed)
    assert other.is_outdated(hashed)
    assert await other.verify(hashed, "correct horse")


class Gate:
    """Stands in for argon2: counts who is inside, and lets them out when it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.inside = self.most = self.entered = 0
        self.open = threading.Event()
        self._lock = threading.Lock()
        monkeypatch.setattr(argon2.PasswordHasher, "hash", self._hash)

    def _hash(self, password: str) -> str:
        with self._lock:
            self.inside += 1
            self.entered += 1
            self.most = max(self.most, self.inside)
        self.open.wait(5)
        with self._lock:
            self.inside -= 1
        return "hash"

    async def full(self) -> None:
        async with asyncio.timeout(5):
            while self.inside < AT_A_TIME:  # noqa: ASYNC110
                await asyncio.sleep(0.001)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


async def test_only_a_few_run_at_a_time_and_the_loop_goes_on(hasher: Argon2Hasher, gate: Gate) -> None:
    waiting = [asyncio.create_task(hasher.hash("x")) for _ in range(10)]
    await gate.full()
    began = time.monotonic()
    await asyncio.sleep(0.01)
    assert time.monotonic() - began < 1
    assert gate.entered == AT_A_TIME
    gate.open.set()
    assert await asyncio.gather(*waiting) == ["hash"] * 10
    assert gate.most == AT_A_TIME


async def test_callers_that_leave_do_not_let_more_run(hasher: Argon2Hasher, gate: Gate) -> None:
    """Otherwise whoever drops their connections takes all memory."""
    for _ in range(5):
        leaving = [asyncio.create_task(hasher.hash("x")) for _ in range(5)]
        await gate.full()
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
    assert gate.entered == AT_A_TIME
    gate.open.set()
    assert await hasher.hash("x") == "hash"
    assert gate.most == AT_A_TIME


async def test_who_comes_when_too_many_wait_is_told_to_come_back(
    hasher: Argon2Hasher, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passwords, "MAX_PENDING", 3)
    waiting = [asyncio.create_task(hasher.hash("x")) for _ in range(3)]
    await gate.full()
    with pytest.raises(Unavailable, match="try again"):
        await hasher.hash("x")
    gate.open.set()
    await asyncio.gather(*waiting)
    assert await hasher.hash("x") == "hash"


async def test_a_machine_without_memory_for_it_says_so(
    hasher: Argon2Hasher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> bool:
        raise argon2.exceptions.VerificationError("Memory allocation error")

    monkeypatch.setattr(argon2.PasswordHasher, "verify", fail)
    with pytest.raises(Unavailable, match="try again"):
        await hasher.verify(None, "correct horse")
