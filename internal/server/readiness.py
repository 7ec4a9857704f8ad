"""Whether this process can do its work yet, and still."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from internal.biz.chat import Chat
from internal.biz.errors import Unavailable
from internal.biz.models import Condition, ModelState, WorkerInfo, condition_of

_MESSAGES = {
    ModelState.UNLOADED: "the model is unloaded; requests wait until an operator loads it",
    ModelState.LOADING: "the model is being loaded; requests wait for it",
    ModelState.UNLOADING: "the model is being unloaded; requests wait until an operator loads it",
    ModelState.LOADED: "the model is loaded, and takes nothing yet; requests wait for it",
}


@dataclass(frozen=True, slots=True)
class Standing:
    """How many workers of a model take requests, and how the model is (None: it has no worker)."""

    workers: int = 0
    condition: Condition | None = None


def standings(models: Sequence[str], workers: Sequence[WorkerInfo]) -> dict[str, Standing]:
    """How each of `models` stands with these workers."""
    found = {}
    for name in models:
        ours = [worker for worker in workers if worker.model == name]
        takers = sum(worker.takes_requests for worker in ours)
        found[name] = Standing(takers, condition_of(ours) if ours else None)
    return found


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

    def report(self, found: Mapping[str, Standing]) -> dict[str, object]:
        """The body of `/readyz`: how the models are."""
        status = "draining" if self.draining else "ready" if self.ready else "loading"
        return {"status": status, "models": {name: self._model(name, it) for name, it in found.items()}}

    def _model(self, name: str, standing: Standing) -> dict[str, object]:
        condition = standing.condition
        if (done := self._progress.get(name)) is None:
            report: dict[str, object] = {"ready": standing.workers > 0, "workers": standing.workers}
            if condition is None:
                report["message"] = "no worker for this model is running; requests wait for one"
        elif done < 1.0 or condition is None:  # it loads for the first time, or is on its way out
            return {"ready": done >= 1.0, "progress": round(done, 2)}
        else:
            report = {"ready": standing.workers > 0, "progress": round(condition.progress, 2)}
        if condition is not None and condition.state is not ModelState.LOADED:
            report["state"] = condition.state
        if condition is not None and not standing.workers:
            report["message"] = _MESSAGES[condition.state]
        return report


async def overview(readiness: Readiness, chat: Chat) -> tuple[dict[str, object], bool]:
    """The body of `/readyz`, and whether it says that the server can do its work."""
    try:
        workers = await chat.workers()
    except Unavailable:
        return {"status": "queue_unavailable", "models": {}}, False
    return readiness.report(standings(chat.models, workers)), readiness.ready
