"""What was said, in pieces and joined again."""

from internal.biz.items import joined, pieces
from internal.biz.models import Message, Role, ToolCall

CALLS = tuple(ToolCall(f"call_{number}", "f", "{}") for number in range(3))


def test_pieces_are_joined_to_what_they_were() -> None:
    said = (
        Message(Role.USER, "a"),
        Message(Role.ASSISTANT, "b", CALLS),
        Message(Role.TOOL, "c", call_id="call_0"),
        Message(Role.ASSISTANT, "", CALLS[:1]),
        Message(Role.USER, "d"),
        Message(Role.ASSISTANT, "e"),
    )
    assert len(pieces(said)) == 9
    assert joined(pieces(said)) == said
    assert joined([]) == ()


def test_what_is_said_behind_a_call_stays_apart() -> None:
    said = (Message(Role.USER, "a"), Message(Role.ASSISTANT, "", CALLS[:1]), Message(Role.ASSISTANT, "b"))
    assert joined(said) == said


def test_many_calls_are_joined_in_one_go() -> None:
    calls = CALLS * 20_000
    assert joined(pieces([Message(Role.ASSISTANT, "", calls)])) == (Message(Role.ASSISTANT, "", calls),)
