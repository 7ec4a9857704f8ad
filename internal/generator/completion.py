"""One running completion: asks llama.cpp for what a job wants, reads its events, tells the sink."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from internal.biz.errors import GenerationFailed
from internal.biz.generation import Finished, FinishReason, Job, Output, Prefilled
from internal.biz.models import Usage
from internal.biz.scores import LEAST_LOGPROB, TokenScore
from internal.generator import llamacpp_sampling
from internal.generator.brief import Brief
from internal.generator.prompt import ChatTemplate, Piece
from internal.generator.speech import Speech


class Defaults(llamacpp_sampling.Defaults, Protocol):
    """`context` in tokens, as `max_output_tokens`."""

    @property
    def context(self) -> int: ...
    @property
    def max_output_tokens(self) -> int: ...


class Engine(Protocol):
    """What a completion needs."""

    @property
    def options(self) -> Defaults: ...
    @property
    def template(self) -> ChatTemplate: ...
    @property
    def stopping(self) -> bool: ...

    def tokenize(self, pieces: Sequence[Piece]) -> list[int]: ...
    def complete(self, request: dict[str, Any], callback: Callable[[dict[str, Any]], bool]) -> None: ...
    def put(self, job: Job, *outputs: Output) -> None: ...


class Completion:
    """Of one job. `generate` blocks the thread that it is called in."""

    def __init__(self, engine: Engine, job: Job) -> None:
        self.job = job
        self.cancelled = False
        """Set from the event loop's thread."""
        self.held: Sequence[Output] = ()
        """What was held back when the stream ended, and is to be said with the end."""
        self._engine = engine
        self._brief = Brief(job, engine.template, self._encode, lambda: self._wants_stop)
        self._reason: FinishReason | None = None
        self._error: Exception | None = None
        self._cached_tokens = 0
        self._new_tokens = 0
        self._new_reasoning_tokens = 0

    @property
    def _wants_stop(self) -> bool:
        return self.cancelled or self._engine.stopping

    def generate(self) -> Finished:
        """Raises Stopped, SluiceError, and whatever the library does."""
        engine, brief, options = self._engine, self._brief, self._engine.options
        reason = brief.prepare(
            context=options.context, max_output_tokens=options.max_output_tokens, spare=1, replays=True
        )
        if reason is not None:
            return Finished(reason, self.usage())
        assert brief.speech is not None
        request = self._request([*brief.prompt, *brief.said], brief.max_tokens)
        if brief.grammar is not None:
            request["grammar"] = brief.grammar.behind(brief.thought)
        try:
            engine.complete(request, self._on_event)
        finally:
            self._flush(brief.speech)
        if self._error is not None:
            raise self._error
        if self._reason is None and not self._wants_stop:
            raise GenerationFailed("llama.cpp ended without saying why")
        if self._reason is FinishReason.STOP and not brief.speech.ended:
            brief.check_answer()
        elif self._reason is FinishReason.LENGTH:
            brief.check_beginning()
        return Finished(self._reason or FinishReason.CANCELLED, self.usage())

    def _encode(self, pieces: Sequence[Piece], *, continues: bool) -> list[int]:
        return self._engine.tokenize(pieces)

    def _request(self, tokens: list[int], max_tokens: int) -> dict[str, Any]:
        """The completion request for llama.cpp."""
        settings, seed = self.job.settings, self.job.settings.sampling.seed
        if seed is None and settings.output_format is not None:
            # Another attempt has to say the same again.
            seed = zlib.crc32(self.job.response_id.encode())
        return {
            **llamacpp_sampling.fields(settings.sampling, self._engine.options, seed),
            "prompt": tokens,
            "n_predict": max_tokens,
            "stream": True,
            "return_progress": True,
            "cache_prompt": True,
            # It says nothing of the token itself unless it is asked for another one.
            **({} if settings.logprobs is None else {"n_probs": max(1, settings.logprobs)}),
        }

    def _flush(self, speech: Speech) -> None:
        try:
            self.held = speech.finish()
        except GenerationFailed as error:
            self._error = self._error or error

    def usage(self) -> Usage:
        """The tokens so far, those of earlier attempts included."""
        brief = self._brief
        return Usage(
            input_tokens=len(brief.prompt),
            cached_tokens=min(self._cached_tokens, len(brief.prompt)),
            output_tokens=brief.said_tokens + self._new_tokens,
            reasoning_tokens=brief.reasoning_tokens + self._new_reasoning_tokens,
        )

    def _on_event(self, event: dict[str, Any]) -> bool:
        """Called by llama.cpp in this completion's thread; True stops it."""
        try:
            self._read(event)
        except Exception as error:  # llama.cpp would take it for a stop, and say nothing
            self._error = error
        ended = self._brief.speech is not None and self._brief.speech.ended
        return ended or self._error is not None or self._wants_stop

    def _read(self, event: dict[str, Any]) -> None:
        if "choices" not in event:
            error = event.get("error", event)
            raise GenerationFailed(f"llama.cpp refused the request: {error.get('message', error)}")
        if (progress := event.get("prompt_progress")) is not None:
            self._cached_tokens = progress.get("cache", 0)
            self._engine.put(self.job, Prefilled(progress["processed"], progress["total"]))
        choice = event["choices"][0]
        if choice["text"]:
            self._say(choice["text"], self._scores(choice.get("logprobs")))
        match choice["finish_reason"]:
            case "stop":
                self._reason = FinishReason.STOP
            case "length":
                self._reason = self._reason or FinishReason.LENGTH
        if (usage := event.get("usage")) is not None:
            self._cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]
            self._new_tokens = usage["completion_tokens"]

    def _scores(self, logprobs: dict[str, Any] | None) -> list[TokenScore]:
        """What llama.cpp says of a token; of several that are one character together, of the last one."""
        wanted = self.job.settings.logprobs
        if wanted is None or logprobs is None:
            return []
        return [
            TokenScore(*_likely(token), top=tuple(map(_likely, token["top_logprobs"][:wanted])))
            for token in logprobs["content"]
        ]

    def _say(self, text: str, scores: Sequence[TokenScore]) -> None:
        speech = self._brief.speech
        assert speech is not None
        self._new_tokens += 1
        self._new_reasoning_tokens += speech.thinking
        self._engine.put(self.job, *speech.feed(text, scores))
        if speech.ended:
            self._reason = FinishReason.STOP


def _likely(token: dict[str, Any]) -> tuple[str, float]:
    return bytes(token["bytes"]).decode(errors="replace"), max(LEAST_LOGPROB, token["logprob"])
