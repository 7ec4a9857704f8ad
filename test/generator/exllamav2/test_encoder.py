"""Prompts in tokens, with real tokenizers."""

import json
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from internal.generator.exllamav2.encoder import Encoder, Prefix, ReplyMemory
from internal.generator.prompt import Piece

USER, END = Piece("<user>", True), Piece("<end>", True)


@pytest.fixture
def encoder(tokenizer_file: Path) -> Encoder:
    return Encoder(tokenizer_file, ReplyMemory(), "")


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
    encoder = Encoder(tokenizer_file, ReplyMemory(), "")
    pieces = [Piece(text, is_special) for text, is_special in parts]
    tokens = encoder.encode(pieces)
    assert written(tokenizer_file, tokens) == "".join(text for text, _ in parts)
    meant = sum(text.count("<user>") + text.count("<end>") for text, is_special in parts if is_special)
    assert special(tokens) == meant


def test_an_answer_is_found_again_as_the_tokens_that_it_was(encoder: Encoder) -> None:
    """In the dialogue in which it was said, and nowhere else."""
    dialogue = [USER, Piece("hi", False), END]
    before, reply = encoder.encode(dialogue), Piece("so it is", False)
    odd = [7, 7, 7]
    encoder.memory.remember(Prefix(before), reply.text, odd)
    asked = [*dialogue, reply, END]
    assert encoder.encode(asked, replies={reply.text}) == [*before, *odd, *encoder.encode([END])]
    assert 7 not in encoder.encode(asked)  # nobody says that the model has said it
    other = [USER, Piece("ho", False), END, reply, END]
    assert 7 not in encoder.encode(other, replies={reply.text})


def test_what_the_model_said_is_tokenised_alike_whether_it_is_remembered_or_not(encoder: Encoder) -> None:
    pieces = [USER, Piece("hi", False), END, Piece("so it is", False), END]
    assert encoder.encode(pieces, replies={"so it is"}) == encoder.encode(pieces)


def test_only_tokens_that_are_the_text_are_remembered(encoder: Encoder) -> None:
    """Of special tokens the library says nothing: they would come back as if they had been said."""
    prompt, text = encoder.encode([USER]), "OK"
    plain = encoder.encode([Piece(text, False)])
    user = encoder.special("<user>")
    assert user is not None
    encoder.remember(prompt, text, [*plain, user])
    assert encoder.memory.find(Prefix(prompt), text) is None
    encoder.remember(prompt, text, plain)
    assert list(encoder.memory.find(Prefix(prompt), text) or ()) == plain


def test_memory_is_bounded_and_forgets_what_nobody_looked_at() -> None:
    memory, start = ReplyMemory(max_tokens=10), Prefix()
    memory.remember(start, "one", [1] * 4)
    memory.remember(start, "two", [2] * 4)
    assert memory.find(start, "one") is not None
    memory.remember(start, "three", [3] * 4)
    assert memory.find(start, "two") is None
    assert memory.find(start, "one") is not None
    memory.remember(start, "one", [5] * 2)
    assert list(memory.find(start, "one") or ()) == [5, 5]
    memory.remember(start, "too long", [1] * 11)
    assert all(memory.find(start, text) is None for text in ("one", "three", "too long"))


def test_thousands_of_special_tokens_are_looked_for_quickly(tokenizer_file: Path, tmp_path: Path) -> None:
    """Each at its place: not all of them at every place, with the interpreter's lock."""
    described = json.loads(tokenizer_file.read_text())
    some = described["added_tokens"][0]
    described["added_tokens"] += [{**some, "id": 260 + n, "content": f"<unused{n}>"} for n in range(6000)]
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(described))
    encoder = Encoder(file, ReplyMemory(), "")
    typed = "<" * 20_000 + "<unused17>"
    begun = time.process_time()
    tokens = encoder.encode([USER, Piece(typed, False)])
    assert time.process_time() - begun < 2.0  # 0.05 here; in one expression 1.3 for each 20,000
    assert special(tokens) == 1


def test_white_space_and_tags_that_are_tokens_of_their_own_stay_so(
    tokenizer_file: Path, tmp_path: Path
) -> None:
    """Only what dialogues are written with is kept from people."""
    described = json.loads(tokenizer_file.read_text())
    some = {**described["added_tokens"][0], "special": False}
    extra = ["\n\n", "<table>", "<think>"]
    described["added_tokens"] += [{**some, "id": 260 + n, "content": it} for n, it in enumerate(extra)]
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(described))
    tokens = Encoder(file, ReplyMemory(), "a <think> b").encode([Piece("x\n\n<table><think>", False)])
    assert [token for token in tokens if token >= 260] == [260, 261]


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
    encoder = Encoder(file, ReplyMemory(), "")
    assert encoder.encode([Piece("a", False)]) == [2]
    assert encoder.encode([Piece("a", False)], continues=True) == [3]
