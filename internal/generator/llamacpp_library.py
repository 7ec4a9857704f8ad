"""The package `xllamacpp`: loads a model, makes tokens, completes prompts. Knows requests, not jobs.

It blocks one thread for each completion, and calls back in that thread. For what its Python interface does
not offer it is asked over the loopback port that it always opens.

Source: https://github.com/ggml-org/llama.cpp/tree/master/tools/server (requests and events)
"""

import functools
import http.client
import json
import os
import secrets
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from internal.biz.errors import GenerationFailed

_BATCH_TOKENS = 64
"""How many tokens one step prefills: a long prompt stalls the others 0.8 s at most, not 9.7 s."""
_CACHED_CHARS = 4096
_CACHED_PIECES = 4096
"""Bounds of the pieces of prompts whose tokens are remembered: 64 MiB at most, usually a few."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the model's file says of itself."""

    chat_template: str
    bos_token: str
    eos_token: str


class LlamaCpp:
    """A loaded model. All methods block."""

    def __init__(self, path: Path, *, slots: int, context: int, threads: int) -> None:
        """`context`: tokens of each slot; `threads` 0: all cores but one. Raises GenerationFailed."""
        try:
            import xllamacpp
        except ImportError as error:
            raise GenerationFailed(
                f"llama.cpp cannot be loaded ({error}); on Debian: apt-get install libgomp1",
                code="engine_missing",
            ) from error
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = context * slots
        params.n_parallel = slots
        params.n_batch = params.n_ubatch = _BATCH_TOKENS
        # With every core busy, the threads of a step wait for one another and all of it collapses.
        count = threads or max(1, (os.cpu_count() or 2) - 1)
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = count
        params.warmup = False
        params.cache_ram_mib = 0
        params.verbosity = -1
        # Nobody but us shall use the port.
        self._api_key = secrets.token_urlsafe(32)
        params.api_keys = [self._api_key]
        try:
            self._server = xllamacpp.Server(params)
        except Exception as error:
            raise GenerationFailed(
                f"llama.cpp cannot load {path}: {error}", code="model_file_invalid"
            ) from error
        url = urlsplit(self._server.listening_address)
        self._address = (url.hostname or "127.0.0.1", url.port or 0)
        self._cached_tokens = functools.lru_cache(_CACHED_PIECES)(self._ask_tokens)

    def close(self) -> None:
        """Give back the memory of the model, once nothing runs; nothing can be asked any more. It would not
        go by itself: what is remembered refers to this object, and the collector is spared."""
        del self._server, self._cached_tokens

    def facts(self) -> ModelFacts:
        props = self._ask("/props")
        return ModelFacts(props["chat_template"], props["bos_token"], props["eos_token"])

    def tokens(self, text: str, *, special: bool) -> Sequence[int]:
        """The tokens of a text, special ones only if `special`. Those of earlier turns are remembered: a
        dialogue repeats them all."""
        if len(text) > _CACHED_CHARS:
            return self._ask_tokens(text, special)
        return self._cached_tokens(text, special)

    def _ask_tokens(self, text: str, special: bool) -> Sequence[int]:
        body = {"content": text, "parse_special": special, "add_special": False}
        return array("i", self._ask("/tokenize", body)["tokens"])

    def complete(self, request: dict[str, Any], callback: Callable[[dict[str, Any]], bool]) -> None:
        """Call back with each event of a completion, until it ends or `callback` returns True."""
        self._server.handle_completions(request, callback)

    def _ask(self, path: str, body: object = None) -> Any:
        connection = http.client.HTTPConnection(*self._address, timeout=60)
        try:
            method, data = ("GET", None) if body is None else ("POST", json.dumps(body).encode())
            headers = {"Authorization": f"Bearer {self._api_key}", "Content-Type": "application/json"}
            connection.request(method, path, data, headers)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()
