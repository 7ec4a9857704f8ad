"""A model's folder, as Hugging Face's library writes it: what its JSON files say. Reads no weights.

Source: https://huggingface.co/docs/transformers/main_classes/text_generation (generation_config.json),
https://huggingface.co/docs/transformers/chat_templating (where a template stands)
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from internal.biz.errors import GenerationFailed
from internal.biz.models import Sampling


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """`stop_tokens` end an answer. `sampling` is what the model's makers recommend."""

    path: Path
    chat_template: str
    bos_token: str
    eos_token: str
    stop_tokens: frozenset[int]
    sampling: Sampling

    @classmethod
    def read(cls, path: Path) -> "ModelFolder":
        """Raises GenerationFailed when this is no such folder, and says what is missing."""
        if not path.is_dir():
            raise _missing(f"there is no model folder {path}")
        config = _json(path / "config.json")
        if config is None:
            raise _missing(f"{path} is no model folder: it has no config.json")
        if not (path / "tokenizer.json").is_file():
            raise _missing(f"{path} has no tokenizer.json, which exllamav2 needs")
        if not any(path.glob("*.safetensors")):
            raise _missing(f"{path} has no weights: no file in it ends in .safetensors")
        generation = _json(path / "generation_config.json") or {}
        tokenizer = _json(path / "tokenizer_config.json") or {}
        return cls(
            path,
            _template(path, tokenizer),
            _token(tokenizer.get("bos_token")),
            _token(tokenizer.get("eos_token")),
            frozenset(_ids(config.get("eos_token_id")) + _ids(generation.get("eos_token_id"))),
            _sampling(generation),
        )


def _missing(message: str) -> GenerationFailed:
    return GenerationFailed(
        f"{message}; set options.path to a folder with an exl2 model", code="model_missing"
    )


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise GenerationFailed(f"{path} cannot be read: {error}", code="model_invalid") from error
    if not isinstance(value, dict):
        raise GenerationFailed(f"{path} cannot be read: it holds no JSON object", code="model_invalid")
    return value


def _template(path: Path, tokenizer: dict[str, Any]) -> str:
    """A file of its own comes first; of several templates the one that is for chats."""
    file = path / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    template = (_json(path / "chat_template.json") or tokenizer).get("chat_template")
    if isinstance(template, list):
        named = {it.get("name"): it.get("template") for it in template if isinstance(it, dict)}
        template = named.get("default") or next(iter(named.values()), None)
    return template if isinstance(template, str) else ""


def _token(value: object) -> str:
    """A token is written as a string, or as an object that says more of it."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else ""


def _ids(value: object) -> list[int]:
    return [it for it in (value if isinstance(value, list) else [value]) if isinstance(it, int)]


def _sampling(generation: dict[str, Any]) -> Sampling:
    if generation.get("do_sample") is False:
        return Sampling(temperature=0.0)

    def number(name: str) -> float | None:
        value = generation.get(name)
        return float(value) if isinstance(value, (int, float)) else None

    top_k = number("top_k")
    return Sampling(
        temperature=number("temperature"),
        top_p=number("top_p"),
        top_k=None if top_k is None else int(top_k),
        min_p=number("min_p"),
        repetition_penalty=number("repetition_penalty"),
    )
