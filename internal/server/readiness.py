"""Whether this process can do its work yet, and still."""


class Readiness:
    """How far each model is loaded, and whether the server is on its way out."""

    def __init__(self, models: list[str]) -> None:
        self._progress = dict.fromkeys(models, 0.0)
        self.draining = False

    def loaded(self, model: str, progress: float) -> None:
        """`progress` is 0 to 1; 1 means ready."""
        self._progress[model] = progress

    @property
    def ready(self) -> bool:
        return not self.draining and all(done >= 1.0 for done in self._progress.values())

    def report(self) -> dict[str, object]:
        """The body of `/readyz`."""
        status = "draining" if self.draining else "ready" if self.ready else "loading"
        models = {
            name: {"ready": done >= 1.0, "progress": round(done, 2)} for name, done in self._progress.items()
        }
        return {"status": status, "models": models}
