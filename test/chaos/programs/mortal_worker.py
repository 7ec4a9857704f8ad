"""mortal_worker.py -conf FILE: a worker that dies when its engine reads `poison`, or soon after `venom`."""

import os
import sys
import threading

from cmd import worker
from cmd.wire import engines
from internal.biz.generation import Job
from internal.conf.settings import EchoModel, Model
from internal.generator.echo import EchoGenerator

SOON_S = 0.2


class MortalGenerator(EchoGenerator):
    def submit(self, job: Job) -> None:
        said = job.messages[-1].content
        if "poison" in said:
            os._exit(86)
        if "venom" in said:
            threading.Timer(SOON_S, os._exit, [86]).start()
        super().submit(job)


def mortal(model: Model, *more: object) -> MortalGenerator:
    assert isinstance(model, EchoModel)
    return MortalGenerator(model.options.chunks, model.options.interval, model.options.slots)


vars(engines)["generator"] = mortal
sys.exit(worker.main())
