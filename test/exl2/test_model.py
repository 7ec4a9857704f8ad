"""The model folder that is made of the bundled GGUF file."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

np = pytest.importorskip("numpy", reason="`make test-exl2` has numpy")
safetensors = pytest.importorskip("safetensors.numpy", reason="`make test-exl2` has safetensors")
tokenizers = pytest.importorskip("tokenizers", reason="`make test-exl2` has tokenizers")

LAYER = "model.layers.29.mlp.down_proj"


@pytest.fixture(scope="module")
def weights(model_folder: Path) -> dict[str, Any]:
    held: dict[str, Any] = safetensors.load_file(model_folder / "model.safetensors")
    return held


@pytest.fixture(scope="module")
def quantised_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gptq")
    program = Path(__file__).with_name("model.py")
    subprocess.run([sys.executable, str(program), str(folder), "--gptq"], check=True)
    return folder


def test_the_tokenizer_gives_back_what_it_was_given(model_folder: Path) -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(model_folder / "tokenizer.json"))
    text = "<|im_start|>user\nGrüße aus 日本 🎉, 12345  times<|im_end|>\n"
    ids = tokenizer.encode(text).ids

    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    config = json.loads((model_folder / "config.json").read_text("utf-8"))
    assert (ids[0], ids[-2]) == (config["bos_token_id"], config["eos_token_id"])


def test_the_chat_template_is_there(model_folder: Path) -> None:
    config = json.loads((model_folder / "tokenizer_config.json").read_text("utf-8"))
    assert "<|im_start|>assistant" in config["chat_template"]
    assert config["eos_token"] == "<|im_end|>"


def unpacked(integers: Any, axis: int) -> Any:
    """Eight numbers of 4 bits out of each, along `axis`."""
    parts = [(integers.view(np.uint32) >> (4 * i)) & 15 for i in range(8)]
    stacked = np.stack(parts, axis + 1)
    shape = list(integers.shape)
    shape[axis] *= 8
    return stacked.reshape(shape).astype(np.float32)


def test_gptq_is_near_to_what_it_was_made_of(quantised_folder: Path, weights: dict[str, Any]) -> None:
    held = safetensors.load_file(quantised_folder / "model.safetensors")
    levels, zeros = unpacked(held[f"{LAYER}.qweight"], 0), unpacked(held[f"{LAYER}.qzeros"], 1) + 1
    scales = held[f"{LAYER}.scales"].astype(np.float32)
    rebuilt = ((levels - zeros.repeat(32, 0)) * scales.repeat(32, 0)).T

    original = weights[f"{LAYER}.weight"].astype(np.float32)
    assert np.linalg.norm(rebuilt - original) < 0.1 * np.linalg.norm(original)


def test_gptq_is_in_the_configuration_and_leaves_the_rest_alone(
    quantised_folder: Path, weights: dict[str, Any]
) -> None:
    held = safetensors.load_file(quantised_folder / "model.safetensors")
    config = json.loads((quantised_folder / "config.json").read_text("utf-8"))

    assert config["quantization_config"]["group_size"] == 32
    for name in ("model.embed_tokens.weight", "model.norm.weight"):
        assert np.array_equal(held[name], weights[name])
