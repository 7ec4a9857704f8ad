"""The engine that passes jobs on to an upstream, and a task that looks after the nodes of that."""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

from internal.biz.generation import Job
from internal.biz.models import Feature
from internal.biz.ports import Capabilities, Progress, Sink
from internal.generator.openai.exchange import HttpClient
from internal.generator.openai.jobs import Jobs
from internal.generator.openai.nodes import Node, Nodes
from internal.generator.openai.options import OpenAIOptions
from internal.generator.openai.run import Run

log = logging.getLogger(__name__)


class UpstreamMeter(Protocol):
    """What is counted of an upstream. `node` is its address."""

    def upstream_up(self, model: str, node: str, *, is_up: bool) -> None: ...

    def upstream_retried(self, model: str) -> None: ...


class OpenAIGenerator:
    """Implements Generator, on the event loop. Bound: `slots` jobs, each with one connection."""

    FEATURES = frozenset(Feature) - {Feature.LOGPROBS}
    """What there are parameters for; which of them the model's server takes, the operator knows."""

    def __init__(
        self,
        model: str,
        options: OpenAIOptions,
        meter: UpstreamMeter,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """`model` is its name here."""
        self._model = model
        self._options = options
        self._meter = meter
        self._chance = chance
        self._nodes = Nodes(
            options.nodes, options.breaker_failures, options.breaker_reset_s, clock, self._report
        )
        self._client: HttpClient | None = None
        self._jobs = Jobs()
        self._checks: asyncio.Task[None] | None = None
        slots = sum(node.slots for node in options.nodes)
        self.capabilities = Capabilities(options.context, slots)

    async def start(self, sink: Sink, progress: Progress) -> None:
        """Returns at once: an upstream that is away now may be there when somebody asks."""
        self._jobs.start(sink)
        self._client = HttpClient(self._options)
        for node in self._nodes.all:
            self._report(node)
        self._checks = asyncio.create_task(self._look_after_nodes(self._client))

    def submit(self, job: Job) -> None:
        assert self._client is not None
        tell = partial(self._jobs.tell, job)
        retried = partial(self._meter.upstream_retried, self._model)
        room = self._jobs.room
        run = Run(job, self._options, self._client, self._nodes, tell, room, retried, self._chance)
        self._jobs.submit(job, run)

    def cancel(self, job: Job) -> None:
        self._jobs.cancel(job)

    async def stop(self) -> None:
        await self._jobs.stop()
        if self._checks is not None:
            self._checks.cancel()
            await asyncio.gather(self._checks, return_exceptions=True)
            self._checks = None
        if self._client is not None:
            await self._client.close()
            self._client = None

    # ── the nodes ────────────────────────────────────────────────────────────────────────────────

    async def _look_after_nodes(self, client: HttpClient) -> None:
        """Ask each now and then whether it is alive. The only one there is gets the requests anyway: for the
        log, it is asked once."""
        nodes, interval_s = self._nodes.all, self._options.check_interval_s
        while interval_s:
            await asyncio.gather(*(self._check(client, node) for node in nodes))
            if len(nodes) == 1:
                return
            await asyncio.sleep(interval_s * (0.75 + 0.5 * self._chance()))

    async def _check(self, client: HttpClient, node: Node) -> None:
        is_alive = await client.is_alive(node)
        if is_alive != node.is_healthy:
            told = log.info if is_alive else log.warning
            word = "answers again" if is_alive else "does not answer"
            told("the upstream node %s", word, extra={"node": node.options.base_url})
        node.is_healthy = is_alive
        node.changed()

    def _report(self, node: Node) -> None:
        self._meter.upstream_up(self._model, node.options.base_url, is_up=node.is_up)
