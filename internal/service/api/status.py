"""Bodies that say how the server is: its workers and health; and the body of every error."""

from typing import Annotated, Literal

from pydantic import Field

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
    """`progress` while it loads here, 0 to 1; `workers` where other processes run it."""

    ready: bool
    progress: Annotated[float | None, Field(exclude_if=lambda value: value is None)] = None
    workers: Annotated[int | None, Field(exclude_if=lambda value: value is None)] = None
    message: Annotated[str | None, Field(exclude_if=lambda value: value is None)] = None


class Ready(Answer):
    status: Literal["ready", "loading", "draining", "queue_unavailable"]
    models: dict[str, ModelHealth]


class Health(Ready):
    version: str


class WorkerEntry(Answer):
    """`busy` of `slots` run a response. `last_heartbeat`: Unix seconds."""

    id: str
    object: Literal["worker"]
    host: str
    model: str
    slots: int
    busy: int
    last_heartbeat: float
    version: str


class WorkerList(Answer):
    object: Literal["list"]
    data: list[WorkerEntry]
