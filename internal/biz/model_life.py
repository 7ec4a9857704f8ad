"""The life of a model on its engine: loaded, unloaded, and loaded again. Knows the engine, not requests."""

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

from internal.biz.errors import EngineLost, GenerationFailed
from internal.biz.models import Condition, ModelState, Order
from internal.biz.pause import pause
from internal.biz.ports import Generator, Progress, Sink

log = logging.getLogger(__name__)

MAX_ORDERS = 16
"""Orders that may wait; one that comes then is not heard. Who gives it repeats it."""
KEPT_ORDERS = 2 * MAX_ORDERS
"""As many as were carried out last are told as such, and not heard again: who gave one may look late."""
TOLD_AGAIN_S = 0.5
"""How often it is told how far a load is, at most."""


class Work(Protocol):
    """What is done with the model: the worker's side of its life."""

    @property
    def idle_s(self) -> float:
        """For how long nothing has been asked of the model; 0 while something is."""

    def open(self) -> None:
        """Take requests from now on."""

    async def close(self) -> None:
        """Take nothing new, let what runs finish, and give the rest back. Bounded in time."""

    def drop(self) -> None:
        """What ran when the model went ended without a word."""


class ModelLife:
    """Implements Resident. One model, which `run` and whoever needs it load and unload, one after another.

    Orders are carried out in the order in which they come, each once, however often it is said.
    """

    def __init__(
        self, model: str, generator: Generator, changed: Callable[[], None], idle_unload_s: float
    ) -> None:
        """`changed` is called on the event loop when the condition is another one. `idle_unload_s`: a model
        that nobody has asked for so long is unloaded until somebody does (0: it stays)."""
        self._model = model
        self._generator = generator
        self._changed = changed
        self._idle_unload_s = idle_unload_s
        self._sink: Sink | None = None
        self._turn = asyncio.Lock()
        """Held by who loads or unloads."""
        self._orders: deque[tuple[str, Order]] = deque()
        self._heard: deque[str] = deque(maxlen=MAX_ORDERS + KEPT_ORDERS)
        self._news = asyncio.Event()
        self._told_at_s = 0.0
        self._loaded_at_s = 0.0
        self.is_loaded = False
        """Whether the engine may be asked."""
        self.condition = Condition(ModelState.UNLOADED, 0.0)

    def order(self, order_id: str, order: Order) -> None:
        """Have an operator's order carried out, when those before it are."""
        if order_id not in self._heard and len(self._orders) < MAX_ORDERS:
            self._heard.append(order_id)
            self._orders.append((order_id, order))
            self._news.set()

    async def start(self, sink: Sink, progress: Progress) -> None:
        """Load the model for the first time. Raises as `Generator.start`."""
        self._sink = sink
        async with self._turn:
            await self._load(progress)
        progress(1.0)

    async def wake(self) -> None:
        """Return when the model is loaded. Raises as `Generator.start`, and logs why."""
        if self.is_loaded:
            return
        async with self._turn:
            if not self.is_loaded:
                began_at_s = time.monotonic()
                try:
                    await self._load(lambda _: None)
                except GenerationFailed as error:
                    log.warning("the model cannot be loaded: %s", error.message, extra={"model": self._model})
                    raise
                seconds = round(self._loaded_at_s - began_at_s, 1)
                log.info("the model is loaded", extra={"model": self._model, "seconds": seconds})

    async def run(self, work: Work) -> None:
        """Work, and do what operators say, until cancelled. Raises EngineLost."""
        is_open = True
        work.open()
        while True:
            told = await self._next_order(work)
            if told is None:
                await self._unload(work)
                continue
            order_id, order = told
            log.info("an operator's order: %s", order, extra={"model": self._model, "order": order_id})
            if order is Order.LOAD:
                with contextlib.suppress(GenerationFailed):  # the condition says why
                    await self.wake()
                if self.is_loaded and not is_open:
                    work.open()
                    is_open = True
            else:
                if is_open:
                    if self.is_loaded:
                        self._become(ModelState.UNLOADING, 1.0)
                    await work.close()
                    is_open = False
                await self._unload(work)
            done = (*self.condition.orders[-KEPT_ORDERS + 1 :], order_id)
            self.condition = replace(self.condition, orders=done)
            self._changed()

    async def _next_order(self, work: Work) -> tuple[str, Order] | None:
        """The next one; None when the model has been idle for long enough."""
        while not self._orders:
            self._news.clear()
            if not self._idle_unload_s or not self.is_loaded:
                await self._news.wait()
                continue
            left_s = self._idle_unload_s - min(work.idle_s, time.monotonic() - self._loaded_at_s)
            if left_s <= 0:
                return None
            await pause(self._news, left_s)
        return self._orders.popleft()

    async def stop(self) -> None:
        """Free the engine, whatever it does."""
        await self._generator.stop()

    # ── loading ──────────────────────────────────────────────────────────────────────────────────

    async def _load(self, progress: Progress) -> None:
        assert self._sink is not None
        loop = asyncio.get_running_loop()
        self._become(ModelState.LOADING, 0.0, failure="")

        def told(done: float) -> None:
            progress(done)
            loop.call_soon_threadsafe(self._advance, done)

        try:
            await self._generator.start(self._sink, told)
        except EngineLost:
            raise
        except BaseException as error:
            await self._generator.stop()
            reason = _reason(error)
            self._become(ModelState.UNLOADED, 0.0, failure=reason)
            if isinstance(error, Exception) and not isinstance(error, GenerationFailed):
                log.exception("the engine failed at its start", extra={"model": self._model})
                raise GenerationFailed(reason) from error
            raise
        self.is_loaded, self._loaded_at_s = True, time.monotonic()
        self._news.set()  # from now on it may fall idle
        self._become(ModelState.LOADED, 1.0)

    async def _unload(self, work: Work) -> None:
        async with self._turn:
            if self.is_loaded:
                self.is_loaded = False
                self._become(ModelState.UNLOADING, 1.0)
                await self._generator.stop()
                work.drop()
                log.info("the model is unloaded", extra={"model": self._model})
            self._become(ModelState.UNLOADED, 0.0)

    def _advance(self, done: float) -> None:
        """So much is loaded. Told again not too often."""
        if self.condition.state is not ModelState.LOADING:
            return
        self.condition = replace(self.condition, progress=min(max(done, 0.0), 1.0))
        now_s = time.monotonic()
        if now_s - self._told_at_s >= TOLD_AGAIN_S:
            self._told_at_s = now_s
            self._changed()

    def _become(self, state: ModelState, progress: float, failure: str | None = None) -> None:
        failure = self.condition.failure if failure is None else failure
        self.condition = Condition(state, progress, self.condition.orders, failure)
        self._changed()


def _reason(error: BaseException) -> str:
    if isinstance(error, GenerationFailed):
        return error.message
    if isinstance(error, asyncio.CancelledError):
        return "loading was interrupted"
    return f"the model cannot be loaded: {type(error).__name__}"
