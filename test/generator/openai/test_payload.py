"""What an upstream is asked for, in the shapes that the openai package knows."""

from typing import Any

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from pydantic import TypeAdapter

from internal.biz.generation import Job
from internal.biz.models import (
    Attachment,
    Message,
    OutputFormat,
    Role,
    Sampling,
    Settings,
    Tool,
    ToolCall,
    Tooling,
)
from internal.biz.sampling import RareSampling
from internal.generator.openai.options import NodeOptions, OpenAIOptions
from internal.generator.openai.payload import body, dialogue, is_under_way, without

SHAPE = TypeAdapter[Any](CompletionCreateParamsStreaming)
NODE = NodeOptions("http://127.0.0.1/v1", "", 1)
WEATHER = Tool("weather", "Tells it", {"type": "object", "properties": {}}, strict=True)
OURS = {"top_k", "min_p", "repetition_penalty"}
"""What the API reference does not have."""


def asked(*messages: Message, settings: Settings | None = None, **options: Any) -> dict[str, Any]:
    job = Job("resp_1", messages or (Message(Role.USER, "hello"),), settings or Settings())
    made = body(job, OpenAIOptions("m", (NODE,), **options))
    SHAPE.validate_python(made)
    return made


def test_nothing_is_asked_that_nobody_wants() -> None:
    assert asked().keys() == {"model", "messages", "stream", "stream_options"}


def test_everything_that_is_wanted_is_asked() -> None:
    settings = Settings(
        max_output_tokens=9,
        sampling=Sampling(0.0, 0.5, 40, 0.1, 0.2, 0.3, 1.1, 4711),
        stop=("\n", "END"),
        reasoning_effort="low",
        output_format=OutputFormat({"type": "object"}, "thing"),
        tooling=Tooling((WEATHER, Tool("now")), "required", parallel=False),
    )
    made = asked(settings=settings)
    assert made["temperature"] == 0.0
    assert (made["top_p"], made["seed"], made["stop"]) == (0.5, 4711, ["\n", "END"])
    assert [made[name] for name in sorted(OURS)] == [0.1, 1.1, 40]
    assert (made["frequency_penalty"], made["presence_penalty"]) == (0.2, 0.3)
    assert (made["max_tokens"], made["reasoning_effort"]) == (9, "low")
    assert made["response_format"]["json_schema"] == {
        "name": "thing",
        "schema": {"type": "object"},
        "strict": True,
    }
    assert made["tools"][0]["function"] == {
        "name": "weather",
        "description": "Tells it",
        "parameters": WEATHER.parameters,
        "strict": True,
    }
    assert (made["tool_choice"], made["parallel_tool_calls"]) == ("required", False)


def test_rare_sampling_is_asked_for_by_its_names() -> None:
    rare = RareSampling(
        mirostat_mode=2,
        dry_multiplier=0.8,
        dry_sequence_breakers=("\n",),
        logit_bias=((5, -100.0),),
        banned_strings=("delve",),
        typical_p=1.0,
        xtc_threshold=0.1,
    )
    made = asked(settings=Settings(sampling=Sampling(rare=rare)), rename={"mirostat_mode": "mirostat"})
    del made["model"], made["messages"], made["stream"], made["stream_options"]
    assert made == {
        "mirostat": 2,
        "dry_multiplier": 0.8,
        "dry_sequence_breakers": ["\n"],
        "logit_bias": {"5": -100.0},
        "banned_strings": ["delve"],
    }


def test_a_pattern_goes_by_the_name_that_it_has_there() -> None:
    made = asked(
        settings=Settings(output_format=OutputFormat(pattern="a+")), rename={"pattern": "guided_regex"}
    )
    assert made["guided_regex"] == "a+"
    assert "response_format" not in made


def test_any_json_and_one_tool_can_be_wanted() -> None:
    tooling = Tooling((WEATHER, Tool("now")), function="now")
    made = asked(settings=Settings(output_format=OutputFormat(), tooling=tooling))
    assert made["response_format"] == {"type": "json_object"}
    assert made["tool_choice"] == {"type": "function", "function": {"name": "now"}}


