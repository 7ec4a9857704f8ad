"""Turns in Redis, for servers and workers to share. What was not continued for a day is forgotten, and so are
the oldest turns of a thread that has grown too large.

    p:turn:{ID}           string  which thread a turn belongs to: the id of its first response
    p:thread:{ID}         hash    RESPONSE:said, :previous, :answer and :attempt of its turns; bytes of all
    p:thread:{ID}:turns   list    the responses, the oldest first
"""

import asyncio
from collections.abc import Sequence

from internal.biz.errors import Conflict, NotFound
from internal.biz.models import Message, Request, Response, Role, Status
from internal.data.redis.entries import dump_messages, load_messages
from internal.data.redis.link import RedisLink

KEEP_S = 86400
MAX_THREAD_BYTES = 4 << 20
"""Of what was said in a thread: all of it is read for every message, and more would take the event loop too
long."""


class RedisHistory:
    """Implements History."""

    def __init__(self, link: RedisLink, prefix: str) -> None:
        self._link = link
        self._prefix = prefix

    def _turn(self, response_id: str) -> str:
        return f"{self._prefix}:turn:{{{response_id}}}"

    def _thread(self, root: str) -> str:
        return f"{self._prefix}:thread:{{{root}}}"

    async def _root(self, response_id: str) -> str | None:
        root = await self._link.command("GET", self._turn(response_id))
        return root.decode() if root is not None else None

    async def messages(self, response_id: str) -> tuple[Message, ...]:
        root = await self._root(response_id)
        fields = await self._link.command("HGETALL", self._thread(root)) if root is not None else None
        if not fields:
            raise NotFound(
                f"there is no stored response {response_id!r} to continue from",
                code="previous_response_not_found",
                param="previous_response_id",
            )
        parts: list[tuple[Message, ...]] = []
        following = response_id
        while (said := fields.get(f"{following}:said".encode())) is not None:
            answer = fields.get(f"{following}:answer".encode())
            if answer is None and following == response_id:
                raise Conflict(f"response {response_id!r} has not ended yet", param="previous_response_id")
            part = load_messages(said)
            if answer:
                part += (Message(Role.ASSISTANT, answer.decode()),)
            parts.append(part)
            following = fields[f"{following}:previous".encode()].decode()
        return tuple(message for part in reversed(parts) for message in part)

    async def begin(self, request: Request, turn: tuple[Message, ...]) -> None:
        previous = request.settings.previous_response_id
        root = (await self._root(previous) if previous is not None else None) or request.response_id
        await asyncio.gather(
            self._link.command("SET", self._turn(request.response_id), root, "EX", KEEP_S),
            self._link.call(
                "begin_turn",
                self._thread(root),
                request.response_id,
                previous or "",
                dump_messages(turn),
                MAX_THREAD_BYTES,
            ),
        )

    async def finish(self, responses: Sequence[Response]) -> None:
        roots = await asyncio.gather(*(self._root(response.id) for response in responses))
        await asyncio.gather(
            *(
                self._link.call(
                    "finish_turn", self._thread(root), response.id, response.attempt, _answer(response)
                )
                for response, root in zip(responses, roots, strict=True)
                if root is not None
            )
        )


def _answer(response: Response) -> bytes:
    text = "" if response.status is Status.FAILED else response.text
    return text.encode(errors="replace")
