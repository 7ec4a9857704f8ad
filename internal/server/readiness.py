"""Whether this process can do its work yet, and still."""

from collections import Counter
from collections.abc import Mapping, Sequence

from internal.biz.chat import Chat
from internal.biz.errors import Unavailable


class Readiness:
    """How far each model of this process is loaded, and whether the process is on its way out."""

    def __init__(self, models: Sequence[str]) -> None:
        """`models`: those that are loaded here; others run in worker processes."""
        self._progress = dict.fromkeys(models, 0.0)
        self.draining = False

    def loaded(self, model: str, progress: float) -> None:
        """`progress` is 0 to 1; 1 means ready."""
        self._progress[model] = progress

    @property
    def ready(self) -> bool:
        return not self.draining and all(done >= 1.0 for done in self._progress.values())

    def report(self, models: Sequence[str], living: Mapping[str, int]) -> dict[str, object]:
        """The body of `/readyz`: how `models` are; `living` counts their workers."""
        status = "draining" if self.draining else "ready" if self.ready else "loading"
        return {"status": status, "models": {name: self._model(name, living.get(name, 0)) for name in models}}

    def _model(self, name: str, workers: int) -> dict[str, object]:
        if (done := self._progress.get(name)) is not None:
            return {"ready": done >= 1.0, "progress": round(done, 2)}
        report: dict[str, object] = {"ready": workers > 0, "workers": workers}
        if not workers:
            report["message"] = "no worker for this model is running; requests wait for one"
        return report


async def overview(readiness: Readiness, chat: Chat) -> tuple[dict[str, object], bool]:
    """The body of `/readyz`, and whether it says that the server can do its work."""
    try:
        living = Counter(worker.model for worker in await chat.workers())
    except Unavailable:
        return {"status": "queue_unavailable", "models": {}}, False
    return readiness.report(chat.models, living), readiness.ready
