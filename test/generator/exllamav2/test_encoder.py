"""Prompts in tokens, with real tokenizers."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from internal.generator.exllamav2.encoder import Encoder, ReplyMemory
from internal.generator.prompt import Piece

USER, END = Piece("<user>", True), Piece("<end>", True)


@pytest.fixture
def encoder(tokenizer_file: Path) -> Encoder:
    return Encoder(tokenizer_file, ReplyMemory())


def written(tokenizer_file: Path, tokens: list[int]) -> str:
    text: str = Tokenizer.from_file(str(tokenizer_file)).decode(tokens, skip_special_tokens=False)
    return text


def special(tokens: list[int]) -> int:
    return sum(token >= 256 for token in tokens)


@pytest.mark.parametrize(
    "typed", ["<end>", "a<end>b<user>", "<<end>end>", "<user", "<", "<en<end>d>", "<end>" * 50]
)
def test_what_people_type_is_text(encoder: Encoder, tokenizer_file: Path, typed: str) -> None:
    tokens = encoder.encode([USER, Piece(typed, False), END])
    assert special(tokens) == 2
    assert written(tokenizer_file, tokens) == f"<user>{typed}<end>"


def test_what_people_type_makes_no_special_token_with_what_stands_around_it(encoder: Encoder) -> None:
    assert special(encoder.encode([Piece("<us", True), Piece("er>", False)])) == 0
    assert special(encoder.encode([Piece("<us", False), Piece("er>", True)])) == 0


@given(st.lists(st.tuples(st.text("<>enduser x", max_size=12), st.booleans()), max_size=6))
def test_nothing_is_lost_and_nothing_typed_is_special(
    tokenizer_file: Path, parts: list[tuple[str, bool]]
) -> None:
    encoder = Encoder(tokenizer_file, ReplyMemory())
    pieces = [Piece(text, is_special) for text, is_special in parts]
    tokens = encoder.encode(pieces)
    assert written(tokenizer_file, tokens) == "".join(text for text, _ in parts)
    meant = sum(text.count("<user>") + text.count("<end>") for text, is_special in parts if is_special)
    assert special(tokens) == meant


def test_an_answer_is_found_again_as_the_tokens_that_it_was(encoder: Encoder) -> None:
    odd = [7, 300, 7]
    encoder.memory.remember("so it is", odd)
    reply = Piece("so it is", False)
    tokens = encoder.encode([USER, Piece("hi", False), END, reply, END])
    assert tokens[4:7] == odd
    assert encoder.encode([Piece("so it is", True)]) != odd  # what a template says was never an answer


def test_memory_is_bounded_and_forgets_what_nobody_looked_at() -> None:
    memory = ReplyMemory(max_tokens=10)
    memory.remember("one", [1] * 4)
    memory.remember("two", [2] * 4)
    assert memory.find("one") is not None
    memory.remember("three", [3] * 4)
    assert memory.find("two") is None
    assert memory.find("one") is not None
    memory.remember("one", [5] * 2)
    assert list(memory.find("one") or ()) == [5, 5]
    memory.remember("too long", [1] * 11)
    assert all(memory.find(text) is None for text in ("one", "three", "too long"))


def test_special_tokens_are_known_by_their_text(encoder: Encoder) -> None:
    assert encoder.special("<end>") == 259
    assert encoder.special("end") is None


def test_a_tokenizer_that_puts_a_space_before_a_text_does_so_once(tmp_path: Path) -> None:
    """As those do that were made with SentencePiece."""
    words = ["<unk>", "▁", "▁a", "a", "b", "▁b", "<end>"]
    file = tmp_path / "tokenizer.json"
    file.write_text(
        json.dumps(
            {
                "version": "1.0",
                "added_tokens": [
                    {
                        "id": 6,
                        "content": "<end>",
                        "single_word": False,
                        "lstrip": False,
                        "rstrip": False,
                        "normalized": False,
                        "special": True,
                    }
                ],
                "pre_tokenizer": {
                    "type": "Metaspace",
                    "replacement": "▁",
                    "prepend_scheme": "always",
                    "split": True,
                },
                "model": {
                    "type": "WordLevel",
                    "vocab": {word: number for number, word in enumerate(words)},
                    "unk_token": "<unk>",
                },
            }
        )
    )
    encoder = Encoder(file, ReplyMemory())
    assert encoder.encode([Piece("a", False)]) == [2]
    assert encoder.encode([Piece("a", False)], continues=True) == [3]
