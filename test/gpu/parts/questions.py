"""What is asked, so that nobody asks the same twice and half of it is in somebody's cache by chance."""

from collections.abc import Sequence
from pathlib import Path

from internal.biz.models import Message, Role
from internal.generator.exllamav2.encoder import Encoder, ReplyMemory
from internal.generator.exllamav2.host import MARKUP
from internal.generator.exllamav2.model_folder import ModelFolder
from internal.generator.exllamav2.options import PAGE_TOKENS
from internal.generator.prompt import ChatTemplate

CAPITAL = "What is the capital of France?"
STORY = "Tell me a long story about a dog who sails around the world."
SENTENCE = "The cat sat on the mat, and the dog lay by the fire. "
_SUBJECTS = (
    "a lighthouse keeper",
    "the history of bread",
    "how rivers find the sea",
    "a town without clocks",
    "why the sky is blue",
    "two friends on a train",
    "the life of a honey bee",
    "a letter that came late",
)


def different(count: int, series: str) -> list[str]:
    """As many questions; those of another `series` begin in another way."""
    return [
        f"Number {number} of {series}. Write about {_SUBJECTS[number % len(_SUBJECTS)]}, at length."
        for number in range(1, count + 1)
    ]


class Reader:
    """Makes of a question the tokens that Sluice makes of it."""

    def __init__(self, path: Path) -> None:
        folder = ModelFolder.read(path)
        self.stop_tokens = sorted(folder.stop_tokens)
        self._encoder = Encoder(path / "tokenizer.json", ReplyMemory(), folder.chat_template + MARKUP)
        self._template = ChatTemplate(
            folder.chat_template, bos_token=folder.bos_token, eos_token=folder.eos_token
        )

    def tokens(self, question: str) -> list[int]:
        return self._encoder.encode(self._template.render([Message(Role.USER, question)]))

    def all_tokens(self, questions: Sequence[str]) -> list[list[int]]:
        return [self.tokens(question) for question in questions]

    def near_the_end_of_a_page(self, series: str) -> str:
        """A question whose answer does not fit into the page of the cache that it begins in, nor into the
        next one, though it is not long."""
        beginning = f"Number {series}. Go on with this text. "
        for count in range(1, 400):
            question = beginning + SENTENCE + "And " * count
            if len(self.tokens(question)) % PAGE_TOKENS >= PAGE_TOKENS - 8:
                return question
        raise AssertionError("no such question")
