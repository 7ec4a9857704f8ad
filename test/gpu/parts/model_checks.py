"""Models and caches of fewer bits, and a model that guesses for another: what they say."""

from engine import greedy, running
from engine_checks import Comparison, library_of
from library import Library
from outcome import Notebook
from questions import CAPITAL, Reader, different
from task import Task

from internal.biz.errors import SluiceError
from internal.biz.generation import FinishReason

CACHES = ("q8", "q6", "q4")


async def quantised(task: Task, book: Notebook) -> None:
    if task.quantised is None:
        book.skip("a quantised model answers", "there is none: --quantised DIR")
        return
    async with running(task.load(path=task.quantised)) as engine:
        answer = await engine.ask(CAPITAL, greedy(24))
        passed = "Paris" in answer.text and answer.reason is not FinishReason.ERROR
        book.check("a quantised model answers", passed, answer.text or str(answer.end))


async def caches(task: Task, book: Notebook) -> None:
    if not task.is_gpu:
        book.skip("caches of fewer bits", "they need kernels that only GPUs have")
        return
    for cache in CACHES:
        name = f"a model with a cache of {cache} answers"
        try:
            await _with_cache(cache, name, task, book)
        except SluiceError as error:
            book.check(name, False, error.message)


async def _with_cache(cache: str, name: str, task: Task, book: Notebook) -> None:
    async with running(task.load(cache=cache)) as engine:
        answer = await engine.ask(CAPITAL, greedy(24))
        # With heads as small as the bundled model's, four bits may cost the answer, but not its sense.
        sense = ("Paris", "France", "capital") if cache == "q4" else ("Paris",)
        passed = any(word in answer.text for word in sense)
        book.check(name, passed, answer.text or str(answer.end))


async def draft(task: Task, book: Notebook) -> None:
    asked, tokens = different(task.sizes.prompts, "what is guessed"), task.sizes.compared_tokens
    async with running(task.drafted()) as engine:
        with_draft = [(await engine.ask(question, greedy(tokens))).text for question in asked]
    reader = Reader(task.model)
    async with running(task.load()) as engine:
        library: Library = library_of(engine, task)
        told = Comparison(library)
        for question, text in zip(asked, with_draft, strict=True):
            prompt = reader.tokens(question)
            told.add(prompt, library.answers([prompt], tokens).answers[0], text)
    book.check("with a draft model it says what it says without", told.passed, str(told))
