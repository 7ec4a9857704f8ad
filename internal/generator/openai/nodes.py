"""Which node a request goes to: the least loaded, or where its dialogue was. Knows places, not HTTP."""

import asyncio
import itertools
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from functools import partial

from internal.biz.errors import GenerationFailed
from internal.generator.openai.breaker import Breaker
from internal.generator.openai.options import NodeOptions

MAX_HOMES = 65_536
"""Dialogues whose node is remembered; the one that was continued longest ago is forgotten first."""


class Node:
    """One server of an upstream."""

    def __init__(
        self,
        options: NodeOptions,
        breaker: Breaker,
        clock: Callable[[], float],
        changed: Callable[["Node"], None],
    ) -> None:
        """`changed` is called when it may have gone up or down."""
        self.changed = partial(changed, self)
        self.options = options
        self.breaker = breaker
        self.running = 0
        self.is_healthy = True
        """Whether it answered when it was asked last; until then it is taken to."""
        self.served = 0
        """When it got a request last, as a count."""
        self._clock = clock
        self._rests_until_s = 0.0

    @property
    def is_up(self) -> bool:
        return self.is_healthy and self.breaker.is_closed

    @property
    def has_room(self) -> bool:
        return self.running < self.options.slots

    @property
    def load(self) -> float:
        return self.running / self.options.slots

    @property
    def is_resting(self) -> bool:
        """It asked not to be asked for a while."""
        return self._clock() < self._rests_until_s

    def rest(self, seconds: float) -> None:
        self._rests_until_s = max(self._rests_until_s, self._clock() + seconds)


class Visit:
    """A request's place at a node, until it leaves."""

    def __init__(self, node: Node, left: Callable[[], None]) -> None:
        self.node = node
        self._left = left
        self._is_probe = node.breaker.enter()
        self._has_spoken = False
        node.running += 1

    def spoke(self) -> None:
        """The node said something: that it did so for the first time is what counts."""
        if self._has_spoken:
            return
        self._has_spoken, node = True, self.node
        if self._is_probe:
            self._is_probe = False
            node.breaker.answered()
            node.changed()
        if not node.is_healthy:
            node.is_healthy = True
            node.changed()

    def succeeded(self) -> None:
        self.node.breaker.succeeded()

    def failed(self) -> None:
        """By the node's fault."""
        self.node.breaker.failed(is_probe=self._is_probe)
        self._is_probe = False
        self.node.changed()

    def leave(self) -> None:
        """Has to be called in the end."""
        self.node.running -= 1
        self.node.breaker.left(is_probe=self._is_probe)
        self._left()


class Nodes:
    """The nodes of an upstream. A dialogue goes where it was before while that is well and has room, else to
    the least loaded node, and stays there: all of it goes along with every request. Where all that are well
    are full, it waits."""

    def __init__(
        self,
        options: Sequence[NodeOptions],
        failures: int,
        reset_s: float,
        clock: Callable[[], float],
        changed: Callable[[Node], None] = lambda _: None,
    ) -> None:
        self.all = tuple(
            Node(node, Breaker(node.label, failures, reset_s, clock), clock, changed) for node in options
        )
        self._homes: OrderedDict[bytes, Node] = OrderedDict()
        self._changed = asyncio.Event()
        self._count = itertools.count(1)

    async def enter(self, dialogue: bytes | None, avoid: Collection[Node], *, under_way: bool) -> Visit:
        """A place at the best node, as soon as it has one. `avoid` are the last resort; only a dialogue that
        is `under_way` has something to go back for. Raises GenerationFailed at once when all nodes are left
        alone."""
        while (node := self._choose(dialogue if under_way else None, avoid)) is None:
            self._changed.clear()
            await self._changed.wait()
        node.served = next(self._count)
        if dialogue is not None:
            self._homes[dialogue] = node
            self._homes.move_to_end(dialogue)
            if len(self._homes) > MAX_HOMES:
                self._homes.popitem(last=False)
        return Visit(node, self._changed.set)

    def _choose(self, dialogue: bytes | None, avoid: Collection[Node]) -> Node | None:
        admitting = [node for node in self.all if node.breaker.admits]
        if not admitting:
            raise self._nobody()

        def worries(node: Node) -> tuple[bool, bool, bool]:
            return node in avoid, not node.is_healthy, node.is_resting

        least = min(worries(node) for node in admitting)
        free = [node for node in admitting if node.has_room and worries(node) == least]
        home = self._homes.get(dialogue) if dialogue is not None else None
        if home in free:
            return home
        return min(free, key=lambda node: (node.load, node.served), default=None)

    def _nobody(self) -> GenerationFailed:
        wait_s = min(node.breaker.wait_s for node in self.all)
        return GenerationFailed(
            f"the model's server cannot be reached at the moment; try again in {max(1, round(wait_s))} s",
            code="upstream_unavailable",
        )

    def well_besides(self, tried: Collection[Node]) -> bool:
        """Whether there is a node to turn to at once."""
        return any(
            node.breaker.admits and node.is_healthy and not node.is_resting and node.has_room
            for node in self.all
            if node not in tried
        )
