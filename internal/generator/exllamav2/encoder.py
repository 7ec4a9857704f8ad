"""From the pieces of a prompt to its tokens, with the package `tokenizers`.

What people wrote never becomes a special token, and what the model said before is found again as the very
tokens that it said: tokenised anew they may be others, and all that the cache holds behind them would be
lost.
"""

import hashlib
import itertools
import json
import re
import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from internal.generator.prompt import Piece

MAX_REMEMBERED_TOKENS = 4 << 20
"""Bound of what is remembered of earlier answers, in tokens of four bytes."""


class ReplyMemory:
    """The tokens of answers, by their text. The one that was not looked at for longest is forgotten first.

    For any thread.
    """

    def __init__(self, max_tokens: int = MAX_REMEMBERED_TOKENS) -> None:
        self._max_tokens = max_tokens
        self._replies: OrderedDict[bytes, array[int]] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def remember(self, text: str, tokens: Sequence[int]) -> None:
        key = _key(text)
        with self._lock:
            self._size += len(tokens) - len(self._replies.pop(key, ()))
            self._replies[key] = array("i", tokens)
            while self._size > self._max_tokens:
                _, forgotten = self._replies.popitem(last=False)
                self._size -= len(forgotten)

    def find(self, text: str) -> Sequence[int] | None:
        key = _key(text)
        with self._lock:
            if (tokens := self._replies.get(key)) is not None:
                self._replies.move_to_end(key)
            return tokens


def _key(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class Encoder:
    """Makes tokens. Costs about a microsecond for four characters, most of it without the interpreter's
    lock."""

    def __init__(self, file: Path, memory: ReplyMemory) -> None:
        """`file`: the model's tokenizer.json."""
        from tokenizers import Tokenizer

        described = json.loads(file.read_text(encoding="utf-8"))
        self._first = Tokenizer.from_str(json.dumps(described))
        self._later = Tokenizer.from_str(json.dumps(_without_prefix(described)))
        self.memory = memory
        added = [token["content"] for token in described.get("added_tokens") or ()]
        # The longest first, as the tokenizer finds them.
        self._added = re.compile(
            "|".join(re.escape(it) for it in sorted(added, key=len, reverse=True)) or "(?!)"
        )

    @property
    def vocabulary_size(self) -> int:
        return int(self._first.get_vocab_size())

    def special(self, text: str) -> int | None:
        """The token that is written so, if it is one that no text becomes."""
        if self._added.fullmatch(text) is None:
            return None
        found: int | None = self._first.token_to_id(text)
        return found

    def encode(self, pieces: Sequence[Piece], *, continues: bool = False) -> list[int]:
        """The tokens of a prompt, or (`continues`) of what stands behind one."""
        tokens: list[int] = []
        run: list[Piece] = []
        for piece in pieces:
            known = None if piece.special else self.memory.find(piece.text)
            if known is None:
                run.append(piece)
                continue
            tokens += self._encode(run, continues=continues or bool(tokens))
            tokens += known
            run = []
        return tokens + self._encode(run, continues=continues or bool(tokens))

    def _encode(self, run: Sequence[Piece], *, continues: bool) -> list[int]:
        """Tokens of pieces as of one text: words do not end where pieces do."""
        parts = list(self._parts(run))
        later = parts if continues else parts[1:]
        tokens: list[int] = []
        if not continues and parts:
            tokens += self._first.encode(parts[0], add_special_tokens=False).ids
        for encoding in self._later.encode_batch(later, add_special_tokens=False) if later else ():
            tokens += encoding.ids
        return tokens

    def _parts(self, run: Sequence[Piece]) -> Iterator[str]:
        """The text, cut behind the first character of whatever would be a special token without being meant
        as one."""
        text = "".join(piece.text for piece in run)
        ends = list(itertools.accumulate(len(piece.text) for piece in run))
        begin = at = 0
        while (match := self._added.search(text, at)) is not None:
            place = bisect_right(ends, match.start())
            if run[place].special and match.end() <= ends[place]:
                at = match.end()
                continue
            at = match.start() + 1
            yield text[begin:at]
            begin = at
        if begin < len(text):
            yield text[begin:]


def _without_prefix(described: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer, which puts no space before a text: in the middle of a prompt there is none."""
    changed: dict[str, Any] = json.loads(json.dumps(described))
    normalizer = changed.get("normalizer")
    if normalizer is not None:
        several = normalizer.get("normalizers", [normalizer])
        kept = [it for it in several if it.get("type") != "Prepend"]
        changed["normalizer"] = {"type": "Sequence", "normalizers": kept} if kept else None
    before = changed.get("pre_tokenizer") or {}
    for step in before.get("pretokenizers", [before]):
        if step.get("type") == "Metaspace":
            step["prepend_scheme"] = "never"
        if "add_prefix_space" in step:
            step["add_prefix_space"] = False
    return changed
