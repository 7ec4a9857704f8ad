"""One job: tries until the first token, then reads to the end."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from internal.biz.errors import ContextLengthExceeded, GenerationFailed, SluiceError
from internal.biz.generation import Finished, FinishReason, Job
from internal.biz.models import Truncation
from internal.generator.openai import payload
from internal.generator.openai.answer import Answer
from internal.generator.openai.exchange import Exchange, HttpClient, Tell
from internal.generator.openai.faults import Fault, broken
from internal.generator.openai.nodes import Node, Nodes, Visit
from internal.generator.openai.options import OpenAIOptions

log = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 8.0
"""Between two tries: twice as long each time, less a random part, or what the upstream asks for."""


class Run:
    """Generates one answer. Cancelling `generate` ends the request, too."""

    def __init__(
        self,
        job: Job,
        options: OpenAIOptions,
        client: HttpClient,
        nodes: Nodes,
        tell: Tell,
        room: Callable[[], Awaitable[None]],
        retried: Callable[[], None],
        chance: Callable[[], float],
    ) -> None:
        """`tell` is given what the model says, except for how it ends, and waited for `room` when it says so;
        `retried` is called for each try but the first; `chance` is 0 to 1."""
        self.answer = Answer(job, options.refusals, options.secrets)
        """What is said at the moment, by the last try."""
        self._job = job
        self._options = options
        self._client = client
        self._nodes = nodes
        self._tell = tell
        self._room = room
        self._retried = retried
        self._chance = chance
        self._time = asyncio.get_running_loop().time
        self._began_at_s = self._time()
        self._tried: set[Node] = set()
        self._dropped_turns = 0

    async def generate(self) -> Finished:
        """Returns how it ended. Raises SluiceError."""
        job = self._job
        if job.called:
            # They are told with the end of an answer: all that is missing is to say so.
            return Finished(FinishReason.STOP, self.answer.usage())
        if (job.reasoning and not job.emitted) or (job.emitted and self._options.continuation == "none"):
            raise GenerationFailed(
                "this answer was interrupted, and the model's server cannot go on in the middle; ask again",
                code="upstream_interrupted",
            )
        tries = 0
        error: SluiceError | None = None
        while True:
            try:
                return await self._try(error)
            except Fault as fault:
                error = fault.error
                if self.answer.has_begun:
                    raise error from None
                if self._drops_turns(error):
                    continue
                tries += 1
                if not fault.is_transient or tries > self._options.retries:
                    raise error from None
                await self._pause(fault, tries)
                self._retried()

    async def _try(self, before: SluiceError | None) -> Finished:
        """One request. `before`: how the last one failed."""
        options = self._options
        visit = await self._enter(before)
        answer = self.answer = Answer(self._job, options.refusals, options.secrets)
        exchange = Exchange(
            self._client,
            options,
            visit,
            answer,
            self._tell,
            self._room,
            self._first_token_by_s,
            self._end_by_s,
        )
        try:
            await exchange.run(payload.body(self._job, options, self._dropped_turns))
            outputs, end = answer.finish()
        except Fault as fault:
            if fault.blames_node:
                reason = fault.error.message if options.is_discreet else fault.detail
                fields = {"node": visit.node.options.label, "reason": reason}
                log.warning("a request failed at an upstream node", extra=fields)
                # A job counts once against a node: what one person asks shall not close it to all others.
                if visit.node not in self._tried:
                    visit.failed()
            if fault.retry_after_s is not None:
                visit.node.rest(fault.retry_after_s)
            if fault.is_transient:
                self._tried.add(visit.node)
            raise
        finally:
            visit.leave()
        visit.succeeded()
        self._tell(outputs)
        return end

    @property
    def _first_token_by_s(self) -> float:
        return self._began_at_s + self._options.first_token_timeout_s

    @property
    def _end_by_s(self) -> float:
        return self._began_at_s + self._options.timeout_s

    async def _enter(self, before: SluiceError | None) -> Visit:
        under_way = payload.is_under_way(self._job)
        try:
            async with asyncio.timeout_at(min(self._first_token_by_s, self._end_by_s)):
                return await self._nodes.enter(payload.dialogue(self._job), self._tried, under_way=under_way)
        except TimeoutError:
            message = "all of the model's servers are busy; try again later"
            raise broken(message, "upstream_timeout").error from None
        except GenerationFailed as error:
            # How it failed says more than that nobody is asked any more.
            raise before or error from None

    def _drops_turns(self, error: SluiceError) -> bool:
        """Leave out 1, 2, 4, 8 … of the oldest turns of a dialogue that is too long, where the client wants
        that: the same ones for long, so that the upstream's cache serves."""
        if (
            not isinstance(error, ContextLengthExceeded)
            or self._job.settings.truncation is Truncation.DISABLED
        ):
            return False
        turns = payload.turns(self._job.messages)
        if self._dropped_turns >= turns - 1:
            return False
        self._dropped_turns = min(2 * self._dropped_turns or 1, turns - 1)
        return True

    async def _pause(self, fault: Fault, tries: int) -> None:
        """Raises the fault's error when the time for a first token is over before another try could begin."""
        if self._nodes.well_besides(self._tried):
            return
        seconds = min(FIRST_PAUSE_S * 2.0 ** (tries - 1), LONGEST_PAUSE_S) * (0.5 + 0.5 * self._chance())
        if fault.retry_after_s is not None:
            seconds = fault.retry_after_s
        if self._time() + seconds >= min(self._first_token_by_s, self._end_by_s):
            raise fault.error from None
        await asyncio.sleep(seconds)
