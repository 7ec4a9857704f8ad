"""What users set for all that they ask, and what may stand there."""

from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from internal.biz.errors import InvalidRequest

MAX_MODEL_CHARS = 64
MAX_URL_CHARS = 2048
MAX_UPSTREAM_KEY_CHARS = 4096
MAX_OUTPUT_TOKENS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Preferences:
    """What a user has set for all that they ask. None: the server's default. `upstream_key` is a secret:
    it is kept encrypted, and shown to nobody."""

    model: str | None = None
    max_output_tokens: int | None = None
    upstream_url: str | None = None
    upstream_key: str | None = field(default=None, repr=False)

    def changed(self, **changes: str | int | None) -> "Preferences":
        """With other values for some fields. Another address gets no key that was given for the former one:
        who may change settings could otherwise have the key sent to a server of their own."""
        if changes.get("upstream_url", self.upstream_url) != self.upstream_url:
            changes = {"upstream_key": None, **changes}
        return replace(self, **changes)  # type: ignore[arg-type]


def check(preferences: Preferences) -> None:
    """Raises InvalidRequest."""
    model, tokens = preferences.model, preferences.max_output_tokens
    if model is not None and not (0 < len(model) <= MAX_MODEL_CHARS and model.isprintable()):
        raise InvalidRequest("that is not the name of a model", param="model")
    if tokens is not None and not 1 <= tokens <= MAX_OUTPUT_TOKENS:
        raise InvalidRequest(
            f"max_output_tokens is a whole number from 1 to {MAX_OUTPUT_TOKENS}", param="max_output_tokens"
        )
    if preferences.upstream_url is not None and not _is_upstream(preferences.upstream_url):
        raise InvalidRequest(
            "upstream_url looks like https://host/v1, and holds neither a password nor a ? or #",
            param="upstream_url",
        )
    key = preferences.upstream_key
    # It will stand in an HTTP header.
    if key is not None and not (
        0 < len(key) <= MAX_UPSTREAM_KEY_CHARS and key.isascii() and key.isprintable() and " " not in key
    ):
        raise InvalidRequest("that is not an API key", param="upstream_key")


def _is_upstream(text: str) -> bool:
    if len(text) > MAX_URL_CHARS or not text.isascii() or not text.isprintable() or " " in text:
        return False
    try:
        url = urlsplit(text)
        is_place = bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        return False
    has_more = "@" in url.netloc or "?" in text or "#" in text
    return url.scheme in ("http", "https") and is_place and not has_more
