"""How a model is loaded, and what is said when it cannot be, on a scripted exllamav2."""

import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from internal.biz.errors import EngineLost, GenerationFailed
from internal.generator.exllamav2.loader import Interrupted, load_model
from internal.generator.exllamav2.model import Model
from internal.generator.exllamav2.options import DraftOptions, LoadOptions, LoraOptions

if TYPE_CHECKING:
    from test.generator.exllamav2.conftest import ScriptedLibrary


@pytest.fixture
def options(library: "ScriptedLibrary", model_folder: Path) -> LoadOptions:
    return LoadOptions(
        path=model_folder,
        cache="q6",
        cache_tokens=5000,
        max_seq_len=4096,
        slots=40,
        chunk_size=512,
        gpu_split=None,
        draft=None,
        warmup=True,
    )


def load(options: LoadOptions, *adapters: LoraOptions, told: Callable[[float], None] = print) -> Model:
    return load_model(options, adapters, told, lambda: True)


def complaint(options: LoadOptions, *adapters: LoraOptions) -> str:
    with pytest.raises(GenerationFailed) as caught:
        load(options, *adapters)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_a_model_is_loaded_as_it_was_asked_for(options: LoadOptions, library: "ScriptedLibrary") -> None:
    told: list[float] = []
    model = load(options, told=told.append)
    made = library.generator.options
    assert (model.context, model.slots, model.chunk_size, model.pages) == (4096, 40, 512, 20)
    assert (made["cache"].kind, made["cache"].max_seq_len) == ("_Q6", 5120)  # whole pages
    assert (made["max_q_size"], made["paged"], made["max_seq_len"]) == (1, True, 4096)
    assert made["model"].config.max_input_len == 512
    assert told == sorted(told)
    assert "warmup" in library.calls
    assert ("pieces", True) in library.calls  # before two threads ask for them


def test_it_takes_what_the_model_was_made_for_where_nothing_was_asked_for(options: LoadOptions) -> None:
    model = load(replace(options, cache_tokens=0, max_seq_len=0))
    assert (model.context, model.pages) == (8192, 32)


def test_one_gpu_is_filled_and_several_one_after_the_other(
    options: LoadOptions, library: "ScriptedLibrary"
) -> None:
    load(options)
    library.devices = 2
    load(options)
    load(replace(options, gpu_split=(10.0, 20.0)))
    assert [call[1] for call in library.calls if call[0] == "load"] == [None, "auto", [10.0, 20.0]]


@pytest.mark.parametrize("graphs", [True, False])
def test_beside_another_model_nothing_is_recorded(
    options: LoadOptions, library: "ScriptedLibrary", model_folder: Path, graphs: bool
) -> None:
    load(replace(options, graphs=graphs, draft=DraftOptions(model_folder, 3)))
    made = library.generator.options
    assert made["model"].config.no_graphs is made["draft_model"].config.no_graphs is (not graphs)


def test_a_draft_model_has_a_cache_of_its_own(
    options: LoadOptions, library: "ScriptedLibrary", model_folder: Path
) -> None:
    load(replace(options, draft=DraftOptions(model_folder, 3)))
    made = library.generator.options
    assert (made["max_q_size"], made["num_draft_tokens"]) == (5, 3)
    assert made["draft_cache"].max_seq_len == made["cache"].max_seq_len
    assert made["draft_cache"] is not made["cache"]


