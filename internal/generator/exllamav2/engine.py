"""One model of the configuration on exllamav2: prepares answers, and passes them on to the thread of the
model that is loaded for it, and perhaps for others.
"""

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from internal.biz.errors import EngineLost, GenerationFailed, SluiceError
from internal.biz.generation import Chunk, Finished, FinishReason, Job
from internal.biz.models import SAMPLING_FEATURES, Feature, Role, Usage
from internal.biz.ports import Capabilities, Progress, Sink
from internal.biz.sampling import RareSampling
from internal.generator.brief import Brief, Stopped
from internal.generator.exllamav2.grammar import GrammarFilter
from internal.generator.exllamav2.host import Host
from internal.generator.exllamav2.model_folder import ModelFolder
from internal.generator.exllamav2.options import ExLlamaV2Options
from internal.generator.exllamav2.run import Order, Run
from internal.generator.exllamav2.sampling import NEUTRAL, layered, settings
from internal.generator.prompt import ChatTemplate, Piece

log = logging.getLogger(__name__)


class _Ticket:
    """A job on its way."""

    __slots__ = ("cancelled", "run")

    def __init__(self) -> None:
        self.cancelled = False
        self.run: Run | None = None
        """Once it was handed to the engine's thread."""


class ExLlamaV2Generator:
    """Implements Generator, and the engine's Owner."""

    FEATURES = SAMPLING_FEATURES | {
        Feature.STOP,
        Feature.LOGPROBS,
        Feature.OUTPUT_FORMAT,
        Feature.PATTERN,
        Feature.TOOLS,
    }

    def __init__(self, options: ExLlamaV2Options, host: Host) -> None:
        self.options = options
        self._host = host
        self._sink: Sink | None = None
        self._tickets: dict[Job, _Ticket] = {}
        """All that have not ended. Bound: `slots`."""
        self._template = ChatTemplate("")
        self._stop_texts: tuple[str, ...] = ()
        self._stop_tokens: frozenset[int] = frozenset()
        self._stopping = False

    @property
    def capabilities(self) -> Capabilities:
        host = self._host
        # Who would have to wait for a place in the cache waits in the queue, where turns are fair.
        slots = min(host.slots, max(1, len(self._tickets))) if host.is_full else host.slots
        return Capabilities(host.context, slots)

    async def start(self, sink: Sink, progress: Progress) -> None:
        self._sink, self._stopping = sink, False
        await self._host.enter(self, progress)
        await asyncio.get_running_loop().run_in_executor(self._host.pool, self._read_folder)

    def _read_folder(self) -> None:
        """What of the model's files is this model's own, and not the host's."""
        folder, encoder = self._host.folder, self._host.encoder
        assert folder is not None
        assert encoder is not None
        self._template = self._load_template(folder)
        found = {text: encoder.special(text) for text in (*self.options.stop, folder.eos_token) if text}
        self._stop_texts = tuple(text for text in self.options.stop if found[text] is None)
        self._stop_tokens = folder.stop_tokens | {token for token in found.values() if token is not None}

    def _load_template(self, folder: ModelFolder) -> ChatTemplate:
        file = self.options.template
        source = file.read_text(encoding="utf-8") if file is not None else folder.chat_template
        if not source:
            raise GenerationFailed(
                f"{folder.path} has no chat template: set options.template to a file with one (Jinja2)",
                code="model_invalid",
            )
        return ChatTemplate(source, bos_token=folder.bos_token, eos_token=folder.eos_token)

    def submit(self, job: Job) -> None:
        ticket = self._tickets[job] = _Ticket()
        assert self._host.pool is not None
        self._host.pool.submit(self._prepare, job, ticket)

    def cancel(self, job: Job) -> None:
        if (ticket := self._tickets.get(job)) is not None:
            ticket.cancelled = True
            if ticket.run is not None:
                self._host.cancel(ticket.run)

    async def stop(self) -> None:
        self._stopping = True
        await self._host.leave(self)
        self._tickets.clear()

    # ── on the thread that prepares ──────────────────────────────────────────────────────────────

    def _prepare(self, job: Job, ticket: _Ticket) -> None:
        """Hand the answer to the engine's thread, or say how it has ended already."""
        encoder = self._host.encoder
        assert encoder is not None
        replies = frozenset(it.content for it in job.messages if it.role is Role.ASSISTANT and it.content)
        encode = partial(encoder.encode, replies=replies)
        brief = Brief(job, self._template, encode, lambda: ticket.cancelled or self._stopping)
        tell = partial(self._end, job, brief)
        try:
            run, reason = self._brief(brief)
        except Stopped:
            tell(FinishReason.CANCELLED)
        except SluiceError as error:
            tell(FinishReason.ERROR, error)
        except Exception as error:
            log.exception("an answer cannot be prepared", extra={"response": job.response_id})
            tell(FinishReason.ERROR, GenerationFailed(f"the engine failed: {type(error).__name__}"))
        else:
            if run is None:
                tell(reason)
                return
            ticket.run = run
            self._host.add(run)
            if ticket.cancelled:
                self._host.cancel(run)

    def _brief(self, brief: Brief) -> tuple[Run | None, FinishReason]:
        host, load = self._host, self.options.load
        model, folder = host.model, host.folder
        if model is None or folder is None:
            raise Stopped
        end = brief.prepare(
            context=model.context,
            max_output_tokens=self.options.max_output_tokens,
            spare=1 + load.draft_tokens,
            stop=self._stop_texts,
            replays=False,
        )
        if end is not None:
            return None, end
        sampling = layered(brief.job.settings.sampling, self.options.sampling, folder.sampling, NEUTRAL)
        rare, logprobs = sampling.rare or RareSampling(), brief.job.settings.logprobs
        order = Order(
            settings=model.settings(settings(sampling)),
            stop_tokens=self._stop_tokens,
            adapters=self.options.loras,
            seed=sampling.seed,
            filter=self._filter(brief),
            min_tokens=(rare.min_tokens or 0) - brief.said_tokens,
            banned_strings=rare.banned_strings,
            score=None if logprobs is None else partial(model.scores, top=logprobs),
        )
        return Run(brief.job, self, brief, order), FinishReason.STOP

    def _filter(self, brief: Brief) -> GrammarFilter | None:
        """What the answer has to follow, from where earlier attempts have left it."""
        vocabulary, encoder, model = self._host.vocabulary, self._host.encoder, self._host.model
        if brief.grammar is None or vocabulary is None or encoder is None or model is None:
            return None
        matcher = brief.grammar.matcher(brief.thought, vocabulary)
        emitted = brief.job.emitted
        if emitted and not matcher.consume_tokens(encoder.encode([Piece(emitted, False)], continues=True)):
            raise GenerationFailed(
                "the worker was lost in the middle of this answer, and it cannot be continued: ask again",
                code="answer_interrupted",
            )
        ends = () if vocabulary.end is None else (vocabulary.end, *self._stop_tokens - {vocabulary.end})
        return GrammarFilter(matcher, model.mask, ends)

    def _end(self, job: Job, brief: Brief, reason: FinishReason, error: SluiceError | None = None) -> None:
        """It has ended before the engine heard of it."""
        usage = Usage(
            input_tokens=len(brief.prompt),
            output_tokens=brief.said_tokens,
            reasoning_tokens=brief.reasoning_tokens,
        )
        self.ended(job)
        self.put([(job, Finished(reason, usage, error))])

    # ── as the engine's thread sees it ───────────────────────────────────────────────────────────

    def put(self, step: list[Chunk]) -> None:
        if self._sink is not None:
            self._sink.put(step)

    def ended(self, job: Job) -> None:
        self._tickets.pop(job, None)

    def remember(self, prompt: Sequence[int], text: str, tokens: Sequence[int]) -> None:
        if self._host.encoder is not None:
            self._host.encoder.remember(prompt, text, tokens)

    def lose(self, error: EngineLost) -> None:
        if self._sink is not None:
            self._sink.fail(error)
