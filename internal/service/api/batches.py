"""Bodies of batches: what several models are asked, and what they answer."""

from dataclasses import replace
from typing import Annotated, Self

from pydantic import Field

from internal.biz.batches import Batch, Begun, Task
from internal.biz.chat import Ask
from internal.biz.errors import InvalidRequest
from internal.biz.models import Status
from internal.service.api.base import Answer, Body, Id, Timestamp, timestamp
from internal.service.codec.responses_request import Items, ResponseCreate, messages

MAX_PROMPT_CHARS = 1 << 20
MAX_FILES = 16
File = Annotated[str, Field(json_schema_extra={"contentMediaType": "application/octet-stream"})]
ModelList = Annotated[
    str | None,
    Field(
        min_length=1,
        max_length=1024,
        examples=["smollm2, echo"],
        description="One model, or several with commas between them; without one, the default.",
    ),
]


class BatchCreate(ResponseCreate):
    """As `response.create` of the Responses API has it, but for the names of two fields: `prompt` may stand
    for `input`, and `conversation_id` for `conversation`. Without a conversation, or a previous response, one
    begins."""

    input: str | Items = ""
    prompt: Annotated[str | None, Field(min_length=1, max_length=MAX_PROMPT_CHARS)] = None
    conversation_id: Id | None = None

    def ask_all(self) -> Ask:
        """Raises InvalidRequest for what contradicts itself."""
        if bool(self.input) == (self.prompt is not None):
            raise InvalidRequest("give either prompt or input", code="invalid_value", param="prompt")
        settings = self._settings()
        if self.conversation_id is not None:
            if settings.conversation_id is not None or settings.previous_response_id is not None:
                raise InvalidRequest(
                    "a turn continues one thing; conversation_id is not the only one that is named",
                    code="invalid_value",
                    param="conversation_id",
                )
            settings = replace(settings, conversation_id=self.conversation_id)
        return Ask(messages(self.input or self.prompt or ""), None, settings)


class BatchForm(Body):
    """The fields of the form beside the files."""

    prompt: Annotated[str, Field(min_length=1, max_length=MAX_PROMPT_CHARS)]
    model: ModelList = None
    conversation_id: Id | None = None


class BatchFormFields(BatchForm):
    """As it is described."""

    files: Annotated[
        list[File] | None,
        Field(max_length=MAX_FILES, description="Text or images; without a file name, the id of an upload."),
    ] = None


class Choice(Body):
    """`chosen`: the task whose answer the conversation continues from."""

    chosen: Id


class BatchBegun(Answer):
    """The tasks are in the order in which the models were named."""

    batch_id: str
    conversation_id: str | None
    message: str
    task_ids: list[str]

    @classmethod
    def of(cls, begun: Begun) -> Self:
        count = len(begun.task_ids)
        return cls(
            batch_id=begun.batch_id,
            conversation_id=begun.conversation_id,
            message="1 model is answering." if count == 1 else f"{count} models are answering.",
            task_ids=list(begun.task_ids),
        )


class TaskObject(Answer):
    """`response_text` is what was said up to now, `cost_time` how long that took, in seconds."""

    task_id: str
    model_name: str
    status: Status
    response_text: str
    error_msg: Annotated[str | None, Field(description="Why there is no answer, or no whole one.")]
    cost_time: float

    @classmethod
    def of(cls, task: Task, now: float) -> Self:
        ended_at = now if task.ended_at is None else task.ended_at
        return cls(
            task_id=task.id,
            model_name=task.model,
            status=task.status,
            response_text=task.text,
            error_msg=_reason(task),
            cost_time=round(max(0.0, ended_at - task.created_at), 3),
        )


_INCOMPLETE = {
    "cancelled": "the answer was stopped",
    "max_output_tokens": "the answer is as long as it may be",
}


def _reason(task: Task) -> str | None:
    if task.failure is not None:
        return task.failure.message
    reason = task.incomplete_reason
    return None if reason is None else _INCOMPLETE.get(reason, f"the answer is incomplete: {reason}")


class BatchObject(Answer):
    """`completed` when the last of its tasks has ended, however they did. `chosen`: the task that somebody
    chose."""

    batch_id: str
    conversation_id: str | None
    status: Status
    prompt: str
    created_at: Timestamp
    chosen: str | None
    tasks: list[TaskObject]

    @classmethod
    def of(cls, batch: Batch, now: float) -> Self:
        return cls(
            batch_id=batch.id,
            conversation_id=batch.conversation_id,
            status=Status.COMPLETED if batch.is_complete else Status.IN_PROGRESS,
            prompt=batch.prompt,
            created_at=timestamp(batch.created_at),
            chosen=batch.chosen_id,
            tasks=[TaskObject.of(task, now) for task in batch.tasks],
        )
