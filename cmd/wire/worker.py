"""A worker process: it takes requests from a queue on Redis."""

import asyncio
import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cmd.wire.redis_seat import RedisSeat
from cmd.wire.settling import metered, settling
from cmd.wire.storage import Storage
from cmd.wire.workers import workers
from internal.biz.errors import EngineLost
from internal.biz.own_upstreams import OwnUpstreams
from internal.biz.ports import Progress
from internal.biz.worker import Worker
from internal.conf import settings as conf
from internal.data.credentials.cipher import SecretCipher
from internal.data.credentials.secret import signing_secret
from internal.data.redis.link import RedisLink
from internal.data.redis.work_queue import RedisWorkQueue
from internal.metrics.instruments import Instruments
from internal.metrics.loop_lag import watch_loop_lag

HAND_OVER_S = 3.0
"""What that may take when the engine of one worker is lost."""


@dataclass(frozen=True, slots=True)
class Crew:
    """Everything that runs in a worker process."""

    name: str
    instruments: Instruments
    link: RedisLink
    storage: Storage
    queue: RedisWorkQueue
    workers: Sequence[Worker]

    async def work(self, progress: Callable[[str, float], None]) -> None:
        """Run the workers until cancelled. `progress` is told (model, 0 to 1)."""
        await self.storage.connect()
        await self.link.connect()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(watch_loop_lag(self.instruments.loop_lag))
            tasks.create_task(self.storage.run())
            tasks.create_task(self.link.run())
            tasks.create_task(self.queue.run())
            for worker in self.workers:
                tasks.create_task(self._run(worker, functools.partial(progress, worker.model)))

    async def _run(self, worker: Worker, progress: Progress) -> None:
        """Run a worker. When its engine is lost, and the process ends for that, the others give back what
        they have: it is not they who may have died of it."""
        try:
            await worker.run(progress)
        except* EngineLost:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HAND_OVER_S):
                    others = [one for one in self.workers if one is not worker]
                    await asyncio.gather(*(other.drain(0.0) for other in others))
                    await self.queue.finish()
            raise

    async def drain(self, timeout_s: float) -> None:
        """Take nothing new, finish what runs, give the rest back."""
        await asyncio.gather(*(worker.drain(timeout_s) for worker in self.workers))
        await self.queue.finish()


def build_crew(settings: conf.Settings, models: Sequence[conf.Model]) -> Crew:
    """A worker process for `models`. Must be called on the event loop that will run it."""
    instruments, storage = Instruments(), Storage(settings.storage)
    seat = RedisSeat(settings, instruments)
    settle = settling(storage.history, seat.limiter)
    queue = RedisWorkQueue(
        seat.name,
        [model.name for model in models],
        seat.link,
        seat.keys,
        seat.options,
        metered(settle, instruments),
        instruments,
    )
    upstreams = _upstreams(settings.auth, storage, models)
    crew = workers(models, settings, queue, storage.history, settle, instruments, upstreams)
    return Crew(seat.name, instruments, seat.link, storage, queue, crew)


def _upstreams(auth: conf.Auth, storage: Storage, models: Sequence[conf.Model]) -> OwnUpstreams | None:
    """Those of users, where a model asks them: only then a worker needs the secret. Raises SluiceError."""
    if not any(isinstance(model, conf.OwnModel) for model in models):
        return None
    secret = signing_secret(auth.jwt_secret.get_secret_value(), Path(auth.secret_file))
    return storage.upstreams(SecretCipher(secret))
