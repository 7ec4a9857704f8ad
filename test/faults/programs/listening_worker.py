"""listening_worker.py -conf FILE: its engine answers with all that it was told, one message in each chunk.

Asked for a title it says one, with how often it was asked before; but while a file `no-titles` lies beside
FILE it never ends.
"""

import sys
import threading
from pathlib import Path

from cmd import worker
from cmd.wire import engines
from internal.biz.events import TextDelta
from internal.biz.generation import Chunk, Finished, FinishReason, Job
from internal.biz.ports import Capabilities, Progress, Sink
from internal.conf.settings import Model

FOLDER = Path(sys.argv[sys.argv.index("-conf") + 1]).parent


class ListeningGenerator:
    """Implements Generator."""

    capabilities = Capabilities(context_length=10_000, slots=50)

    def __init__(self) -> None:
        self._sink: Sink | None = None
        self._titles = 0
        self._ended: set[Job] = set()

    async def start(self, sink: Sink, progress: Progress) -> None:
        self._sink = sink

    def submit(self, job: Job) -> None:
        threading.Thread(target=self._answer, args=(job,), daemon=True).start()

    def cancel(self, job: Job) -> None:
        threading.Thread(target=self._end, args=(job, FinishReason.CANCELLED), daemon=True).start()

    async def stop(self) -> None:
        return

    def _answer(self, job: Job) -> None:
        assert self._sink
        said = [f"[{message.role}: {message.content}]" for message in job.messages]
        if "Write a title" in said[0]:
            with (FOLDER / "titles.log").open("a") as log:
                log.write(said[0].replace("\n", " ") + "\n")
            if (FOLDER / "no-titles").exists():
                return
            said = ["A fine title"]
        self._sink.put([(job, TextDelta(text)) for text in said])
        self._end(job, FinishReason.STOP)

    def _end(self, job: Job, reason: FinishReason) -> None:
        assert self._sink
        step: list[Chunk] = [(job, Finished(reason))]
        if job not in self._ended:
            self._ended.add(job)
            self._sink.put(step)


def listening(model: Model, *more: object) -> ListeningGenerator:
    return ListeningGenerator()


vars(engines)["generator"] = listening
sys.exit(worker.main())
