"""The upstreams that users have set for themselves, as the program asks them. Knows settings, not HTTP."""

from dataclasses import dataclass, field
from typing import Protocol

from internal.biz.errors import InvalidRequest
from internal.biz.preferences import Preferences


@dataclass(frozen=True, slots=True)
class OwnUpstream:
    """`model` is its name there. `key` may be empty; neither it nor `url` is for anybody else to see."""

    url: str = field(repr=False)
    key: str = field(repr=False)
    model: str


class PreferenceStore(Protocol):
    async def preferences(self, user_id: str) -> Preferences:
        """With the key as it was stored: encrypted. Raises Unavailable."""


class Decrypts(Protocol):
    def decrypt(self, text: str) -> str | None:
        """None for what was encrypted with another secret."""


class OwnUpstreams:
    """One per process, of those that take such requests and of those that ask."""

    def __init__(self, store: PreferenceStore, cipher: Decrypts) -> None:
        self._store = store
        self._cipher = cipher

    async def of(self, user_id: str) -> OwnUpstream:
        """What a user or a guest has set. Raises InvalidRequest (`no_upstream`) when that is not enough, and
        Unavailable."""
        stored = await self._store.preferences(user_id)
        if stored.upstream_url is None:
            raise _none(
                "you have set no upstream of your own: set upstream_url, upstream_key and model at "
                "/api/config, or ask another model"
            )
        if stored.model is None:
            raise _none("say at /api/config which model of your upstream is to be asked: set model")
        key = self._cipher.decrypt(stored.upstream_key) if stored.upstream_key is not None else ""
        if key is None:
            raise _none(
                "the key of your upstream cannot be read any more: set upstream_key at /api/config again"
            )
        return OwnUpstream(stored.upstream_url, key, stored.model)


def _none(message: str) -> InvalidRequest:
    return InvalidRequest(message, code="no_upstream", param="model")
