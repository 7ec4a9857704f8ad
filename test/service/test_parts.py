"""What a message has beside text, as the OpenAI API writes it."""

from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from internal.biz.errors import InvalidRequest, UnsupportedParameter
from internal.biz.models import Attachment, Message, Role
from internal.service.codec.parts import ChatParts, attachments_of, text_of
from internal.service.codec.responses_request import ResponseCreate, invalid

PNG = "data:image/png;base64,iVBORw0KGgo="


def turn(*content: object, role: str = "user") -> tuple[Message, ...]:
    try:
        return ResponseCreate.model_validate({"input": [{"role": role, "content": list(content)}]}).ask().turn
    except ValidationError as error:
        raise invalid(error) from error


def refused(*content: object, role: str = "user") -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refusal:
        turn(*content, role=role)
    return refusal.value


def test_a_message_has_text_files_and_images() -> None:
    (message,) = turn(
        {"type": "input_text", "text": "look: "},
        {"type": "input_file", "file_id": "file_1"},
        {"type": "input_file", "filename": "a.txt", "file_data": "aGk="},
        {"type": "input_file", "filename": "b.txt", "file_data": "data:text/plain;base64,aGk="},
        {"type": "input_image", "file_id": "file_2", "detail": "low"},
        {"type": "input_image", "image_url": PNG},
        {"type": "input_text", "text": "what is it?"},
    )
    assert message == Message(
        Role.USER,
        "look: what is it?",
        attachments=(
            Attachment("", "", "file_1"),
            Attachment("a.txt", "", url="data:;base64,aGk="),
            Attachment("b.txt", "", url="data:text/plain;base64,aGk="),
            Attachment("", "image/*", "file_2"),
            Attachment("", "image/*", url=PNG),
        ),
    )


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "input_image", "image_url": "https://example.org/cat.png"}, ".image_url"),
        ({"type": "input_image", "image_url": "file:///etc/passwd"}, ".image_url"),
        ({"type": "input_file", "file_url": "http://169.254.169.254/"}, ".file_url"),
        ({"type": "input_image", "file_id": "../../etc/passwd"}, ".file_id"),
        ({"type": "input_file", "file_id": "x" * 65}, ".file_id"),
        ({"type": "input_file", "file_id": 5}, ".file_id"),
        ({"type": "input_file", "filename": "x"}, ""),
        ({"type": "input_file", "file_id": "file_1", "file_data": "aGk="}, ""),
        ({"type": "input_image"}, ""),
        ({"type": "input_image", "file_id": "file_1", "image_url": PNG}, ""),
    ],
)
def test_a_part_that_is_none_is_named(part: object, param: str) -> None:
    refusal = refused({"type": "input_text", "text": "x"}, part)
    assert refusal.param == f"input[0].content[1]{param}"
    assert "pydantic" not in refusal.message


def test_only_users_attach_files() -> None:
    refusal = refused({"type": "input_file", "file_id": "file_1"}, role="assistant")
    assert (refusal.param, "user" in refusal.message) == ("input[0]", True)


def test_what_is_neither_text_nor_a_file_is_unsupported() -> None:
    refusal = refused({"type": "input_audio", "data": "x"})
    assert isinstance(refusal, UnsupportedParameter)
    assert refusal.param == "input[0].content[0].type"


CHAT: TypeAdapter[Any] = TypeAdapter(ChatParts)


def test_chat_completions_have_words_of_their_own() -> None:
    parts = CHAT.validate_python(
        [
            {"type": "text", "text": "look"},
            {"type": "image_url", "image_url": {"url": PNG, "detail": "high"}},
            {"type": "file", "file": {"file_id": "file_1"}},
            {"type": "file", "file": {"filename": "a.txt", "file_data": "data:;base64,aGk="}},
        ]
    )
    assert text_of(parts) == "look"
    assert attachments_of(parts) == (
        Attachment("", "image/*", url=PNG),
        Attachment("", "", "file_1"),
        Attachment("a.txt", "", url="data:;base64,aGk="),
    )


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "image_url", "image_url": {"url": "https://example.org"}}, "[0].image_url.url"),
        ({"type": "file", "file": {"file_id": "a/b"}}, "[0].file.file_id"),
        ({"type": "file", "file": {}}, "[0].file"),
        ({"type": "input_audio", "input_audio": {}}, "[0].type"),
    ],
)
def test_a_part_of_a_chat_that_is_none_is_named(part: object, param: str) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(dict[str, ChatParts])
    with pytest.raises(ValidationError) as refusal:
        adapter.validate_python({"content": [part]})
    assert invalid(refusal.value).param == f"content{param}"


def test_told_parts_can_be_sent_again() -> None:
    (message,) = turn(
        {"type": "input_image", "detail": "auto", "file_id": "file_1", "image_url": None},
        {"type": "input_file", "file_id": "file_2", "filename": "a.txt"},
    )
    assert [it.file_id for it in message.attachments] == ["file_1", "file_2"]
