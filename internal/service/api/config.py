"""Bodies of a user's own settings. A secret comes in, and only its mask goes out."""

from typing import Annotated, Self

from pydantic import Field, SecretStr

from internal.biz.preferences import (
    MAX_MODEL_CHARS,
    MAX_OUTPUT_TOKENS,
    MAX_UPSTREAM_KEY_CHARS,
    MAX_URL_CHARS,
    Preferences,
)
from internal.service.api.base import Answer, Body

MASK = "*" * 8
MIN_HINT_CHARS = 16
"""Of shorter secrets nothing is shown at all."""


class ConfigChange(Body):
    """What is left out stays; null takes back to the server's default."""

    model: Annotated[str | None, Field(min_length=1, max_length=MAX_MODEL_CHARS)] = None
    upstream_url: Annotated[
        str | None,
        Field(
            max_length=MAX_URL_CHARS,
            description="An OpenAI-compatible API of your own. The model `upstream_model` of this server "
            "asks it for its `model`; where `upstream_model` is null it is stored, and not used.",
            examples=["https://api.example.org/v1"],
        ),
    ] = None
    upstream_key: Annotated[
        SecretStr | None,
        Field(
            min_length=1,
            max_length=MAX_UPSTREAM_KEY_CHARS,
            description="Goes to the upstream and to nobody else; shown masked. It is forgotten when "
            "`upstream_url` changes without a new key.",
        ),
    ] = None
    max_tokens: Annotated[int | None, Field(ge=1, le=MAX_OUTPUT_TOKENS)] = None

    def applied_to(self, before: Preferences) -> Preferences:
        changes: dict[str, str | int | None] = {}
        if "model" in self.model_fields_set:
            changes["model"] = self.model
        if "max_tokens" in self.model_fields_set:
            changes["max_output_tokens"] = self.max_tokens
        if "upstream_url" in self.model_fields_set:
            changes["upstream_url"] = self.upstream_url
        if "upstream_key" in self.model_fields_set:
            key = self.upstream_key.get_secret_value() if self.upstream_key else None
            if key is None or key != masked(before.upstream_key):  # a form sends back what it was shown
                changes["upstream_key"] = key
        return before.changed(**changes)


class Config(Answer):
    """`presets` are the models of this server, the default one first. With an `upstream_url` set, `model` is
    one of that upstream's."""

    model: str | None
    upstream_url: str | None
    upstream_key: Annotated[str | None, Field(description="Masked.")]
    max_tokens: int | None
    presets: list[str]
    upstream_model: Annotated[
        str | None,
        Field(description="The model of this server that asks your upstream; null: this server asks none."),
    ]

    @classmethod
    def of(cls, preferences: Preferences, models: tuple[str, ...], own_model: str | None) -> Self:
        """`own_model` asks upstreams of users."""
        return cls(
            model=preferences.model,
            upstream_url=preferences.upstream_url,
            upstream_key=masked(preferences.upstream_key),
            max_tokens=preferences.max_output_tokens,
            presets=list(models),
            upstream_model=own_model,
        )


def masked(secret: str | None) -> str | None:
    """Enough of a secret to tell it from another one."""
    if secret is None:
        return None
    return MASK + (secret[-4:] if len(secret) >= MIN_HINT_CHARS else "")
