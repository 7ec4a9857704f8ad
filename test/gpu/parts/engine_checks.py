"""What the engine says on a GPU, held against what it should say.

Kernels may round otherwise when the batch, or the way a token came into the cache, is another one. So two
greedy answers may part where two tokens are nearly as likely as each other, and from there on they are
different texts. Such a parting is told, and is none of our faults; any other one fails.
"""

import json
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from engine import Answer, Engine, greedy, running
from library import Library, Spoken
from outcome import Notebook
from questions import CAPITAL, SENTENCE, STORY, Reader, different
from task import Task

from internal.biz.generation import FinishReason
from internal.biz.models import Message, OutputFormat, Role
from internal.generator.exllamav2.packages import why_not_paged

AGREEING_SHARE = 0.5
"""Of greedy answers, how many have to be the same to the last token where rounding may differ."""
NEAR_TIE = 0.8
"""How likely the second choice has to be, by the likelihood of the first one, to be chosen by a rounding."""
BATCH = 4

_CITY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"enum": ["London", "Paris", "Rome"]},
        "is_capital": {"type": "boolean"},
        "letters": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "is_capital", "letters"],
    "additionalProperties": False,
}


class Comparison:
    """Of answers that should be the same to those that the library gave."""

    def __init__(self, library: Library, *, goes_on: bool = False) -> None:
        """`goes_on`: they were not allowed to end by themselves."""
        self._library = library
        self._goes_on = goes_on
        self.same = 0
        self.ties: list[float] = []
        """For each that parted, how near a tie it was."""

    def add(self, prompt: Sequence[int], alone: Spoken, said: str) -> None:
        if said == alone.text:
            self.same += 1
            return
        before = [*prompt, *alone.tokens[: _parting(alone, said)]]
        self.ties.append(self._library.odds(before, goes_on=self._goes_on))

    @property
    def passed(self) -> bool:
        count = self.same + len(self.ties)
        return self.same >= AGREEING_SHARE * count and all(tie >= NEAR_TIE for tie in self.ties)

    def __str__(self) -> str:
        told = f"{self.same} of {self.same + len(self.ties)} to the last token"
        ties = ", ".join(f"{tie:.2f}" for tie in self.ties)
        return f"{told}; the others part where the second choice is {ties} as likely" if ties else told


def _parting(alone: Spoken, said: str) -> int:
    """How many tokens of `alone` were said before the other answer went another way."""
    text = ""
    for tokens_before, piece in alone.texts:
        if not said.startswith(text + piece):
            return tokens_before
        text += piece
    return len(alone.tokens)


async def answers_come_together(engine: Engine, library: Library, task: Task, book: Notebook) -> None:
    import torch

    why = why_not_paged(torch)
    book.check("answers come together (flash-attn)", engine.model.is_paged, why or f"{engine.model.slots}")


async def together_as_alone(engine: Engine, library: Library, task: Task, book: Notebook) -> None:
    tokens, asked = task.sizes.compared_tokens, different(task.sizes.prompts, "a batch")
    reader = Reader(task.model)
    alone = [library.answers([reader.tokens(it)], tokens).answers[0] for it in asked]
    told = Comparison(library)
    for begin in range(0, len(asked), BATCH):
        answers = await engine.ask_together(asked[begin : begin + BATCH], greedy(tokens))
        for question, answer, spoken in zip(
            asked[begin : begin + BATCH], answers, alone[begin : begin + BATCH], strict=True
        ):
            told.add(reader.tokens(question), spoken, answer.text)
    book.check(f"batches of {BATCH} say what the library alone says one by one", told.passed, str(told))


async def a_cancelled_answer_gives_its_pages_back(
    engine: Engine, library: Library, task: Task, book: Notebook
) -> None:
    model = engine.model
    other = engine.submit(STORY, greedy(300, least=300))
    await other.wait(steps=1)
    free_before = model.free_pages
    cancelled = engine.submit(different(1, "what is cancelled")[0], greedy(900, least=900))
    await cancelled.wait(steps=3)
    free_while = model.free_pages
    steps_before, other_before = cancelled.steps, other.steps
    cancelled_at_s = time.perf_counter()
    engine.generator.cancel(cancelled.job)
    await cancelled.wait()
    took_ms = (cancelled.ended_at_s - cancelled_at_s) * 1000
    steps = max(cancelled.steps - steps_before, other.steps - other_before)
    free_after = model.free_pages
    goes_on = other.end is None
    engine.generator.cancel(other.job)
    await other.wait()
    book.check(
        "a cancelled answer ends within a step and gives its pages back",
        cancelled.reason is FinishReason.CANCELLED
        and steps <= 2  # one was under way, and may have been heard of only now
        and free_while < free_before <= free_after
        and goes_on
        and model.free_pages == model.pages,
        f"after {took_ms:.1f} ms and {steps} steps; free pages {free_before} → {free_while} → {free_after}, "
        f"in the end {model.free_pages} of {model.pages}",
    )


