"""Bodies that say how the server is: its workers and health; and the body of every error."""

from typing import Annotated, Literal

from pydantic import Field

from internal.biz.models import ModelState
from internal.service.api.base import Answer


class ErrorFields(Answer):
    """`code` is stable and for programs, `message` is a sentence for a person, `param` names the field."""

    message: str
    type: str
    param: str | None
    code: str


class Error(Answer):
    error: ErrorFields


class ModelHealth(Answer):
    """`progress` while it loads here, 0 to 1; `workers` where other processes run it, those that take
    requests; `state` where it is not loaded. One that is ready all the same is loaded when it is asked."""

    ready: bool
    state: Annotated[ModelState | None, Field(exclude_if=lambda value: value is None)] = None
    progress: Annotated[float | None, Field(exclude_if=lambda value: value is None)] = None
    workers: Annotated[int | None, Field(exclude_if=lambda value: value is None)] = None
    message: Annotated[str | None, Field(exclude_if=lambda value: value is None)] = None


class Ready(Answer):
    status: Literal["ready", "loading", "draining", "queue_unavailable"]
    models: dict[str, ModelHealth]


class Health(Ready):
    version: str


class WorkerEntry(Answer):
    """`busy` of `slots` run a response; one that takes nothing has none. `state` is that of its model, of
    which `progress` is loaded, 0 to 1; `message`: why it could not be. `last_heartbeat`: Unix seconds."""

    id: str
    object: Literal["worker"]
    host: str
    model: str
    state: ModelState
    progress: float
    message: Annotated[str | None, Field(exclude_if=lambda value: value is None)] = None
    slots: int
    busy: int
    last_heartbeat: float
    version: str


class WorkerList(Answer):
    object: Literal["list"]
    data: list[WorkerEntry]
