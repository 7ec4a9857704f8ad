"""What becomes of addresses that are none, and whether Redis is there."""

import logging

import pytest

from internal.biz.errors import SluiceError, Unavailable
from internal.data.redis.link import RedisLink
from internal.metrics.instruments import Instruments


@pytest.mark.parametrize(
    "url",
    [
        "redis://:hunter2/x@127.0.0.1:6379/0",
        "redis://:hunter2#x@127.0.0.1:6379/0",
        "redis://:hunter2?x@127.0.0.1:6379/0",
        "redis://127.0.0.1:6379/0?hunter2=x",
        "redis://127.0.0.1:6379/0?socket_timeout=hunter2",
        "redis://:hunter2@[::1/0",
        "rediss://127.0.0.1:6379/0?ssl_cert_reqs=hunter2",
    ],
)
async def test_an_address_that_is_none_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(SluiceError, match=r"queue\.url") as refused:
        RedisLink(url, "tick", Instruments())
    assert "hunter2" not in refused.value.message


@pytest.mark.parametrize(
    "url",
    ["redis://:hunter2@127.0.0.1:1/0", "unix://:hunter2@/nowhere/redis.sock", "redis://:hunter2@a..b:1/0"],
)
async def test_a_redis_that_is_not_there_is_told_with_the_reason(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    link = RedisLink(url, "tick", Instruments())
    with pytest.raises(Unavailable, match=r"cannot be reached: \w") as away:
        await link.reach()
    with caplog.at_level(logging.WARNING):
        await link.connect()
    assert "cannot be reached" in caplog.text
    assert "hunter2" not in away.value.message + caplog.text
