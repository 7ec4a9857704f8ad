"""The engine that passes jobs on to the upstreams of those who ask."""

import random
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Protocol

from internal.biz.generation import Job
from internal.biz.models import Feature
from internal.biz.ports import Capabilities, Progress, Sink
from internal.generator.openai.addresses import Lookups, connector
from internal.generator.openai.engine import OpenAIGenerator
from internal.generator.openai.exchange import HttpClient
from internal.generator.openai.jobs import Jobs
from internal.generator.openai.options import Bounds, OpenAIOptions
from internal.generator.openai.run import Run
from internal.generator.own.places import Place, Places
from internal.generator.own.run import FindsUpstreams, OwnRun

BOUNDS = Bounds(answer_bytes=1 << 20, event_bytes=1 << 20, bytes_per_s=256 << 10)
"""Nobody speaks faster. What comes is read on the event loop, which is there for all others, too."""


class CountsRetries(Protocol):
    def upstream_retried(self, model: str) -> None: ...


class OwnGenerator:
    """Implements Generator, on the event loop. Bound: `slots` jobs, each with one connection, and of these
    `user_slots` of a user."""

    FEATURES = OpenAIGenerator.FEATURES - {Feature.PATTERN}
    """What there are parameters for; which of them the model's server takes, it says itself."""

    def __init__(
        self,
        model: str,
        options: OpenAIOptions,
        upstreams: FindsUpstreams,
        meter: CountsRetries,
        *,
        slots: int,
        user_slots: int,
        only_public: bool,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`options` are those of all upstreams, without model and nodes. `only_public`: public addresses are
        connected to, and no others."""
        self._model = model
        self._options = replace(options, images=True, bounds=BOUNDS, is_discreet=True)
        self._upstreams = upstreams
        self._meter = meter
        self._user_slots = user_slots
        self._only_public = only_public
        self._clock = clock
        self._chance = chance
        self._jobs = Jobs(is_discreet=True)
        self._lookups: Lookups | None = None
        self._places: Places | None = None
        self.capabilities = Capabilities(0, slots)

    async def start(self, sink: Sink, progress: Progress) -> None:
        self._jobs.start(sink)
        self._lookups = Lookups()
        self._places = Places(self._options, self._user_slots, self._connect, self._clock)

    def _connect(self, options: OpenAIOptions) -> HttpClient:
        assert self._lookups is not None
        return HttpClient(options, connector(self._lookups, only_public=self._only_public))

    def submit(self, job: Job) -> None:
        assert self._places is not None
        run, patience_s = partial(self._run, job), self._options.first_token_timeout_s
        self._jobs.submit(job, OwnRun(job, self._upstreams, self._places, run, patience_s))

    def _run(self, job: Job, place: Place, model: str) -> Run:
        return Run(
            job,
            replace(place.options, model=model),
            place.client,
            place.nodes,
            partial(self._jobs.tell, job),
            self._jobs.room,
            partial(self._meter.upstream_retried, self._model),
            self._chance,
        )

    def cancel(self, job: Job) -> None:
        self._jobs.cancel(job)

    async def stop(self) -> None:
        await self._jobs.stop()
        if self._places is not None:
            await self._places.close()
            self._places = None
        if self._lookups is not None:
            await self._lookups.close()
            self._lookups = None
