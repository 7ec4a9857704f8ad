"""What is done when responses end."""

import logging
import time
from collections.abc import Awaitable, Callable, Sequence

from internal.biz.errors import SluiceError
from internal.biz.limits import Limiter
from internal.biz.models import Response
from internal.biz.ports import History, Meter

log = logging.getLogger(__name__)

Settle = Callable[[Sequence[Response]], Awaitable[None]]
"""What is done when responses end, before their logs say so."""


def settling(history: History, limiter: Limiter) -> Settle:
    """Store how they ended, and take what they cost."""

    async def settle(responses: Sequence[Response]) -> None:
        try:
            await history.finish(responses)
        finally:
            # Also when the storage is away: else who is refused for that loses their places as well.
            await limiter.settle(responses)

    return settle


def metered(settle: Settle, meter: Meter) -> Settle:
    """The same for those that no worker ends, who would count them."""

    async def settle_and_count(responses: Sequence[Response]) -> None:
        try:
            await settle(responses)
        except SluiceError:
            raise
        except Exception:  # the queue must go on, and tell those who wait
            log.exception("ends cannot be stored", extra={"responses": len(responses)})
        for response in responses:
            seconds = time.time() - response.created_at
            meter.response_ended(response.model, response.status, seconds)

    return settle_and_count
