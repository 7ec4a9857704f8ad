"""A scripted exllamav2: it does with tokens and pages what the library does, and says what the test wrote.

What it does is read from version 0.3.2, its traps included: it reserves pages for all that a job may say,
keeps text back at a stop token, cuts characters where their bytes are, and takes jobs in the order in which
they come. A token is a byte, or one of the special tokens.
"""

import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import ByteLevel

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SPECIAL = ("<system>", "<user>", "<assistant>", "<end>")
PAGE = 256
END = "<end>"


class Tensor:
    """As much of a tensor as is needed: rows of numbers."""

    def __init__(self, rows: Sequence[Sequence[int]]) -> None:
        self.rows = [list(row) for row in rows]

    def tolist(self) -> list[list[int]]:
        return [list(row) for row in self.rows]

    def item(self) -> int:
        ((value,),) = self.rows
        return value


class OutOfMemoryError(RuntimeError):
    """As torch's."""


class Job:
    """As ExLlamaV2DynamicJob."""

    def __init__(
        self,
        input_ids: Tensor,
        max_new_tokens: int,
        gen_settings: Any = None,
        seed: int | None = None,
        stop_conditions: Sequence[int] = (),
        filters: Sequence[Any] | None = None,
        identifier: Any = None,
        min_new_tokens: int = 0,
        return_logits: bool = False,
    ) -> None:
        (tokens,) = input_ids.rows
        assert tokens, "Input IDs cannot be empty."
        self.sequence = list(tokens)
        self.prompt_tokens = len(tokens)
        self.max_new_tokens = max_new_tokens
        self.gen_settings = gen_settings
        self.stop_tokens = set(stop_conditions)
        self.filters = list(filters or ())
        self.identifier = identifier
        self.min_new_tokens = min_new_tokens
        self.rng = random.Random(seed)
        self.new_tokens = 0
        self.read = 0
        self.held: list[int] = []
        self.cached_pages = 0
        self.cached_tokens = 0
        self.generator: Any = None

    @property
    def pages(self) -> int:
        return -(-(self.prompt_tokens + self.max_new_tokens) // PAGE)

    def current_new_pages_required(self) -> int:
        return self.pages


class Pool:
    """Does at once what it is given to do."""

    def submit(self, work: Callable[[], Any]) -> "Future[Any]":
        done: Future[Any] = Future()
        done.set_result(work())
        return done


class Generator:
    """As ExLlamaV2DynamicGenerator. `library` says what is generated."""

    page_size = PAGE

    def __init__(self, library: "ScriptedLibrary", **options: Any) -> None:
        self.library = library
        self.options = options
        self.model, self.draft_model = options["model"], options["draft_model"]
        self.max_batch_size = options["max_batch_size"]
        self.max_chunk_size = options["max_chunk_size"]
        self.paged = options["paged"]
        self.drafts = options["num_draft_tokens"]
        self.max_pages = options["cache"].max_seq_len // PAGE
        self.pending_jobs: list[Job] = []
        self.active_jobs: list[Job] = []
        self.current_loras: Any = None
        self.filter_queue: list[tuple[Any, bool]] = []
        library.generator = self
        self.reset_page_table()

    def reset_page_table(self) -> None:
        self.unreferenced_pages = list(range(self.max_pages))
        self.known: list[list[int]] = []

    def warmup(self) -> None:
        self.library.calls.append("warmup")

    def set_loras(self, loras: Any) -> None:
        assert not self.pending_jobs + self.active_jobs
        self.current_loras = loras or []

    def clear_queue(self) -> None:
        for job in self.active_jobs:
            self._release(job)
        self.active_jobs.clear()
        self.pending_jobs.clear()
        self.library.calls.append("clear_queue")

    def enqueue(self, job: Job) -> None:
        assert job.pages <= self.max_pages, f"Job requires {job.pages} pages"
        job.new_tokens, job.held = 0, []
        self.pending_jobs.append(job)
        self.library.jobs.append(job)

    def cancel(self, job: Job) -> None:
        if job in self.pending_jobs:
            self.pending_jobs.remove(job)
        elif job in self.active_jobs:  # or it has ended in the same step
            self.active_jobs.remove(job)
            self._release(job)

    def _release(self, job: Job) -> None:
        self.unreferenced_pages += [0] * job.pages
        self.known.append(job.sequence[:-1])

    def iterate(self) -> list[dict[str, Any]]:
        self.library.before_step()
        time.sleep(0.0005)  # the GPU's time, in which others may have the interpreter
        results: list[dict[str, Any]] = []
        for job in list(self.pending_jobs):
            if len(self.active_jobs) < self.max_batch_size and job.pages <= len(self.unreferenced_pages):
                self.pending_jobs.remove(job)
                self._start(job, results)
        for job in self.active_jobs:
            self._prefill(job, results)
        ready = [job for job in self.active_jobs if job.read == len(job.sequence) - 1]
        self.library.steps.append(len(ready))
        if self.current_loras is not None:
            self.library.loras.append(self.current_loras[0])
        if ready:
            self._prepare_filters()
        for job in ready:
            for guess in range(1 + self.drafts):
                if self._generate(job, results, is_first=not guess):
                    self.active_jobs.remove(job)
                    self._release(job)
                    break
        return results

    def _result(self, job: Job, stage: str, *, eos: bool = False, **more: Any) -> dict[str, Any]:
        return {"job": job, "stage": stage, "eos": eos, "serial": 0, "identifier": job.identifier, **more}

    def _start(self, job: Job, results: list[dict[str, Any]]) -> None:
        del self.unreferenced_pages[: job.pages]
        self.active_jobs.append(job)
        prompt = job.sequence[:-1]
        cached = max((_common(prompt, known) for known in self.known), default=0)
        job.read, job.cached_pages, job.cached_tokens = cached, cached // PAGE, cached % PAGE
        results.append(self._result(job, "started"))

    def _prefill(self, job: Job, results: list[dict[str, Any]]) -> None:
        total = job.prompt_tokens - 1
        if job.read < total:
            job.read = min(total, job.read + self.max_chunk_size)
            results.append(self._result(job, "prefill", curr_progress=job.read, max_progress=total))

    def _prepare_filters(self) -> None:
        """In the background, in which nothing takes any time here."""
        for filter_, masks in self.filter_queue:
            prepare = filter_.background_prepare_logit_mask if masks else filter_.background_next
            prepare(Pool())
        self.filter_queue.clear()

    def _generate(self, job: Job, results: list[dict[str, Any]], *, is_first: bool) -> bool:
        token = self.library.next_token(job)
        if job.new_tokens == 0 and any(token in getattr(it, "tokens", ()) for it in job.filters):
            self.library.script = self.library.second_choice
            token = self.library.next_token(job)
        for filter_ in job.filters:
            if job.new_tokens == 0:
                filter_.background_drop()
                filter_.begin("")
            filter_.feed(Tensor([[token]]))
        if is_first:
            masks = all(it.can_mask_logits() and it.use_background_worker() for it in job.filters)
            self.filter_queue += [(it, masks) for it in job.filters if it.use_background_worker()]
        job.new_tokens += 1
        job.sequence.append(token)
        job.read += 1
        job.held.append(token)
        text = self.library.decode(job.held)
        if token in job.stop_tokens:
            held: dict[str, Any] = {"token_ids": Tensor([job.held])}
            if text:
                held["text"] = text
            results.append(self._end(job, "stop_token", held=held))
            return True
        if job.new_tokens >= job.max_new_tokens - self.drafts:
            results.append(self._end(job, "max_new_tokens", text=text, token_ids=Tensor([job.held])))
            return True
        if "\ufffd" in text or self.library.holds(text):
            results.append(self._result(job, "streaming"))
        else:
            results.append(self._result(job, "streaming", text=text, token_ids=Tensor([job.held])))
            job.held = []
        return False

    def _end(self, job: Job, reason: str, **more: Any) -> dict[str, Any]:
        return self._result(
            job,
            "streaming",
            eos=True,
            eos_reason=reason,
            new_tokens=job.new_tokens,
            prompt_tokens=job.prompt_tokens,
            cached_tokens=job.cached_pages * PAGE + job.cached_tokens,
            **more,
        )


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count


class ScriptedLibrary:
    """The packages, as far as they are used. `script` is what the model says to everything."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.script = "so it is"
        self.second_choice = self.script
        """What it says from where its first choice must not come."""
        self.scripts: dict[str, str] = {}
        """What it says to a certain last message."""
        self.generator: Any = None
        self.calls: list[Any] = []
        self.jobs: list[Job] = []
        self.loras: list[Any] = []
        """With which one each step was made that had any."""
        self.steps: list[int] = []
        """How many answers were in each step."""
        self.holds: Callable[[str], bool] = lambda text: False
        self.before_step: Callable[[], None] = lambda: None
        self.model_tokens: dict[str, int] = {}
        """How many tokens the models take, by the names of their folders, where it is not 8192."""
        self.vocabularies: dict[str, int] = {}
        self.load_error: Exception | None = None
        self.devices = 1
        self.reserved = {0: 1 << 20}
        """Bytes of each GPU that torch has."""
        self.torch = self._torch()
        self.exllamav2 = self._exllamav2()
        self.flash_attn = ModuleType("flash_attn")
        self.flash_attn.__version__ = "2.8.3"  # type: ignore[attr-defined]
        self.flash_attn.__spec__ = SimpleNamespace()  # type: ignore[assignment]

    def modules(self) -> dict[str, ModuleType]:
        return {
            "torch": self.torch,
            "exllamav2": self.exllamav2,
            "exllamav2.generator": self.exllamav2.generator,
            "flash_attn": self.flash_attn,
            "flash_attn_2_cuda": ModuleType("flash_attn_2_cuda"),
        }

    def encode(self, text: str) -> list[int]:
        tokens: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(tokens), skip_special_tokens=True)
        return text

    def next_token(self, job: Job) -> int:
        """What stands in the script behind what was said since the last `<assistant>`."""
        (assistant,) = self.encode("<assistant>")
        begin = len(job.sequence) - job.sequence[::-1].index(assistant)
        said = job.sequence[begin:]
        asked = self.tokenizer.decode(job.sequence[:begin], skip_special_tokens=False)
        question = asked.rpartition("<user>")[2].partition("<end>")[0]
        script = self.encode(self.scripts.get(question, self.script) + END)
        assert said == script[: len(said)], "the prompt ends with something that the model did not write"
        return script[len(said)]

    def _torch(self) -> ModuleType:
        torch = ModuleType("torch")
        torch.__version__ = "2.11.0"  # type: ignore[attr-defined]
        torch.version = SimpleNamespace(cuda="13.0")  # type: ignore[attr-defined]
        torch.long = "long"  # type: ignore[attr-defined]
        torch.tensor = lambda rows, dtype: Tensor(rows)  # type: ignore[attr-defined]
        torch.cuda = SimpleNamespace(  # type: ignore[attr-defined]
            is_available=lambda: self.devices > 0,
            device_count=lambda: self.devices,
            get_device_properties=lambda device: SimpleNamespace(major=9),
            mem_get_info=lambda device: (3 << 30, 24 << 30),
            memory_reserved=lambda device: self.reserved.get(device, 0),
            synchronize=lambda device: self.calls.append(("synchronize", device)),
            empty_cache=lambda: self.calls.append("empty_cache"),
            OutOfMemoryError=OutOfMemoryError,
        )
        return torch

    def _exllamav2(self) -> Any:
        package = ModuleType("exllamav2")
        generator = ModuleType("exllamav2.generator")
        package.generator = generator  # type: ignore[attr-defined]
        package.ExLlamaV2Config = self._config  # type: ignore[attr-defined]
        package.ExLlamaV2 = self._model  # type: ignore[attr-defined]
        package.ExLlamaV2Tokenizer = lambda config: SimpleNamespace(  # type: ignore[attr-defined]
            get_id_to_piece_list=lambda special: self.calls.append(("pieces", special))
        )
        for kind in ("", "_Q8", "_Q6", "_Q4"):
            make = lambda model, max_seq_len, lazy=False, kind=kind: SimpleNamespace(  # noqa: E731
                kind=kind, max_seq_len=max_seq_len, lazy=lazy
            )
            setattr(package, f"ExLlamaV2Cache{kind}", make)
        package.ExLlamaV2Lora = SimpleNamespace(  # type: ignore[attr-defined]
            from_directory=lambda model, path, scale: (Path(path).name, scale)
        )
        generator.ExLlamaV2DynamicGenerator = lambda **options: Generator(self, **options)  # type: ignore[attr-defined]
        generator.ExLlamaV2DynamicJob = Job  # type: ignore[attr-defined]
        generator.ExLlamaV2Sampler = SimpleNamespace(Settings=SimpleNamespace)  # type: ignore[attr-defined]
        return package

    def _config(self, path: str) -> SimpleNamespace:
        return SimpleNamespace(
            path=path,
            max_seq_len=self.model_tokens.get(Path(path).name, 8192),
            vocab_size=self.vocabularies.get(Path(path).name, 260),
            no_flash_attn=False,
            no_graphs=False,
            arch_compat_overrides=lambda quiet: None,
        )

    def _model(self, config: SimpleNamespace) -> SimpleNamespace:
        def load(gpu_split: Any, callback: Callable[[int, int], None]) -> None:
            self.calls.append(("load", gpu_split))
            for part in range(5):
                callback(part, 4)
                if self.load_error is not None:
                    raise self.load_error

        return SimpleNamespace(
            config=config,
            load=load,
            load_autosplit=lambda cache, callback: load("auto", callback),
            unload=lambda: self.calls.append("unload"),
        )


@pytest.fixture(scope="session")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer of a model whose tokens are bytes."""
    alphabet = sorted(ByteLevel.alphabet())
    vocabulary = {char: number for number, char in enumerate(alphabet)}
    bytes_of_text = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    described = {
        "version": "1.0",
        "added_tokens": [
            {
                "id": len(alphabet) + number,
                "content": content,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
            for number, content in enumerate(SPECIAL)
        ],
        "pre_tokenizer": bytes_of_text,
        "decoder": bytes_of_text,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    file.write_text(json.dumps(described), encoding="utf-8")
    return file


@pytest.fixture
def model_folder(tmp_path: Path, tokenizer_file: Path) -> Path:
    """As exllamav2 loads them, without weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    end = 256 + SPECIAL.index(END)
    (folder / "config.json").write_text(json.dumps({"eos_token_id": end}))
    (folder / "tokenizer.json").write_bytes(tokenizer_file.read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    (folder / "model.safetensors").touch()
    return folder


@pytest.fixture
def library(tokenizer_file: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedLibrary:
    """In place of the packages, which need not be installed."""
    scripted = ScriptedLibrary(Tokenizer.from_file(str(tokenizer_file)))
    for name, module in scripted.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    # What it finds missing it says in the environment, where the library looks.
    for name in ("EXLLAMA_NO_SDPA", "EXLLAMA_NO_FLASH_ATTN"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return scripted
