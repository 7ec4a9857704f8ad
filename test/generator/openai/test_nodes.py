"""Which of several nodes a request goes to."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Collection

import pytest

from internal.biz.errors import GenerationFailed
from internal.generator.openai.nodes import Node, Nodes, Visit
from internal.generator.openai.options import NodeOptions

Settle = Callable[[], Awaitable[None]]


class Time:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def time() -> Time:
    return Time()


def make(time: Time, *slots: int) -> Nodes:
    options = [NodeOptions(f"http://{number}/v1", "", count) for number, count in enumerate(slots)]
    return Nodes(options, 1, 10.0, time)


async def enter(nodes: Nodes, dialogue: bytes | None = None, avoid: Collection[Node] = ()) -> Visit:
    async with asyncio.timeout(5):
        return await nodes.enter(dialogue, avoid, under_way=True)


async def test_the_least_loaded_is_asked_in_proportion_to_its_slots(time: Time) -> None:
    nodes = make(time, 2, 6)
    first, second = nodes.all
    visits = [await enter(nodes) for _ in range(4)]
    assert Counter(visit.node for visit in visits) == {first: 1, second: 3}
    visits += [await enter(nodes) for _ in range(4)]
    assert Counter(visit.node for visit in visits) == {first: 2, second: 6}


async def test_idle_nodes_take_turns(time: Time) -> None:
    nodes = make(time, 4, 4, 4)
    asked = []
    for _ in range(6):
        visit = await enter(nodes)
        asked.append(visit.node)
        visit.leave()
    assert asked == [*nodes.all, *nodes.all]


async def test_a_dialogue_stays_where_it_is(time: Time) -> None:
    nodes = make(time, 4, 4)
    home = (await enter(nodes, b"ada")).node
    for _ in range(3):
        assert (await enter(nodes, b"ada")).node is home


async def test_a_dialogue_that_begins_goes_to_the_least_loaded(time: Time) -> None:
    nodes = make(time, 4, 4)
    visits = [await nodes.enter(b"hello", (), under_way=False) for _ in range(4)]
    assert Counter(visit.node for visit in visits) == dict.fromkeys(nodes.all, 2)


async def test_a_dialogue_moves_when_its_node_is_full_and_stays_there(time: Time) -> None:
    nodes = make(time, 1, 2)
    first, second = nodes.all
    filling = await enter(nodes, b"ada")
    assert filling.node is first
    assert (await enter(nodes, b"ada")).node is second
    filling.leave()
    assert (await enter(nodes, b"ada")).node is second


@pytest.mark.parametrize("trouble", ["ill", "resting", "failed", "tried"])
async def test_a_dialogue_moves_when_its_node_has_trouble(time: Time, trouble: str) -> None:
    nodes = make(time, 4, 4)
    visit = await enter(nodes, b"ada")
    home, other = nodes.all
    assert visit.node is home
    match trouble:
        case "ill":
            home.is_healthy = False
        case "resting":
            home.rest(5)
        case "failed":
            visit.failed()
    visit.leave()
    avoid = {home} if trouble == "tried" else set()
    assert (await enter(nodes, b"ada", avoid)).node is other
    assert (await enter(nodes, b"ada")).node is other


async def test_who_is_ill_is_better_than_nobody(time: Time) -> None:
    nodes = make(time, 1)
    (node,) = nodes.all
    node.is_healthy = False
    node.rest(5)
    assert (await enter(nodes, avoid={node})).node is node


async def test_a_well_node_is_waited_for_while_an_ill_one_has_room(time: Time, settle: Settle) -> None:
    nodes = make(time, 1, 1)
    well, ill = nodes.all
    ill.is_healthy = False
    first = await enter(nodes)
    waiting = [asyncio.create_task(enter(nodes)) for _ in range(2)]
    await settle()
    assert not any(task.done() for task in waiting)
    first.leave()
    second = await waiting[0]
    assert second.node is well
    second.leave()
    assert (await waiting[1]).node is well


async def test_when_all_have_failed_nobody_waits(time: Time, settle: Settle) -> None:
    nodes = make(time, 1, 1)
    visits = [await enter(nodes) for _ in range(2)]
    waiting = asyncio.create_task(enter(nodes))
    await settle()
    assert not waiting.done()
    for visit in visits:
        visit.failed()
        visit.leave()
    for one in (waiting, asyncio.create_task(enter(nodes))):
        with pytest.raises(GenerationFailed, match="try again in 10 s") as refused:
            await one
        assert refused.value.code == "upstream_unavailable"
    time.now_s += 10
    probe = await enter(nodes)
    probe.spoke()
    assert (await enter(nodes)).node is not probe.node  # the other one is probed, too


async def test_who_waits_may_leave(time: Time, settle: Settle) -> None:
    nodes = make(time, 1)
    first = await enter(nodes)
    waiting = asyncio.create_task(enter(nodes))
    await settle()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    first.leave()
    (await enter(nodes)).leave()
    assert nodes.all[0].running == 0


async def test_only_so_many_homes_are_remembered(time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("internal.generator.openai.nodes.MAX_HOMES", 2)
    nodes = make(time, 9, 9)
    home = (await enter(nodes, b"a")).node
    for name in (b"b", b"c"):
        await enter(nodes, name)
    other = (await enter(nodes)).node  # as loaded as the home of `a`, and asked before it
    assert {home, other} == set(nodes.all)
    assert (await enter(nodes, b"a")).node is not None
    assert len(vars(nodes)["_homes"]) == 2
