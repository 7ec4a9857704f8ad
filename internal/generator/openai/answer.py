"""What an upstream says, chunk by chunk, in the words of an engine. Knows JSON, not sockets.

Source: https://platform.openai.com/docs/api-reference/chat-streaming, and what DeepSeek, vLLM (`reasoning`,
`reasoning_content`) and others add to it
"""

import math
from collections.abc import Sequence
from typing import Any

import orjson

from internal.biz.errors import GenerationFailed
from internal.biz.events import Delta, ReasoningDelta, TextDelta
from internal.biz.generation import Finished, FinishReason, Job, Output
from internal.biz.models import Usage
from internal.generator.openai.calls import CallCollector
from internal.generator.openai.faults import Fault, broken, told
from internal.generator.reasoning import ReasoningSplitter

MAX_ANSWER_CHARS = 8 << 20
MAX_TOKENS = (1 << 31) - 1
REFUSAL_CHARS = 300
"""Where in an answer it is looked for a refusal."""
CHARS_PER_TOKEN = 4
"""Where the upstream does not count."""
_DONE = b"[DONE]"
_LENGTH = ("length", "max_tokens")
_FAILED = ("error", "abort", "insufficient_system_resource")
"""Words of OpenRouter, vLLM and DeepSeek."""


class Answer:
    """One try at a job: feed it the data of events, it returns what that says.

    Bound: MAX_ANSWER_CHARS. Beyond, and for what is no chunk of an answer, there is a `fault`.
    """

    def __init__(self, job: Job, refusals: Sequence[str], secrets: Sequence[str]) -> None:
        self.is_done = False
        """Nothing more will be said."""
        self.fault: Fault | None = None
        """How the answer failed, behind what `feed` has returned."""
        self._job = job
        self._refusals = refusals
        self._secrets = secrets
        begun = bool(job.emitted)
        self._splitter = ReasoningSplitter("answering" if begun else "start", begun=begun)
        self._calls = CallCollector()
        self._reason: str | None = None
        self._usage: dict[str, Any] | None = None
        self._beginning = job.emitted[:REFUSAL_CHARS]
        self._is_refusal = False
        self._size = 0
        self._tokens = 0
        """The pieces that came: about a token each."""
        self._thoughts = 0

    @property
    def has_begun(self) -> bool:
        """Whether the model said anything: from then on there is no other try."""
        return self._tokens > 0 or bool(self._calls)

    @property
    def has_ended(self) -> bool:
        """Whether the model has; the count of its tokens may still come."""
        return self.is_done or self._reason is not None

    def feed(self, events: Sequence[bytes]) -> list[Output]:
        """What these events say; texts that came together are one."""
        outputs: list[Output] = []
        texts: list[str] = []
        for data in events:
            if data == _DONE:
                self.is_done = True
                break
            try:
                self._read(orjson.loads(data), texts, outputs)
            except (ValueError, TypeError, AttributeError, LookupError):
                self.fault = _nonsense()
            except Fault as fault:
                self.fault = fault
            if self.fault is not None:
                break
        self._tell(texts, outputs)
        return outputs

    def read_whole(self, body: bytes) -> list[Output]:
        """An answer that did not come as a stream."""
        try:
            whole = orjson.loads(body)
            for choice in whole.get("choices") or ():
                choice["delta"] = message = choice.pop("message")
                for index, call in enumerate(message.get("tool_calls") or ()):
                    call["index"] = index
        except (ValueError, TypeError, AttributeError, LookupError):
            self.fault = _nonsense()
            return []
        return self.feed([orjson.dumps(whole), _DONE])

    def _read(self, chunk: Any, texts: list[str], outputs: list[Output]) -> None:
        """Called for every token."""
        if (error := chunk.get("error")) is not None:
            raise told(error, self._secrets)
        if (usage := chunk.get("usage")) is not None:
            usage.get("prompt_tokens")  # else it is none
            self._usage = usage
        choices = chunk.get("choices")
        if not choices:
            return
        choice = choices[0]
        if (delta := choice.get("delta")) is not None:
            thought = delta.get("reasoning_content") or delta.get("reasoning")
            if thought and isinstance(thought, str):
                self._tell(texts, outputs)
                self._count(thought)
                self._thoughts += 1
                outputs.append(ReasoningDelta(thought.replace("\0", "")))
            if content := delta.get("content"):
                self._count(content)
                texts.append(content)
            if refusal := delta.get("refusal"):
                self._is_refusal = True
                self._count(refusal)
                texts.append(refusal)
            for call in delta.get("tool_calls") or ():
                self._calls.add(call)
        if reason := choice.get("finish_reason"):
            self._reason = str(reason)

    def _count(self, text: Any) -> None:
        if not isinstance(text, str):
            raise TypeError
        self._size += len(text)
        if self._size > MAX_ANSWER_CHARS:
            raise broken("the model's server sends an answer without end")
        self._tokens += 1

    def _tell(self, texts: list[str], outputs: list[Output]) -> None:
        if texts:
            text = "".join(texts).replace("\0", "")
            deltas = self._splitter.feed(text)
            if thought := sum(len(delta) for delta in deltas if type(delta) is ReasoningDelta):
                self._thoughts += math.ceil(len(texts) * thought / len(text))
            texts.clear()
            outputs += self._noted(deltas)

    def _noted(self, deltas: list[Delta]) -> list[Delta]:
        """The same, after a look for refusals."""
        for delta in deltas:
            if type(delta) is TextDelta and len(self._beginning) < REFUSAL_CHARS:
                self._beginning += delta[: REFUSAL_CHARS - len(self._beginning)]
        return deltas

    def held(self) -> list[Delta]:
        """Text that was held back when the answer ended."""
        return self._noted(self._splitter.finish())

    def finish(self) -> tuple[list[Output], Finished]:
        """The last things to say, when the stream has ended. Raises Fault when it has not ended well."""
        reason = self._reason or ("stop" if self.is_done and self.has_begun else None)
        if reason is None:
            raise broken("the model's server broke off its answer")
        if reason == "content_filter":
            raise Fault(
                GenerationFailed("a filter of the model's server stopped the answer", code="content_filter")
            )
        if reason in _FAILED:
            raise broken("the model's server gave up on its answer")
        is_cut = reason in _LENGTH
        outputs: list[Output] = [*self.held()]
        calls = self._calls.calls(whole_only=is_cut)
        if not calls and self._refuses():
            error = GenerationFailed("the model refuses to answer this", code="refused_by_model")
            return outputs, Finished(FinishReason.ERROR, self.usage(), error)
        end = FinishReason.LENGTH if is_cut else FinishReason.STOP
        return [*outputs, *calls], Finished(end, self.usage())

    def _refuses(self) -> bool:
        beginning = self._beginning.replace("’", "'").casefold()
        return self._is_refusal or any(phrase in beginning for phrase in self._refusals)

    def usage(self) -> Usage:
        """The tokens so far, those of earlier attempts included; estimated where the upstream counts none."""
        job, usage = self._job, self._usage
        said = (len(job.emitted) + len(job.reasoning)) // CHARS_PER_TOKEN
        if usage is None:
            chars = sum(message.chars for message in job.messages) if self.has_begun else 0
            asked = chars // CHARS_PER_TOKEN
            return Usage(asked, 0, said + self._tokens, self._thoughts)
        prompt, answer = usage.get("prompt_tokens_details"), usage.get("completion_tokens_details")
        input_tokens = _number(usage.get("prompt_tokens"))
        # DeepSeek has a word of its own.
        cached = _detail(prompt, "cached_tokens") or _number(usage.get("prompt_cache_hit_tokens"))
        output_tokens = said + _number(usage.get("completion_tokens"))
        thoughts = _detail(answer, "reasoning_tokens") or self._thoughts
        return Usage(input_tokens, min(cached, input_tokens), output_tokens, min(thoughts, output_tokens))


def _nonsense() -> Fault:
    return broken("the model's server sends something that is not an answer")


def _detail(details: Any, name: str) -> int:
    return _number(details.get(name)) if isinstance(details, dict) else 0


def _number(value: Any) -> int:
    """A count of tokens, whatever the upstream says."""
    return max(0, min(value, MAX_TOKENS)) if type(value) is int else 0
