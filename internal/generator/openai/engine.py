"""The engine that passes jobs on to an upstream: a task for each job, and one that looks after the nodes."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

from internal.biz.errors import GenerationFailed, SluiceError
from internal.biz.generation import Finished, FinishReason, Job, Output
from internal.biz.models import Feature
from internal.biz.ports import Capabilities, Progress, Sink
from internal.generator.openai.exchange import HttpClient
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
        self._sink: Sink | None = None
        self._tasks: dict[Job, asyncio.Task[Finished]] = {}
        self._checks: asyncio.Task[None] | None = None
        self._stopping = False
        slots = sum(node.slots for node in options.nodes)
        self.capabilities = Capabilities(options.context, slots)

    async def start(self, sink: Sink, progress: Progress) -> None:
        """Returns at once: an upstream that is away now may be there when somebody asks."""
        self._sink, self._stopping = sink, False
        self._client = HttpClient(self._options)
        for node in self._nodes.all:
            self._report(node)
        self._checks = asyncio.create_task(self._look_after_nodes(self._client))

    def submit(self, job: Job) -> None:
        assert self._client is not None
        assert self._sink is not None
        tell = partial(self._tell, job)
        room = self._sink.room
        retried = partial(self._meter.upstream_retried, self._model)
        run = Run(job, self._options, self._client, self._nodes, tell, room, retried, self._chance)
        task = asyncio.create_task(run.generate())
        self._tasks[job] = task
        task.add_done_callback(partial(self._ended, job, run))

    def cancel(self, job: Job) -> None:
        if (task := self._tasks.get(job)) is not None:
            task.cancel()

    async def stop(self) -> None:
        self._stopping = True
        tasks = [*self._tasks.values(), *([self._checks] if self._checks is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._checks = None
        if self._client is not None:
            await self._client.close()
            self._client = None

    def _tell(self, job: Job, outputs: Sequence[Output]) -> bool:
        assert self._sink is not None
        return self._sink.give([(job, output) for output in outputs])

    def _ended(self, job: Job, run: Run, task: asyncio.Task[Finished]) -> None:
        """The last word on a job, also on one that was cancelled before it began."""
        del self._tasks[job]
        if self._stopping or self._sink is None:
            return
        end = self._end(job, run, task)
        self._sink.give([*((job, output) for output in run.answer.held()), (job, end)])

    def _end(self, job: Job, run: Run, task: asyncio.Task[Finished]) -> Finished:
        if task.cancelled():
            return Finished(FinishReason.CANCELLED, run.answer.usage())
        error = task.exception()
        if error is None:
            return task.result()
        if not isinstance(error, SluiceError):
            log.error("the upstream engine failed", exc_info=error, extra={"response": job.response_id})
            error = GenerationFailed(f"the engine failed: {type(error).__name__}")
        return Finished(FinishReason.ERROR, run.answer.usage(), error)

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
