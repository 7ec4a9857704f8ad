"""losing.py server|worker ARGUMENT ...: that program, with an engine that is lost when it reads `fatal`.

This happens once: then a file `lost` lies beside the configuration. With `deadly` it happens each time, and
to all models of the process, as if they shared the engine, behind a word of what runs beside it. A file
`gone` there makes a load fail.
"""

import sys
from pathlib import Path

from cmd import server, worker
from cmd.wire import engines
from internal.biz.errors import EngineLost, GenerationFailed
from internal.biz.events import TextDelta
from internal.biz.generation import Job
from internal.biz.ports import Progress, Sink
from internal.conf.settings import EchoModel, Model
from internal.generator.echo import EchoGenerator

FOLDER = Path(sys.argv[sys.argv.index("-conf") + 1]).parent


ALL: "list[LosingGenerator]" = []


class LosingGenerator(EchoGenerator):
    _sink: Sink

    async def start(self, sink: Sink, progress: Progress) -> None:
        if (FOLDER / "gone").exists():
            raise GenerationFailed("the weights are gone")
        self._sink = sink
        self._beside: list[Job] = []
        ALL.append(self)
        await super().start(sink, progress)

    def submit(self, job: Job) -> None:
        super().submit(job)
        if "deadly" in job.messages[-1].content:
            for one in ALL:
                one._sink.put([(beside, TextDelta("")) for beside in one._beside])
                one._sink.fail(EngineLost("a fault that sticks"))
        self._beside.append(job)
        if "fatal" in job.messages[-1].content and not (FOLDER / "lost").exists():
            (FOLDER / "lost").touch()
            self._sink.fail(EngineLost("a fault that sticks"))


def losing(model: Model, *more: object) -> LosingGenerator:
    assert isinstance(model, EchoModel)
    return LosingGenerator(model.options.chunks, model.options.interval, model.options.slots)


vars(engines)["generator"] = losing
EchoModel.may_be_lost = True
program = {"server": server, "worker": worker}[sys.argv.pop(1)]
sys.exit(program.main())
