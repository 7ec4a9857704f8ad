"""The lanes of one session: what runs in each, and what waits behind it. Knows requests, not who answers."""

from collections import deque
from collections.abc import Iterator

from internal.biz.commands import Create


class Lane:
    """Requests that run one after another. `running` are the responses to the one at its head, several when
    it asks several models; `starting`: that one, while they are just being asked for."""

    __slots__ = ("_waiting", "name", "running", "starting")

    def __init__(self, name: str | None) -> None:
        self.name = name
        self.running: list[str] = []
        self.starting: Create | None = None
        self._waiting: deque[Create] | None = None

    @property
    def to_come(self) -> int:
        """Responses that nobody follows yet."""
        count = 0 if self.starting is None else self.starting.count
        for create in self._waiting or ():
            count += create.count
        return count

    @property
    def in_background(self) -> bool:
        """Whether what is just being asked for outlives the session."""
        return self.starting is not None and self.starting.ask.settings.background

    def add(self, create: Create) -> None:
        """Wait for those before it."""
        if self._waiting is None:
            self._waiting = deque()
        self._waiting.append(create)

    def next(self) -> Create | None:
        """What has waited for longest; from now on it does not wait."""
        return self._waiting.popleft() if self._waiting else None


class Lanes:
    """Those in which something runs. Bounded by who adds to them."""

    __slots__ = ("_by_name",)

    def __init__(self) -> None:
        self._by_name: dict[str | None, Lane] = {}

    def __iter__(self) -> Iterator[Lane]:
        return iter(self._by_name.values())

    def __len__(self) -> int:
        return len(self._by_name)

    @property
    def to_come(self) -> int:
        """Responses that nobody follows yet."""
        count = 0
        for lane in self:
            count += lane.to_come
        return count

    def get(self, name: str | None) -> Lane | None:
        return self._by_name.get(name)

    def open(self, name: str | None) -> Lane:
        """A new one."""
        self._by_name[name] = lane = Lane(name)
        return lane

    def of(self, response_id: str) -> Lane | None:
        """The one that a response runs in."""
        return next((lane for lane in self if response_id in lane.running), None)

    def drop(self, lane: Lane) -> None:
        """Nothing runs there any more."""
        self._by_name.pop(lane.name, None)

    @property
    def running(self) -> Iterator[str]:
        """The responses that were asked for, but for those just being asked for in the background."""
        return (response_id for lane in self if not lane.in_background for response_id in lane.running)