def test_no_torch(options: LoadOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    said = complaint(options)
    assert "needs torch" in said
    assert "pip install '.[gpu]'" in said


def test_a_torch_whose_libraries_are_missing(
    options: LoadOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('libcudart.so.13: cannot open shared object file')")
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.syspath_prepend(tmp_path)
    said = complaint(options)
    assert "libcudart.so.13" in said
    assert "pip install '.[gpu]'" in said


@pytest.mark.parametrize(("cuda", "said"), [(None, "built without CUDA"), ("13.0", "is a driver installed?")])
def test_no_gpu(options: LoadOptions, library: "ScriptedLibrary", cuda: str | None, said: str) -> None:
    library.devices = 0
    library.torch.version.cuda = cuda
    assert said in complaint(options)


def test_no_exllamav2(options: LoadOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "exllamav2", None)
    said = complaint(options)
    assert "exllamav2 cannot be imported" in said
    assert "pip install '.[gpu]'" in said


def without_flash_attn(library: "ScriptedLibrary", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "flash_attn")


def with_an_old_one(library: "ScriptedLibrary", monkeypatch: pytest.MonkeyPatch) -> None:
    library.flash_attn.__version__ = "2.5.6"  # type: ignore[attr-defined]


def with_a_broken_one(library: "ScriptedLibrary", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn_2_cuda", None)


def where_somebody_wants_none(library: "ScriptedLibrary", monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXLLAMA_NO_FLASH_ATTN", "1")


def on_an_old_gpu(library: "ScriptedLibrary", monkeypatch: pytest.MonkeyPatch) -> None:
    old = ModuleType("properties")
    old.major = 7  # type: ignore[attr-defined]
    library.torch.cuda.get_device_properties = lambda device: old


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without_flash_attn, "pip install flash-attn"),
        (with_an_old_one, "it needs 2.5.7"),
        (with_a_broken_one, "cannot be imported"),
        (on_an_old_gpu, "Ampere"),
        (where_somebody_wants_none, "EXLLAMA_NO_FLASH_ATTN is set"),
    ],
)
def test_without_flash_attn_answers_come_one_by_one(
    options: LoadOptions,
    library: "ScriptedLibrary",
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[..., None],
    said: str,
) -> None:
    spoil(library, monkeypatch)
    model = load(options)
    assert model.slots == 1
    assert library.generator.options["paged"] is False
    assert said in caplog.text
    # Before exllamav2 was imported: the other attention that it would take is wrong.
    assert os.environ["EXLLAMA_NO_SDPA"] == "1"


def test_too_little_memory(options: LoadOptions, library: "ScriptedLibrary") -> None:
    library.load_error = library.torch.cuda.OutOfMemoryError("CUDA out of memory. Tried …")
    said = complaint(options)
    assert "3.0 of 24.0 GiB free" in said
    assert "lower cache_tokens or max_seq_len" in said
    assert library.calls[-1] == "empty_cache"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Insufficient VRAM for model and cache"),
        RuntimeError("CUDA out of memory"),
        RuntimeError("CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` to enable …"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["several GPUs", "exllamav2", "CUDA", "cuBLAS"],
)
def test_too_little_memory_is_told_in_many_ways(
    options: LoadOptions, library: "ScriptedLibrary", error: Exception
) -> None:
    library.load_error = error
    assert "lower cache_tokens" in complaint(options)

    def fail(device: int) -> tuple[int, int]:
        raise error  # even to ask takes some

    library.torch.cuda.mem_get_info = fail
    assert "lower cache_tokens" in complaint(options)


def test_too_small_a_share_of_the_gpus_can_be_raised(
    options: LoadOptions, library: "ScriptedLibrary"
) -> None:
    library.load_error = AssertionError("Insufficient space in device allocation")
    assert "share out more in gpu_split" in complaint(replace(options, gpu_split=(4.0,)))


def test_a_gpu_that_is_lost_while_a_model_is_loaded(options: LoadOptions, library: "ScriptedLibrary") -> None:
    error = library.load_error = RuntimeError("CUDA error: an illegal memory access was encountered")

    def fail(device: int) -> None:
        raise error

    library.torch.cuda.synchronize = fail
    with pytest.raises(EngineLost, match="illegal memory access"):
        load(options)


def test_gpus_that_are_not_in_use_are_left_alone(options: LoadOptions, library: "ScriptedLibrary") -> None:
    library.devices, library.load_error = 2, RuntimeError("no luck")
    assert "no luck" in complaint(replace(options, gpu_split=(20.0,)))
    assert [call for call in library.calls if call[0] == "synchronize"] == [("synchronize", 0)]


def test_what_the_library_cannot_load_is_said_in_its_words(
    options: LoadOptions, library: "ScriptedLibrary"
) -> None:
    library.load_error = ValueError(" ## Could not find lm_head.* in model\nand more")
    assert complaint(options).endswith("## Could not find lm_head.* in model")


def test_a_model_does_not_take_more_than_it_was_made_for(
    options: LoadOptions, library: "ScriptedLibrary"
) -> None:
    assert "takes 8192 tokens" in complaint(replace(options, max_seq_len=9000))
    library.model_tokens["small"] = 2048
    draft = DraftOptions(Path("small"), 4)
    assert "the draft model small takes 2048 tokens" in complaint(replace(options, draft=draft))
    library.model_tokens["small"] = 8192
    library.vocabularies["small"] = 300
    assert "another vocabulary: 300 tokens, not 260" in complaint(replace(options, draft=draft))


def test_a_lora_that_is_not_there_is_named(options: LoadOptions, tmp_path: Path) -> None:
    assert "no LoRA in" in complaint(options, LoraOptions(tmp_path, 1.0))


def test_a_lora_or_draft_that_the_library_cannot_load_is_named(
    options: LoadOptions, library: "ScriptedLibrary", tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").touch()

    def refuse(*_: object) -> None:
        raise ValueError("fan_in_fan_out mode not supported.")

    library.exllamav2.ExLlamaV2Lora.from_directory = refuse
    assert f"cannot load {tmp_path}: fan_in_fan_out" in complaint(options, LoraOptions(tmp_path, 1.0))
    library.load_error = ValueError("no such tensor")
    assert "cannot load small: no such tensor" in complaint(
        replace(options, draft=DraftOptions(Path("small"), 4))
    )


def test_loading_stops_when_nobody_wants_the_model_any_more(options: LoadOptions) -> None:
    with pytest.raises(Interrupted):
        load_model(options, [], lambda done: None, lambda: False)


def test_unloading_gives_the_memory_back(options: LoadOptions, library: "ScriptedLibrary") -> None:
    model = load(options)
    model.unload()
    assert library.calls[-2:] == ["unload", "empty_cache"]