def test_tools_that_may_not_be_called_are_not_for_those_who_know_none() -> None:
    settings = Settings(tooling=Tooling((WEATHER,), "none"))
    assert asked(settings=settings)["tool_choice"] == "none"
    assert "tools" not in asked(settings=settings, tools=False)


def test_a_dialogue_with_calls_is_told_whole() -> None:
    made = asked(
        Message(Role.SYSTEM, "Be brief."),
        Message(Role.USER, "Rain?"),
        Message(Role.ASSISTANT, "", (ToolCall("call_1", "weather", "{}"),)),
        Message(Role.TOOL, "wet", call_id="call_1"),
        Message(Role.ASSISTANT, "Yes."),
        Message(Role.USER, "Where?"),
    )
    roles = [message["role"] for message in made["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "user"]
    assert made["messages"][2]["tool_calls"] == [
        {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    ]
    assert made["messages"][2]["content"] is None
    assert made["messages"][3] == {"role": "tool", "content": "wet", "tool_call_id": "call_1"}


PHOTO = Attachment("cat.png", "image/png", "file_1", url="data:image/png;base64,AAAA")
NOTES = Attachment("notes.txt", "text/plain", "file_2", text="buy milk")


def test_files_are_text_and_images_are_parts() -> None:
    message = Message(Role.USER, "What is this?", attachments=(PHOTO, NOTES))
    (made,) = asked(message, images=True)["messages"]
    words, image = made["content"]
    assert words["text"].endswith("What is this?")
    assert "buy milk" in words["text"]
    assert "notes.txt" in words["text"]
    assert image == {"type": "image_url", "image_url": {"url": PHOTO.url}}


@pytest.mark.parametrize("images", [True, False])
def test_an_image_that_cannot_be_seen_is_named(images: bool) -> None:
    image = Attachment("cat.png", "image/png", "file_1") if images else PHOTO
    (made,) = asked(Message(Role.USER, "What is this?", attachments=(image,)), images=images)["messages"]
    assert made["content"].startswith("What is this?")
    assert "cat.png" in made["content"]


def test_the_operator_has_defaults_and_other_words() -> None:
    made = asked(
        settings=Settings(max_output_tokens=9),
        extra_body={"temperature": 0.5, "max_completion_tokens": 400, "stream_options": None},
        rename={"max_tokens": "max_completion_tokens", "repetition_penalty": "repeat_penalty"},
    )
    assert made.keys() == {"model", "messages", "stream", "temperature", "max_completion_tokens"}
    assert (made["temperature"], made["max_completion_tokens"]) == (0.5, 9)
    warm = asked(settings=Settings(sampling=Sampling(temperature=1.0)), extra_body={"temperature": 0.5})
    assert warm["temperature"] == 1.0


def job(*messages: Message, **settings: Any) -> Job:
    return Job("r", messages, Settings(**settings))


def test_a_dialogue_is_known_by_its_conversation_or_its_beginning() -> None:
    first, answer = Message(Role.USER, "hello"), Message(Role.ASSISTANT, "hi")
    begun, later = job(first), job(first, answer, Message(Role.USER, "so?"))
    assert dialogue(begun) == dialogue(later)
    assert (is_under_way(begun), is_under_way(later)) == (False, True)
    others = [
        job(Message(Role.USER, "hello!")),
        job(Message(Role.SYSTEM, "Be brief."), first),
        job(first, conversation_id="conv_1"),
        job(Message(Role.USER, "another"), conversation_id="conv_2"),
    ]
    assert len({dialogue(one) for one in (begun, *others)}) == 5
    assert dialogue(job(first, conversation_id="conv_1")) == dialogue(job(answer, conversation_id="conv_1"))
    assert dialogue(job(answer)) is None


def test_a_turn_is_left_out_with_its_answer() -> None:
    system, late = Message(Role.SYSTEM, "s"), Message(Role.SYSTEM, "late")
    turns = [Message(role, text) for text in "ab" for role in (Role.USER, Role.ASSISTANT)]
    said = [system, *turns[:2], late, *turns[2:]]
    assert without(said, 0) == said
    assert without(said, 1) == [system, late, *turns[2:]]
