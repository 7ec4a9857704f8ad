"""peculiar.py -conf FILE: a server two of whose models, by name, are no echoes: `recalls` answers with all
that was said, a chunk for each message, and `breaks` fails at the end of what it says."""

import sys
from typing import Any

from cmd import server
from cmd.wire import engines
from internal.biz.errors import GenerationFailed
from internal.biz.events import TextDelta
from internal.biz.generation import Chunk, Finished, FinishReason, Job
from internal.biz.ports import Capabilities, Generator
from internal.conf import settings as conf
from internal.generator.echo import EchoGenerator, _Echo


class Recalls(EchoGenerator):
    def __init__(self, *options: int) -> None:
        super().__init__(*options)
        self.capabilities = Capabilities(context_length=0, slots=100)

    def _echo(self, job: Job) -> _Echo:
        return _Echo(job, "", [TextDelta(f"[{message.content}]") for message in job.messages], 0, True)


class Breaks(EchoGenerator):
    def _end(self, echo: _Echo, reason: FinishReason) -> Chunk:
        job, _ = super()._end(echo, reason)
        return job, Finished(FinishReason.ERROR, error=GenerationFailed("it broke"))


def generator(model: conf.Model, *more: Any) -> Generator:
    match model.name:
        case "recalls":
            return Recalls(1, 0, 100)
        case "breaks":
            return Breaks(2, 0, 100)
    return usual(model, *more)


usual = engines.generator
vars(engines)["generator"] = generator
sys.exit(server.main())
