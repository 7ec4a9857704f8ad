"""What of a process is logged."""

import logging
from collections.abc import Iterator

import pytest

from cmd import logs


@pytest.fixture(autouse=True)
def _loggers_as_before() -> Iterator[None]:
    root, names = logging.getLogger(), ("sluice", "cmd", "internal", "aiohttp.websocket")
    handlers, levels = root.handlers[:], {name: logging.getLogger(name).level for name in ("", *names)}
    yield
    logging.getLogger("aiohttp.server").filters.clear()
    root.handlers[:] = handlers
    for name, level in levels.items():
        logging.getLogger(name or None).setLevel(level)


@pytest.mark.parametrize(
    ("level", "ours", "others"),
    [("debug", 10, 30), ("info", 20, 30), ("warning", 30, 30), ("error", 40, 40)],
)
def test_the_level_is_ours_and_libraries_only_warn(level: str, ours: int, others: int) -> None:
    logs.configure(level, "text")
    for name in ("sluice", "sluice.stack", "internal.biz.session", "cmd.wire"):
        assert logging.getLogger(name).getEffectiveLevel() == ours
    for name in ("asyncio", "alembic", "aiohttp.access"):
        assert logging.getLogger(name).getEffectiveLevel() >= others


def test_offered_subprotocols_which_may_be_keys_are_not_logged() -> None:
    logs.configure("debug", "text")
    assert not logging.getLogger("aiohttp.websocket").isEnabledFor(logging.WARNING)
