"""What users have set as their own upstream, for the program to ask."""

import pytest

from internal.biz.errors import InvalidRequest
from internal.biz.own_upstreams import OwnUpstream, OwnUpstreams
from internal.biz.preferences import Preferences

URL = "https://llm.example/v1"


class Stored:
    """What one user has set. Decrypts what ends with `!`."""

    def __init__(self, preferences: Preferences) -> None:
        self._preferences = preferences

    async def preferences(self, user_id: str) -> Preferences:
        return self._preferences if user_id == "ada" else Preferences()

    def decrypt(self, text: str) -> str | None:
        return text.removesuffix("!") if text.endswith("!") else None


def upstreams(**mine: str) -> OwnUpstreams:
    stored = Stored(Preferences(**mine))  # type: ignore[arg-type]
    return OwnUpstreams(stored, stored)


async def test_an_upstream_is_asked_as_its_user_has_set_it() -> None:
    mine = upstreams(upstream_url=URL, upstream_key="secret!", model="m")
    assert await mine.of("ada") == OwnUpstream(URL, "secret", "m")
    assert await upstreams(upstream_url=URL, model="m").of("ada") == OwnUpstream(URL, "", "m")


async def test_nobody_asks_another_s_upstream() -> None:
    with pytest.raises(InvalidRequest) as error:
        await upstreams(upstream_url=URL, upstream_key="secret!", model="m").of("eve")
    assert error.value.code == "no_upstream"


@pytest.mark.parametrize(
    ("mine", "says"),
    [
        ({}, "set upstream_url, upstream_key and model at /api/config"),
        ({"model": "m"}, "set upstream_url, upstream_key and model at /api/config"),
        ({"upstream_url": URL}, "set model"),
        ({"upstream_url": URL, "model": "m", "upstream_key": "other secret"}, "set upstream_key"),
    ],
)
async def test_who_has_not_set_enough_is_told_what_to_set(mine: dict[str, str], says: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        await upstreams(**mine).of("ada")
    assert error.value.code == "no_upstream"
    assert says in error.value.message
    assert URL not in error.value.message


def test_neither_address_nor_key_is_shown() -> None:
    shown = repr(OwnUpstream(URL, "secret", "m"))
    assert "secret" not in shown
    assert URL not in shown
