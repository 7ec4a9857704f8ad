"""Whose request is next: round robin between users, first come first served within one.

A user with a hundred waiting requests delays another user's first by one turn. Knows nothing of engines.
Bound: the caller's (the queue counts what it lets in).
"""

from collections import OrderedDict, deque
from collections.abc import Iterator

from internal.biz.models import Request


class FairScheduler:
    """Waiting requests of one model.

    `push`, `pop` and `remove` cost O(1); `position` O(1) for a user's only request, else O(users).
    """

    def __init__(self) -> None:
        # One line per user, each a dict in order of arrival. The first line is the next to be served.
        self._lines: OrderedDict[str, dict[str, Request]] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def oldest(self) -> float:
        """When the oldest was made (Unix seconds; infinite when nobody waits). O(users)."""
        return min(
            (next(iter(line.values())).created_at for line in self._lines.values()), default=float("inf")
        )

    def push(self, request: Request) -> None:
        self._lines.setdefault(request.user, {})[request.response_id] = request
        self._size += 1

    def push_back(self, request: Request) -> None:
        """Return a request that was popped: it goes before its user's later ones. O(requests of the user)."""
        line = self._lines.setdefault(request.user, {})
        later = dict(line)
        line.clear()
        line[request.response_id] = request
        line.update(later)
        self._size += 1

    def pop(self) -> Request | None:
        """Take the next request; its user goes to the end of the round."""
        if not self._lines:
            return None
        user, line = next(iter(self._lines.items()))
        request = line.pop(next(iter(line)))
        self._size -= 1
        if line:
            self._lines.move_to_end(user)
        else:
            del self._lines[user]
        return request

    def remove(self, user: str, response_id: str) -> Request | None:
        """Take one out of the line; None when it does not wait here."""
        line = self._lines.get(user)
        request = line.pop(response_id, None) if line else None
        if request is None:
            return None
        self._size -= 1
        if not line:
            del self._lines[user]
        return request

    def position(self, user: str, response_id: str) -> int:
        """How many requests will be served before this one; 0 means it is next (or not waiting)."""
        line = self._lines.get(user)
        if line is None or response_id not in line:
            return 0
        rounds = next(i for i, key in enumerate(line) if key == response_id)
        if not rounds and next(reversed(self._lines)) == user:
            return len(self._lines) - 1
        ahead, before = 0, True
        for other, others in self._lines.items():
            if other == user:
                ahead += rounds
                before = False
            else:
                ahead += min(len(others), rounds + before)
        return ahead

    def order(self) -> Iterator[str]:
        """The ids of all that wait, in the order in which they will be served. O(waiting)."""
        lines = deque(iter(line) for line in self._lines.values())
        while lines:
            line = lines.popleft()
            response_id = next(line, None)
            if response_id is not None:
                yield response_id
                lines.append(line)

    def expired(self, created_before: float) -> list[Request]:
        """The requests that are older than `created_before` (Unix seconds); they stay in line."""
        return [
            request
            for line in self._lines.values()
            for request in line.values()
            if request.created_at < created_before
        ]
