"""A node's copy of a response log, fed by messages that may be lost, doubled or late."""

import contextlib
from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from internal.biz.errors import GenerationFailed, InvalidRequest, SluiceError
from internal.biz.generation import Delivery, Finished, FinishReason, Transcript
from internal.biz.log import ResponseLog
from internal.biz.models import Request, Response
from internal.data.redis.entries import Decoder, encode, parse

MAX_EARLY = 1024
"""Messages that are kept while what comes before them is fetched."""


class Mirror(ResponseLog):
    """The log of one response as far as this node knows it. Always a beginning of the log in Redis.

    Bound: as the log, 16 MiB at most; it goes when nobody here follows it.
    """

    __slots__ = ("_decoder", "_early", "fresh", "head", "heard_at_s", "opening", "position")

    def __init__(self, head: Request, now_s: float) -> None:
        super().__init__(head.response_id)
        self.head = head
        self.heard_at_s = now_s
        """When there was news, or the log was last looked at."""
        self.opening = False
        """True while the request is being published: what Redis says about it does not count yet."""
        self.fresh = False
        """True until somebody follows what was just published here."""
        self.position: int | None = None
        """The place in the queue that was told last; None when nobody wants to know."""
        self._decoder = Decoder(head)
        self._early: list[tuple[int, Sequence[Any]]] = []

    def receive(self, number: int, entries: Sequence[Any]) -> bool:
        """Take `entries`, the first of which has `number`. What is known is skipped; False when something
        before them is missing (they are kept until it comes).

        Raises InvalidRequest when they cannot be read, and changes nothing.
        """
        if number > len(self.events):
            if len(self._early) < MAX_EARLY:
                self._early.append((number, entries))
            return False
        self._extend(number, entries)
        if self._early:
            early, self._early = self._early, []
            early.sort(key=itemgetter(0))  # a refetch may have closed several gaps
            for number, entries in early:
                if number > len(self.events):
                    self._early.append((number, entries))
                else:
                    with contextlib.suppress(InvalidRequest):  # it was only a message
                        self._extend(number, entries)
        return not self._early

    def _extend(self, number: int, entries: Sequence[Any]) -> None:
        known = len(self.events) - number
        if known < len(entries) and not self.ended:
            try:
                events = self._decoder.decode(entries[known:] if known else entries)
            except InvalidRequest:
                self._decoder = Decoder(self.head)
                self._decoder.decode(parse([encode(event) for event in self.events]))
                raise
            self.append(0, len(self.events), events)

    def lose(self) -> Response:
        """End the log here: Redis does not have it any more."""
        return self.fail(
            GenerationFailed(
                "the queue was restarted without its data, and this answer was lost; ask again",
                code="queue_lost",
            )
        )

    def fail(self, error: SluiceError) -> Response:
        """End the log here, whatever Redis says."""
        last = Transcript(Delivery(self.head, 0, self.events, None))
        response = last.finish(Finished(FinishReason.ERROR, error=error))
        self.append(0, len(self.events), last.events)
        return response
