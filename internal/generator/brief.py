"""What an engine is told of a job: the prompt's tokens, what earlier attempts said, how much is left to say,
and what the answer has to follow. Knows templates and grammars, not engines.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from internal.biz.errors import GenerationFailed, UnsupportedParameter
from internal.biz.generation import FinishReason, Job
from internal.biz.models import Message, OutputFormat, Role
from internal.generator.prompt import ChatTemplate, Piece, fit
from internal.generator.reasoning import ReasoningSplitter, begin, resume
from internal.generator.schemas import Grammar, check, json_rule, pattern_rule
from internal.generator.speech import Replay, Speech


class Stopped(Exception):
    """The job was cancelled before the engine began."""


class Encode(Protocol):
    """Makes tokens of a prompt, or (`continues`) of what stands behind one."""

    def __call__(self, pieces: Sequence[Piece], *, continues: bool) -> list[int]: ...


class Brief:
    """Of one job. `prepare` does the work, and blocks; what is known when it fails is true."""

    def __init__(
        self, job: Job, template: ChatTemplate, encode: Encode, wants_stop: Callable[[], bool]
    ) -> None:
        self.job = job
        self.prompt: Sequence[int] = ()
        self.said_tokens = 0
        """Those of earlier attempts: part of the output, though the engine gets them as a prompt."""
        self.reasoning_tokens = 0
        """Of `said_tokens`."""
        self.said: Sequence[int] = ()
        """What stands behind the prompt as if the model had just written it."""
        self.max_tokens = 0
        """How much is left to say."""
        self.grammar: Grammar | None = None
        self.thought: str | None = None
        """How the reasoning begins that may stand before the answer, or has to (an empty beginning)."""
        self.replay: Replay | None = None
        self.speech: Speech | None = None
        """Made when there is something left to say."""
        self._template = template
        self._encode = encode
        self._wants_stop = wants_stop
        self._rendered: Sequence[Piece] = ()

    def prepare(
        self,
        *,
        context: int,
        max_output_tokens: int,
        spare: int,
        replays: bool,
        stop: tuple[str, ...] = (),
    ) -> FinishReason | None:
        """How it has ended already, if there is nothing left to say.

        Of the `context` tokens `spare` stay empty. The answer ends before one of `stop`. `replays`: the
        engine cannot begin in the middle of a grammar, so that what earlier attempts said is generated again.
        Raises Stopped and SluiceError.
        """
        job, usable = self.job, context - spare
        self._check_tools()
        self.reasoning_tokens = self._count(job.reasoning)
        self.said_tokens = self.reasoning_tokens + self._count(job.emitted)
        wanted = job.settings.max_output_tokens or max_output_tokens
        # At least a quarter of the context stays for the answer, unless less was asked for.
        limit = usable - min(wanted, context // 4)
        self.prompt = fit(job.messages, job.settings.truncation, limit, self._tokens)
        # What earlier attempts said leaves the prompt as it was for the first one, and takes from the room
        # for the answer.
        if replays and job.emitted and job.settings.output_format is not None:
            self.replay = Replay(job)
            pieces, splitter = list[Piece](), begin(self._rendered)
        else:
            pieces, splitter = self._resume()
        self.said = self._encode(pieces, continues=True)
        self.said_tokens = len(self.said)
        if self._has_called_all:
            return FinishReason.STOP
        self.max_tokens = min(wanted, usable - len(self.prompt)) - len(self.said)
        if self.max_tokens <= 0:
            return FinishReason.LENGTH
        self.grammar, self.thought = self._grammar(), self._thought(splitter)
        if self.replay is not None:
            self.reasoning_tokens = 0
        self.speech = Speech(
            job, splitter, is_answer_kept=self.grammar is not None, replay=self.replay, stop=stop
        )
        return None

    def check_answer(self, said_before: str = "") -> None:
        """Whether a complete answer follows the grammar: a library may drop one that becomes too much for it.
        `said_before`: the part of it that `speech` has not heard. Raises GenerationFailed."""
        if self.replay is not None:
            self.replay.finish()
        if self.grammar is None or self.speech is None:
            return
        if not self.grammar.accepts(said_before + self.speech.answer):
            raise _not_followed()

    def check_beginning(self, said_before: str = "") -> None:
        """As `check_answer`, of one that was cut off."""
        if self.grammar is None or self.speech is None:
            return
        # The last character may be cut off, too, or a thought that had hardly begun.
        said = (said_before + self.speech.answer).rstrip("\ufffd")
        if not (self.thought or "").startswith(said) and not self.grammar.begins(said):
            raise _not_followed()

    def _check_tools(self) -> None:
        has_calls = any(message.calls or message.role is Role.TOOL for message in self.job.messages)
        if (has_calls or self.job.settings.tooling.offered) and self._template.call_format is None:
            raise UnsupportedParameter(
                "this model's chat template has no function calls, or none of the form <tool_call>: "
                "leave tools and their results out, or ask another model",
                param="tools",
            )

    def _tokens(self, messages: Sequence[Message]) -> list[int]:
        if self._wants_stop():
            raise Stopped
        self._rendered = self._template.render(messages, self.job.settings.tooling.offered)
        return self._encode(self._rendered, continues=False)

    def _count(self, text: str) -> int:
        return len(self._encode([Piece(text, special=False)], continues=True)) if text else 0

    def _resume(self) -> tuple[list[Piece], ReasoningSplitter]:
        called, form = self.job.called, self._template.call_format
        return resume(self._rendered, self.job, form.write(called) if called and form is not None else "")

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
        if splitter.thinking:
            return ""
        return "<think>" if self._template.thinks and splitter.starting else None


def _not_followed() -> GenerationFailed:
    return GenerationFailed(
        "the model's answer does not follow the schema: simplify it, or ask again",
        code="schema_not_followed",
    )


def _format_rule(output: OutputFormat, param: str) -> str:
    """Raises InvalidSchema."""
    if output.pattern is not None:
        return pattern_rule(output.pattern, param)
    schema = {"type": "object"} if output.schema is None else output.schema
    check(schema, param)
    return json_rule(schema, strict=output.strict)
