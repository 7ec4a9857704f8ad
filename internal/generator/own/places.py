"""The upstreams that were asked lately, each with what is known of it and with its connections. Knows who
asks whom, not what."""

import contextlib
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field, replace

from internal.biz.errors import GenerationFailed
from internal.biz.own_upstreams import OwnUpstream
from internal.generator.openai.exchange import HttpClient
from internal.generator.openai.nodes import Nodes
from internal.generator.openai.options import NodeOptions, OpenAIOptions

MAX_PLACES = 1000
"""Beyond, who was asked longest ago is forgotten, but for those that answer just now."""

Connect = Callable[[OpenAIOptions], HttpClient]


@dataclass(slots=True, eq=False)
class Place:
    """One upstream of one user. `running`: how many requests it has now."""

    options: OpenAIOptions = field(repr=False)
    nodes: Nodes = field(repr=False)
    client: HttpClient = field(repr=False)
    running: int = 0


class Places:
    """No two users share one, not even with the same upstream: what one of them asks for must not open its
    breaker for others.

    Bound: MAX_PLACES, and `user_slots` requests of a user at a time: one whose upstream is silent must not
    take up all the slots that there are.
    """

    def __init__(
        self, options: OpenAIOptions, user_slots: int, connect: Connect, clock: Callable[[], float]
    ) -> None:
        """`options` are those of all, without model and node."""
        self._options = options
        self._user_slots = user_slots
        self._connect = connect
        self._clock = clock
        self._running: Counter[str] = Counter()
        self._places: OrderedDict[tuple[str, str, str], Place] = OrderedDict()

    @contextlib.contextmanager
    def slot(self, user: str) -> Iterator[None]:
        """Of a user, for one request. Raises GenerationFailed when they have as many as they may."""
        if self._running[user] >= self._user_slots:
            raise GenerationFailed(
                f"your upstream answers {self._user_slots} of your requests already, and gets no more at a "
                "time; ask again when one has ended",
                code="upstream_busy",
            )
        self._running[user] += 1
        try:
            yield
        finally:
            self._running[user] -= 1
            if not self._running[user]:
                del self._running[user]

    @contextlib.asynccontextmanager
    async def at(self, user: str, upstream: OwnUpstream) -> AsyncIterator[Place]:
        """The user's upstream, for one request."""
        key = (user, upstream.url, upstream.key)
        place = self._places.get(key)
        if place is None:
            place = self._places[key] = self._place(user, upstream)
        self._places.move_to_end(key)
        place.running += 1
        try:
            await self._make_room()
            yield place
        finally:
            place.running -= 1

    def _place(self, user: str, upstream: OwnUpstream) -> Place:
        base_url = upstream.url.rstrip("/").removesuffix("/chat/completions")
        node = NodeOptions(base_url, upstream.key, self._user_slots, alias=f"own of {user}")
        options = replace(self._options, nodes=(node,))
        nodes = Nodes(options.nodes, options.breaker_failures, options.breaker_reset_s, self._clock)
        return Place(options, nodes, self._connect(options))

    async def _make_room(self) -> None:
        if len(self._places) <= MAX_PLACES:
            return
        idle = next((key for key, place in self._places.items() if not place.running), None)
        if idle is not None:
            await self._places.pop(idle).client.close()

    async def close(self) -> None:
        """Nothing may run any more."""
        places = list(self._places.values())
        self._places.clear()
        for place in places:
            await place.client.close()
