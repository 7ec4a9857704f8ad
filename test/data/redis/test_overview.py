"""What is told about workers, also about those that another version of Sluice runs."""

import time

import orjson

from internal.biz.models import Backlog, WorkerInfo
from internal.data.redis.keys import Keys
from internal.data.redis.link import RedisLink
from internal.data.redis.overview import read_backlog, read_workers


async def test_a_worker_of_another_version_hides_no_other(link: RedisLink, keys: Keys) -> None:
    here = WorkerInfo("here", "host", "m", 8, 3, time.time(), "0.1.0")
    newer = orjson.loads(orjson.dumps(here)) | {"name": "newer", "gpu": "one more field"}
    for name, info in (("here", here), ("newer", newer), ("older", {"name": "older"}), ("broken", "?")):
        await link.call("renew", keys.base("m"), name, 5, 10_000, orjson.dumps(info))
    found = {worker.name: worker for worker in await read_workers(link, keys.base("m"))}
    assert found.keys() == {"here", "newer"}
    assert found["here"] == here


async def test_a_model_of_which_nothing_is_known_has_nothing_to_do(link: RedisLink, keys: Keys) -> None:
    assert await read_backlog(link, keys.base("unheard-of")) == Backlog()
    assert await read_workers(link, keys.base("unheard-of")) == []