async def a_second_turn_is_in_the_cache(engine: Engine, library: Library, task: Task, book: Notebook) -> None:
    beginning = Message(Role.USER, "Listen. " + SENTENCE * 24 + "What did the cat do?")
    first = await engine.ask([beginning], greedy(task.sizes.compared_tokens))
    dialogue = [beginning, Message(Role.ASSISTANT, first.text), Message(Role.USER, "And the dog?")]
    second = await engine.ask(dialogue, greedy(4))
    cached, whole = second.usage.cached_tokens, second.usage.input_tokens
    book.check(
        "turn 2 of a chat finds turn 1 in the cache",
        # The last token that was said is not in it, and what stands around the answer is the template's.
        cached >= first.usage.input_tokens - 8,
        f"{cached} of {whole} tokens; turn 1 had {first.usage.input_tokens} + {first.usage.output_tokens}",
    )


async def a_long_answer_comes_in_parts_unnoticed(
    engine: Engine, library: Library, task: Task, book: Notebook
) -> None:
    tokens, reader = task.sizes.long_tokens, Reader(task.model)
    told, complete = Comparison(library, goes_on=True), True
    for number in range(task.sizes.long_prompts):
        question = reader.near_the_end_of_a_page(f"{number}")
        prompt = reader.tokens(question)
        alone = library.answers([prompt], tokens, least=tokens).answers[0]
        answer = await engine.ask(question, greedy(tokens, least=tokens))
        complete = complete and answer.usage.output_tokens == tokens == len(alone.tokens)
        told.add(prompt, alone, answer.text)
    # Few and long: each one is likely to meet a near tie somewhere.
    passed = complete and all(tie >= NEAR_TIE for tie in told.ties)
    book.check(f"{tokens} tokens in several parts are what one job says", passed, str(told))


async def json_follows_its_schema(engine: Engine, library: Library, task: Task, book: Notebook) -> None:
    form = OutputFormat(schema=_CITY, name="city")
    question = "Which city is the capital of France? Answer in JSON."
    answer = await engine.ask(question, greedy(80, output_format=form))
    try:
        said = json.loads(answer.text)
        follows = set(said) == set(_CITY["required"]) and said["city"] in ("London", "Paris", "Rome")
    except (ValueError, TypeError):
        follows = False
    book.check("an answer follows its JSON schema", follows and _is_whole(answer), answer.text)


async def an_answer_ends_before_a_stop_string(
    engine: Engine, library: Library, task: Task, book: Notebook
) -> None:
    free = await engine.ask(CAPITAL, greedy(16))
    words = free.text.split()
    stop = " " + " ".join(words[2:4])
    answer = await engine.ask(CAPITAL, greedy(16, stop=(stop,)))
    book.check(
        "an answer ends before a stop string",
        len(words) > 3 and _is_whole(answer) and answer.text == free.text.partition(stop)[0],
        f"{free.text!r}, with {stop!r}: {answer.text!r}",
    )


async def what_is_known_is_said(engine: Engine, library: Library, task: Task, book: Notebook) -> None:
    answer = await engine.ask(CAPITAL, greedy(24))
    book.check(CAPITAL, "Paris" in answer.text, answer.text)


def _is_whole(answer: Answer) -> bool:
    return answer.reason is FinishReason.STOP


CHECKS: tuple[Callable[[Engine, Library, Task, Notebook], Awaitable[None]], ...] = (
    what_is_known_is_said,
    answers_come_together,
    together_as_alone,
    a_cancelled_answer_gives_its_pages_back,
    a_second_turn_is_in_the_cache,
    json_follows_its_schema,
    an_answer_ends_before_a_stop_string,
    a_long_answer_comes_in_parts_unnoticed,
)


async def run(task: Task, book: Notebook) -> None:
    """Each for itself: one that breaks has failed, and the others are tried all the same."""
    async with running(task.load()) as engine:
        library = library_of(engine, task)
        for check in CHECKS:
            try:
                await check(engine, library, task, book)
            except Exception as error:
                book.check(check.__name__.replace("_", " "), False, f"{type(error).__name__}: {error}")


def library_of(engine: Engine, task: Task) -> Library:
    """The library's own generator, which is used while the engine has nothing to do."""
    return Library(engine.model._generator, Reader(task.model).stop_tokens)
