"""One running completion: asks llama.cpp for what a job wants, reads its events, tells the sink."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from internal.biz.errors import GenerationFailed, UnsupportedParameter
from internal.biz.generation import Finished, FinishReason, Job, Output, Prefilled
from internal.biz.models import Message, OutputFormat, Role, Usage
from internal.biz.scores import LEAST_LOGPROB, TokenScore
from internal.generator import llamacpp_sampling
from internal.generator.prompt import ChatTemplate, Piece, fit
from internal.generator.reasoning import ReasoningSplitter, begin, resume
from internal.generator.schemas import Grammar, check, json_rule, pattern_rule
from internal.generator.speech import Replay, Speech


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


class Stopped(Exception):
    """The job was cancelled before the engine began."""


class Completion:
    """Of one job. `generate` blocks the thread that it is called in."""

    def __init__(self, engine: Engine, job: Job) -> None:
        self.job = job
        self.cancelled = False
        """Set from the event loop's thread."""
        self.held: Sequence[Output] = ()
        """What was held back when the stream ended, and is to be said with the end."""
        self._engine = engine
        self._template = engine.template
        self._speech: Speech | None = None
        self._prompt: Sequence[Piece] = ()
        self._reason: FinishReason | None = None
        self._error: Exception | None = None
        self._input_tokens = 0
        self._cached_tokens = 0
        self._said_tokens = 0
        """Those of earlier attempts: part of the output, though llama.cpp gets them as a prompt."""
        self._new_tokens = 0
        self._reasoning_tokens = 0

    @property
    def _wants_stop(self) -> bool:
        return self.cancelled or self._engine.stopping

    def generate(self) -> Finished:
        """Raises Stopped, SluiceError, and whatever the library does."""
        engine, job, options = self._engine, self.job, self._engine.options
        self._check_tools()
        self._reasoning_tokens = self._count(job.reasoning)
        self._said_tokens = self._reasoning_tokens + self._count(job.emitted)
        wanted = job.settings.max_output_tokens or options.max_output_tokens
        # At least a quarter of the context stays for the answer, unless less was asked for.
        limit = options.context - min(wanted, options.context // 4) - 1
        prompt = fit(job.messages, job.settings.truncation, limit, self._tokenize)
        # What earlier attempts said leaves the prompt as it was for the first one, and takes from the room
        # for the answer.
        replay = Replay(job) if job.emitted and job.settings.output_format is not None else None
        pieces, splitter = ([], begin(self._prompt)) if replay else self._resume()
        said = engine.tokenize(pieces)
        self._input_tokens, self._said_tokens = len(prompt), len(said)
        if self._has_called_all:
            return Finished(FinishReason.STOP, self.usage())
        max_tokens = min(wanted, options.context - len(prompt) - 1) - len(said)
        if max_tokens <= 0:
            return Finished(FinishReason.LENGTH, self.usage())
        grammar, thought = self._grammar(), self._thought(splitter)
        if replay is not None:
            self._reasoning_tokens = 0
        self._speech = Speech(job, splitter, is_answer_kept=grammar is not None, replay=replay)
        request = self._request(prompt + said, max_tokens)
        if grammar is not None:
            request["grammar"] = grammar.behind(thought)
        try:
            engine.complete(request, self._on_event)
        finally:
            self._flush(self._speech)
        if self._error is not None:
            raise self._error
        if self._reason is None and not self._wants_stop:
            raise GenerationFailed("llama.cpp ended without saying why")
        if self._reason is FinishReason.STOP and not self._speech.ended:
            self._check_answer(self._speech, grammar, replay)
        return Finished(self._reason or FinishReason.CANCELLED, self.usage())

    def _check_tools(self) -> None:
        has_calls = any(message.calls or message.role is Role.TOOL for message in self.job.messages)
        if (has_calls or self.job.settings.tooling.offered) and self._template.call_format is None:
            raise UnsupportedParameter(
                "this model's chat template has no function calls, or none of the form <tool_call>: "
                "leave tools and their results out, or ask another model",
                param="tools",
            )

    def _tokenize(self, messages: Sequence[Message]) -> list[int]:
        if self._wants_stop:
            raise Stopped
        self._prompt = self._template.render(messages, self.job.settings.tooling.offered)
        return self._engine.tokenize(self._prompt)

    def _count(self, text: str) -> int:
        return len(self._engine.tokenize([Piece(text, special=False)])) if text else 0

    def _resume(self) -> tuple[list[Piece], ReasoningSplitter]:
        called, form = self.job.called, self._template.call_format
        return resume(self._prompt, self.job, form.write(called) if called and form is not None else "")

    @property
    def _has_called_all(self) -> bool:
        """Whether earlier attempts have said the last call: of a list, they have said its end as well, and a
        grammar has one call or one list."""
        form, settings = self._template.call_format, self.job.settings
        tooling, is_list = settings.tooling, form is not None and form.is_list
        is_grammar = tooling.is_forced or settings.output_format is not None
        return bool(self.job.called) and (is_list or is_grammar or not tooling.parallel)

    def _grammar(self) -> Grammar | None:
        """What the answer has to follow. Raises InvalidSchema."""
        settings, form = self.job.settings, self._template.call_format
        output, tooling = settings.output_format, settings.tooling
        param, rules, answers = "tools", "", list[str]()
        if form is not None and tooling.offered and (tooling.is_forced or output is not None):
            rules += form.rules(tooling)
            answers.append("calls")
        if output is not None and not tooling.is_forced:
            param = "response_format"
            answers.append("json" if output.pattern is None else "pattern")
            rules += f"{answers[-1]}: {_format_rule(output, param)}\n"
        return Grammar(answers, rules, param) if answers else None

    def _thought(self, splitter: ReasoningSplitter) -> str | None:
        """How the reasoning begins that may stand before the answer, or has to (an empty beginning)."""
        if splitter.thinking:
            return ""
        return "<think>" if self._template.thinks and splitter.starting else None

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

    def _check_answer(self, speech: Speech, grammar: Grammar | None, replay: Replay | None) -> None:
        """llama.cpp drops a grammar that becomes too much for it, and says nothing."""
        if replay is not None:
            replay.finish()
        if grammar is not None and not grammar.accepts(speech.answer):
            raise GenerationFailed(
                "the model's answer does not follow the schema: simplify it, or ask again",
                code="schema_not_followed",
            )

    def usage(self) -> Usage:
        """The tokens so far, those of earlier attempts included."""
        return Usage(
            input_tokens=self._input_tokens,
            cached_tokens=min(self._cached_tokens, self._input_tokens),
            output_tokens=self._said_tokens + self._new_tokens,
            reasoning_tokens=self._reasoning_tokens,
        )

    def _on_event(self, event: dict[str, Any]) -> bool:
        """Called by llama.cpp in this completion's thread; True stops it."""
        try:
            self._read(event)
        except Exception as error:  # llama.cpp would take it for a stop, and say nothing
            self._error = error
        ended = self._speech is not None and self._speech.ended
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
        speech = self._speech
        assert speech is not None
        self._new_tokens += 1
        self._reasoning_tokens += speech.thinking
        self._engine.put(self.job, *speech.feed(text, scores))
        if speech.ended:
            self._reason = FinishReason.STOP


def _likely(token: dict[str, Any]) -> tuple[str, float]:
    return bytes(token["bytes"]).decode(errors="replace"), max(LEAST_LOGPROB, token["logprob"])


def _format_rule(output: OutputFormat, param: str) -> str:
    """Raises InvalidSchema."""
    if output.pattern is not None:
        return pattern_rule(output.pattern, param)
    schema = {"type": "object"} if output.schema is None else output.schema
    check(schema, param)
    return json_rule(schema, strict=output.strict)
