"""Reads the configuration: defaults, then a YAML file, then the environment."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from internal.conf.settings import EchoModel, ExLlamaV2Model, LlamaCppModel, OpenAIModel, OwnModel, Settings

PREFIX = "SLUICE_"

_SECRETS = ("auth.jwt_secret", "auth.operator_key", "queue.url", "storage.url")


class ConfigError(Exception):
    """The configuration cannot be used; the message names the key, its source and what is allowed."""


def load(path: Path, environ: Mapping[str, str]) -> Settings:
    """The settings of `path`, each overridable as `SLUICE_SECTION__KEY` in `environ`.

    Raises ConfigError.
    """
    tree = _read_file(path)
    from_environment = _read_environment(environ, tree)
    try:
        return Settings.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error, path, from_environment)) from error


def _read_file(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"there is no configuration file {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    except ValueError as error:  # a date that does not exist
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    except yaml.YAMLError as error:
        where = f", line {mark.line + 1}" if (mark := getattr(error, "problem_mark", None)) else ""
        problem = getattr(error, "problem", None) or "not valid"
        raise ConfigError(f"{path}{where} is not valid YAML: {problem}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} is not a mapping of sections")
    # A section of which everything is commented out.
    return {key: {} if value is None else value for key, value in tree.items()}


def _read_environment(environ: Mapping[str, str], tree: dict[str, Any]) -> dict[str, str]:
    """Put the variables into `tree`; returns which key came from which variable."""
    sources = {}
    for variable, text in sorted(environ.items()):
        if not variable.startswith(PREFIX):
            continue
        keys = variable[len(PREFIX) :].lower().split("__")
        section = tree
        for key in keys[:-1]:
            below = section.setdefault(key, {})
            if not isinstance(below, dict):
                raise ConfigError(f"{variable}: {key} is not a section")
            section = below
        section[keys[-1]] = _value(text)
        sources[".".join(keys)] = variable
    return sources


def _value(text: str) -> Any:
    """A list or a mapping is YAML; everything else is taken as it stands."""
    if text.startswith(("[", "{")):
        try:
            return yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):
            return text
    return text


def _explain(error: ValidationError, path: Path, from_environment: Mapping[str, str]) -> str:
    lines = []
    for item in error.errors(include_url=False):
        loc = _without_tag(item["loc"])
        # A complaint about several keys names the one to look at.
        key = item.get("ctx", {}).get("key") or ".".join(map(str, loc))
        source = next((name for prefix, name in from_environment.items() if _related(key, prefix)), str(path))
        lines.append(f"{source}: {_complaint(key, loc, item)}")
    return "\n".join(lines)


def _without_tag(loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """pydantic puts the kind of generator behind `models.N`; nobody wrote that as a key."""
    return loc[:2] + loc[3:] if loc[:1] == ("models",) else loc


def _related(key: str, prefix: str) -> bool:
    return f"{key}.".startswith(f"{prefix}.") or f"{prefix}.".startswith(f"{key}.")


def _complaint(key: str, loc: tuple[int | str, ...], item: Any) -> str:
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        known = _known_keys(item["loc"])
        near = difflib.get_close_matches(str(loc[-1]), known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"unknown key {key}{hint} (known here: {', '.join(known)})"
    if not key:
        return message
    if not loc:
        return f"{key}: {message}"
    if item["type"] == "list_type" and isinstance(item["input"], str):
        broken = item["input"].startswith(("[", "{"))
        return f"{key}: " + ("not valid YAML" if broken else "is a list; write it as [one, two]")
    if item["type"] in ("missing", "value_error") or key.startswith(_SECRETS) or _may_hold_key(loc, item):
        return f"{key}: {message}"
    return f"{key}: {message} (got {item['input']!r})"


def _may_hold_key(loc: tuple[int | str, ...], item: Any) -> bool:
    """Whether the value may hold a key of an upstream."""
    is_container = isinstance(item["input"], (dict, list))
    return loc[0] == "models" and (is_container or not {"api_key", "headers"}.isdisjoint(loc))


def _known_keys(loc: tuple[int | str, ...]) -> list[str]:
    """The keys that are allowed beside the last of `loc`."""
    model: Any = Settings
    for depth, part in enumerate(loc[:-1]):
        if isinstance(part, int):
            continue
        if depth == 2 and loc[0] == "models":
            model = _variant(part)
            continue
        annotation = model.model_fields[part].annotation
        annotation = next(iter(get_args(annotation)), annotation)  # of a list: what it consists of
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return list(model.model_fields)


def _variant(generator: str) -> type[BaseModel]:
    variants: dict[str, type[BaseModel]] = {
        "echo": EchoModel,
        "llamacpp": LlamaCppModel,
        "exllamav2": ExLlamaV2Model,
        "openai": OpenAIModel,
        "own": OwnModel,
    }
    return variants[generator]


def effective(settings: Settings) -> str:
    """The whole configuration as YAML, secrets masked."""
    tree = settings.model_dump(mode="json")
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
