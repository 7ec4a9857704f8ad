"""From the pieces of a prompt to its tokens, with the package `tokenizers`.

What people wrote never becomes a special token, and what the model said before is found again as the very
tokens that it said: tokenised anew they may be others, and all that the cache holds behind them would be
lost.
"""

import copy
import hashlib
import itertools
import json
import re
import threading
from array import array
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from internal.generator.prompt import Piece

MAX_REMEMBERED_TOKENS = 4 << 20
"""Bound of what is remembered of earlier answers, in tokens of four bytes."""


class ReplyMemory:
    """The tokens of answers, by all that stood before them and by their text: who has another prompt never
    meets them. The one that was not looked at for longest is forgotten first.

    For any thread.
    """

    def __init__(self, max_tokens: int = MAX_REMEMBERED_TOKENS) -> None:
        self._max_tokens = max_tokens
        self._replies: OrderedDict[bytes, array[int]] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def remember(self, before: "Prefix", text: str, tokens: Sequence[int]) -> None:
        key = before.key(text)
        with self._lock:
            self._size += len(tokens) - len(self._replies.pop(key, ()))
            self._replies[key] = array("i", tokens)
            while self._size > self._max_tokens:
                _, forgotten = self._replies.popitem(last=False)
                self._size -= len(forgotten)

    def find(self, before: "Prefix", text: str) -> Sequence[int] | None:
        key = before.key(text)
        with self._lock:
            if (tokens := self._replies.get(key)) is not None:
                self._replies.move_to_end(key)
            return tokens


class Prefix:
    """What stands before an answer, as a digest that grows with it."""

    def __init__(self, tokens: Sequence[int] = ()) -> None:
        self._digest = hashlib.blake2b(digest_size=16)
        self.add(tokens)

    def add(self, tokens: Sequence[int]) -> None:
        self._digest.update(array("i", tokens).tobytes())

    def key(self, text: str) -> bytes:
        digest = self._digest.copy()
        digest.update(text.encode("utf-8", "surrogatepass"))
        return digest.digest()


class Encoder:
    """Makes tokens. Costs about a microsecond for four characters, most of it without the interpreter's
    lock."""

    def __init__(self, file: Path, memory: ReplyMemory, markup: str) -> None:
        """`file`: the model's tokenizer.json; `markup`: a text with the tokens that dialogues are written
        with."""
        from tokenizers import Tokenizer

        text = file.read_text(encoding="utf-8")
        described = json.loads(text)
        self.memory = memory
        self._first = Tokenizer.from_str(text)
        self._later = Tokenizer.from_str(json.dumps(_without_prefix(described)))
        added = described.get("added_tokens") or ()
        self._added = frozenset(token["content"] for token in added)
        self._reserved = _Reserved(
            token["content"] for token in added if token["special"] or token["content"] in markup
        )

    def special(self, text: str) -> int | None:
        """The token that is written so, if it is one that no text becomes."""
        if text not in self._added:
            return None
        found: int | None = self._first.token_to_id(text)
        return found

    def encode(
        self, pieces: Sequence[Piece], *, continues: bool = False, replies: Collection[str] = ()
    ) -> list[int]:
        """The tokens of a prompt, or (`continues`) of what stands behind one. `replies` are what the model
        said before: each is tokenised by itself, or found again."""
        tokens: list[int] = []
        before = Prefix()
        run: list[Piece] = []

        def flush() -> None:
            more = self._encode(run, continues=continues or bool(tokens))
            before.add(more)
            tokens.extend(more)
            run.clear()

        for piece in pieces:
            if piece.special or piece.text not in replies:
                run.append(piece)
                continue
            flush()
            known = self.memory.find(before, piece.text)
            if known is None:
                run.append(piece)
                flush()
            else:
                before.add(known)
                tokens.extend(known)
        flush()
        return tokens

    def remember(self, prompt: Sequence[int], text: str, tokens: Sequence[int]) -> None:
        """An answer to `prompt`. Only where the tokens are the text: the library says nothing of some."""
        if self._first.decode(list(tokens), skip_special_tokens=False).lstrip() == text.lstrip():
            self.memory.remember(Prefix(prompt), text, tokens)

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
        while (found := self._reserved.find(text, at)) is not None:
            start, end = found
            place = bisect_right(ends, start)
            if run[place].special and end <= ends[place]:
                at = end
                continue
            at = start + 1
            yield text[begin:at]
            begin = at
        if begin < len(text):
            yield text[begin:]


class _Reserved:
    """Finds special tokens in a text: the first one, and of several the longest, as tokenizers do.

    Not one expression of all of them: to try thousands at every place takes seconds, all of them with the
    interpreter's lock.
    """

    def __init__(self, contents: Iterable[str]) -> None:
        # White space is nobody's markup, though some tokenizers have tokens for much of it.
        self._contents = frozenset(content for content in contents if not content.isspace())
        self._sizes = sorted({len(content) for content in self._contents}, reverse=True)
        firsts = "".join(sorted({re.escape(content[0]) for content in self._contents}))
        self._first = re.compile(f"[{firsts}]" if firsts else "(?!)")

    def find(self, text: str, at: int) -> tuple[int, int] | None:
        """Where it begins and ends, from `at` on."""
        for match in self._first.finditer(text, at):
            start = match.start()
            for size in self._sizes:
                found = text[start : start + size]
                if found in self._contents:
                    return start, start + len(found)
        return None


def _without_prefix(described: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer, which puts no space before a text: in the middle of a prompt there is none."""
    changed = copy.deepcopy(described)
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
