"""What operators want of models: said to workers until they have done it. Knows conditions, not engines."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence

from internal.biz.errors import Conflict, GenerationFailed, Unavailable
from internal.biz.ids import new_id
from internal.biz.models import Condition, Order, WorkerInfo, condition_of
from internal.biz.ports import Queue

PATIENCE_S = 900.0
"""How long an order is waited for. What workers have begun by then they go on with."""
LOOK_S = 0.1
TOLD_AGAIN_S = 2.0
"""How often an order is repeated to workers that have not done it: it may have been lost."""
MAX_ERRANDS = 16
"""Orders for one model that may be under way: contrary ones, one after the other."""


class Errand:
    """An order under way, for one model. It goes on also when nobody follows it."""

    __slots__ = ("condition", "id", "model", "order", "task")

    def __init__(self, model: str, order: Order, condition: Condition) -> None:
        self.id = new_id("order")
        self.model = model
        self.order = order
        self.condition = condition
        """How those are that have not done it yet; in the end, how the model is."""
        self.task: asyncio.Task[None]

    async def follow(self) -> AsyncGenerator[Condition, None]:
        """How the model is, now and again and again until the order is carried out; the last one says so.

        Raises GenerationFailed when a worker could not, with the reason, and Unavailable when it took too
        long. Who follows may stop doing so.
        """
        while not self.task.done():
            yield self.condition
            await asyncio.wait([self.task], timeout=LOOK_S)
        if self.task.cancelled():
            raise Unavailable("the server is restarting; ask again in a moment", code="restarting")
        self.task.result()
        yield self.condition


class ModelOrders:
    """The orders that this process sees to. Bound: MAX_ERRANDS for each model. `run` must run."""

    def __init__(self, queue: Queue, patience_s: float = PATIENCE_S) -> None:
        self._queue = queue
        self._patience_s = patience_s
        self._errands: dict[str, list[Errand]] = {}
        """Those under way, by model, as they were given."""

    async def run(self) -> None:
        """Be there until cancelled."""
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            tasks = [errand.task for errands in self._errands.values() for errand in errands]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def give(self, model: str, order: Order) -> Errand:
        """Have all workers of `model` load or unload it, each when it has done what it was told before. The
        order that was given last, while it is under way, is the same errand.

        Raises Conflict when the model has no worker, and Unavailable, also when too many are under way.
        """
        workers = await self._workers(model)
        if not workers:
            raise Conflict(f"no worker for the model {model!r} is running; start one", code="no_worker")
        errands = self._errands.setdefault(model, [])
        if errands and errands[-1].order is order:
            return errands[-1]
        if len(errands) >= MAX_ERRANDS:
            waiting = f"{MAX_ERRANDS} orders for {model!r} wait already; try again in a moment"
            raise Unavailable(waiting, code="too_many_orders")
        errand = Errand(model, order, condition_of(workers))
        errands.append(errand)
        errand.task = asyncio.create_task(self._see_to(errand))
        errand.task.add_done_callback(lambda task: self._done(errand, task))
        return errand

    def _done(self, errand: Errand, task: asyncio.Task[None]) -> None:
        self._errands[errand.model].remove(errand)
        if not task.cancelled():
            task.exception()  # whoever follows is told; perhaps nobody does

    async def _workers(self, model: str) -> Sequence[WorkerInfo]:
        return [worker for worker in await self._queue.workers() if worker.model == model]

    async def _see_to(self, errand: Errand) -> None:
        clock = asyncio.get_running_loop().time
        deadline_s, told_at_s = clock() + self._patience_s, float("-inf")
        while clock() < deadline_s:
            with contextlib.suppress(Unavailable):
                workers = await self._workers(errand.model)
                if _is_done(errand, workers):
                    errand.condition = condition_of(workers)
                    return
                late = [worker for worker in workers if errand.id not in worker.condition.orders]
                errand.condition = condition_of(late)
                if clock() - told_at_s >= TOLD_AGAIN_S:
                    await self._queue.order(errand.model, errand.id, errand.order)
                    told_at_s = clock()
            await asyncio.sleep(LOOK_S)
        raise Unavailable(
            f"the model {errand.model!r} is not {errand.order.goal} after {self._patience_s:g} s; "
            "its workers may still be at it",
            code="timeout",
        )


def _is_done(errand: Errand, workers: Sequence[WorkerInfo]) -> bool:
    """Whether all have done it. Raises GenerationFailed when one could not."""
    for worker in workers:
        condition = worker.condition
        is_last = condition.orders[-1:] == (errand.id,)
        if is_last and errand.order is Order.LOAD and condition.failure:
            raise GenerationFailed(condition.failure, code="model_not_loaded")
    return bool(workers) and all(errand.id in worker.condition.orders for worker in workers)
