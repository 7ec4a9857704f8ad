"""The thread that a loaded model lives on, for all models of the configuration that share it."""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol

from internal.biz.errors import EngineLost, GenerationFailed
from internal.biz.ports import Progress
from internal.biz.scores import TokenScore
from internal.generator.exllamav2.batch import Batch, Library
from internal.generator.exllamav2.encoder import Encoder, ReplyMemory
from internal.generator.exllamav2.model_folder import ModelFolder
from internal.generator.exllamav2.options import LoadOptions, LoraOptions
from internal.generator.exllamav2.run import Owner, Run
from internal.generator.exllamav2.stats import EngineStats
from internal.generator.schemas import Vocabulary

log = logging.getLogger(__name__)

MARKUP = "<think></think><tool_call></tool_call><tool_response></tool_response>"
"""What models are taught to write, whatever their template says."""


class LoadedModel(Library, Protocol):
    """What loading makes."""

    @property
    def context(self) -> int:
        """How many tokens one answer may have, its prompt included."""

    def settings(self, fields: dict[str, Any]) -> Any:
        """The library's settings of how tokens are chosen. On any thread."""

    def scores(self, logits: Any, tokens: Sequence[int], top: int) -> Sequence[TokenScore]:
        """How likely the tokens were, each with the `top` likeliest in its place."""

    def mask(self, logits: Any, allowed: bytes) -> Any:
        """The logits, with -inf where the byte of `allowed` is 0, and behind it. On any thread."""

    def unload(self) -> None: ...


Load = Callable[[LoadOptions, Sequence[LoraOptions], Progress, Callable[[], bool]], LoadedModel]
"""Loads a model on the thread that it is called on; the last argument says whether it is still wanted."""


@dataclass(slots=True)
class _Commands:
    """What was asked for since the last step."""

    added: list[Run] = field(default_factory=list)
    cancelled: list[Run] = field(default_factory=list)
    left: list[Owner] = field(default_factory=list)


class Host:
    """Loads the model for the first owner that enters, and unloads it when the last one has left.

    Owns the engine's thread, and one that prepares answers: `pool`. All methods but these are for the event
    loop.
    """

    def __init__(
        self, options: LoadOptions, adapters: Sequence[LoraOptions], load: Load, stats: EngineStats
    ) -> None:
        """`adapters`: those of all owners."""
        self.context, self.slots = options.max_seq_len, options.slots
        """As LoadedModel has them, from when it was loaded first."""
        self.pool: ThreadPoolExecutor | None = None
        self.folder: ModelFolder | None = None
        self.encoder: Encoder | None = None
        self.vocabulary: Vocabulary | None = None
        self.model: LoadedModel | None = None
        self._options = options
        self._adapters = tuple(adapters)
        self._load_model = load
        self._stats = stats
        self._owners: dict[Owner, Progress] = {}
        self._changed = threading.Condition()
        self._commands = _Commands()
        self._idle = True
        self._stopping = False
        self._batch: Batch | None = None
        self._thread: threading.Thread | None = None
        self._loaded: asyncio.Future[None] | None = None
        self._leaving = asyncio.Lock()

    @property
    def is_full(self) -> bool:
        """Answers wait for a place in the cache: nobody else has to be asked for."""
        batch = self._batch
        return batch is not None and batch.is_full

    async def enter(self, owner: Owner, progress: Progress) -> None:
        """Return when the model is loaded. Raises GenerationFailed, and then the owner is not in."""
        async with self._leaving:
            self._owners[owner] = progress
            if self._thread is None:
                self._start()
        assert self._loaded is not None
        try:
            await asyncio.shield(self._loaded)
        except Exception:
            await self.leave(owner)
            raise

    def _start(self) -> None:
        self._stopping, self._commands = False, _Commands()
        self._loaded = asyncio.get_running_loop().create_future()
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="exllamav2-prepare")
        self._thread = threading.Thread(target=self._run, args=(self._loaded,), name="exllamav2", daemon=True)
        self._thread.start()

    async def leave(self, owner: Owner) -> None:
        """Its answers end without a word."""
        async with self._leaving:
            if self._owners.pop(owner, None) is None:
                return
            with self._changed:
                self._commands.left.append(owner)
                self._stopping = not self._owners
                self._changed.notify()
            thread, pool = self._thread, self.pool
            if self._owners or thread is None or pool is None:
                return
            await asyncio.to_thread(_end, thread, pool)
            self._thread = self.pool = None

    def add(self, run: Run) -> None:
        """On any thread."""
        with self._changed:
            self._commands.added.append(run)
            if self._idle:
                self._changed.notify()

    def cancel(self, run: Run) -> None:
        """End it within a step. On any thread; one that has ended is ignored."""
        with self._changed:
            self._commands.cancelled.append(run)
            if self._idle:
                self._changed.notify()

    # ── on the thread ────────────────────────────────────────────────────────────────────────────

    def _run(self, loaded: asyncio.Future[None]) -> None:
        loop = loaded.get_loop()
        try:
            self.folder = ModelFolder.read(self._options.path)
            tokenizer = self._options.path / "tokenizer.json"
            self.encoder = Encoder(tokenizer, ReplyMemory(), self.folder.chat_template + MARKUP)
            self.vocabulary = Vocabulary(tokenizer, min(self.folder.stop_tokens, default=None))
            model = self._load_model(self._options, self._adapters, self._told, lambda: not self._stopping)
        except Exception as error:
            loop.call_soon_threadsafe(_fail, loaded, error)
            return
        self.context, self.slots = model.context, model.slots
        self.model, self._batch = model, Batch(model, self._stats)
        loop.call_soon_threadsafe(_succeed, loaded)
        try:
            self._serve(self._batch)
        except Exception as error:
            log.critical("the engine is lost", exc_info=error)
            lost = error if isinstance(error, EngineLost) else EngineLost(f"the engine failed: {error}")
            for owner in list(self._owners):
                owner.lose(lost)
        else:
            model.unload()
        finally:
            self.model = self._batch = None

    def _told(self, done: float) -> None:
        for progress in list(self._owners.values()):
            progress(done)

    def _serve(self, batch: Batch) -> None:
        """Step until all have left. Raises EngineLost."""
        while True:
            with self._changed:
                self._idle = batch.is_idle
                while self._idle and not self._stopping and self._commands == _Commands():
                    self._changed.wait()
                if self._stopping:
                    return
                commands, self._commands = self._commands, _Commands()
            for owner in commands.left:
                batch.leave(owner)
            for run in commands.added:
                batch.add(run)
            for run in commands.cancelled:
                _hand_over(batch.cancel(run))
            try:
                steps = batch.step()
            except Exception as error:
                log.exception("a step of exllamav2 failed")
                steps = batch.fail(GenerationFailed(f"the engine failed: {type(error).__name__}"))
            _hand_over(steps)


def _hand_over(steps: dict[Owner, Any]) -> None:
    for owner, step in steps.items():
        owner.put(step)


def _end(thread: threading.Thread, pool: ThreadPoolExecutor) -> None:
    pool.shutdown(wait=True, cancel_futures=True)
    thread.join()


def _succeed(loaded: asyncio.Future[None]) -> None:
    if not loaded.done():
        loaded.set_result(None)


def _fail(loaded: asyncio.Future[None], error: Exception) -> None:
    if not loaded.done():
        loaded.set_exception(error)
        loaded.exception()  # there may be nobody left to hear it
