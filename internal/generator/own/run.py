"""One job: whom its user wants asked, and then as with any upstream."""

import asyncio
from collections.abc import Callable
from typing import Protocol

from internal.biz.errors import GenerationFailed, Unavailable
from internal.biz.generation import Finished, Job
from internal.biz.own_upstreams import OwnUpstream
from internal.generator.openai.answer import Answer
from internal.generator.openai.run import Run
from internal.generator.own.places import Place, Places

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
"""Between two tries while the storage cannot be reached."""
_UNAUTHORIZED = "upstream_unauthorized"


class FindsUpstreams(Protocol):
    async def of(self, user_id: str) -> OwnUpstream:
        """Raises InvalidRequest and Unavailable."""


class OwnRun:
    """Implements Work."""

    def __init__(
        self,
        job: Job,
        upstreams: FindsUpstreams,
        places: Places,
        run: Callable[[Place, str], Run],
        patience_s: float,
    ) -> None:
        """`run` asks a place for a model. The storage may be away for `patience_s`."""
        self._job = job
        self._upstreams = upstreams
        self._places = places
        self._make_run = run
        self._patience_s = patience_s
        self._run: Run | None = None

    @property
    def answer(self) -> Answer:
        return self._run.answer if self._run is not None else Answer(self._job, (), ())

    async def generate(self) -> Finished:
        user = self._job.user
        with self._places.slot(user):
            upstream = await self._find(user)
            async with self._places.at(user, upstream) as place:
                self._run = self._make_run(place, upstream.model)
                try:
                    return await self._run.generate()
                except GenerationFailed as error:
                    if error.code != _UNAUTHORIZED:
                        raise
                    # That is the user's to mend, and not the operator's.
                    message = "your upstream does not accept your key, is not paid any more, or forbids this"
                    raise GenerationFailed(message, code=_UNAUTHORIZED) from None

    async def _find(self, user: str) -> OwnUpstream:
        """Raises InvalidRequest, and Unavailable, with which the queue has it tried again."""
        loop, pause_s = asyncio.get_running_loop(), FIRST_PAUSE_S
        until_s = loop.time() + self._patience_s
        while True:
            try:
                return await self._upstreams.of(user)
            except Unavailable:
                if loop.time() + pause_s > until_s:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
