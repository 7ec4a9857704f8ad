"""What was said, in pieces as the Responses API counts them: messages, reasoning, calls and their outputs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from internal.biz.models import ItemKind, Message, OutputItem, Request, Role

OUTPUT = 1_000_000
"""The position of a response's first piece of output: behind all that was asked."""


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a piece stands: what was asked counts from 0, what was answered from OUTPUT."""

    response_id: str
    position: int


@dataclass(frozen=True, slots=True)
class Item:
    """A piece of what was asked (a Message, with one call at most and then no text), or answered."""

    place: Place
    said: Message | OutputItem

    @property
    def chars(self) -> int:
        """What it counts for the size of its turn, in characters."""
        if isinstance(self.said, Message):
            return self.said.chars
        if self.said.kind is ItemKind.REASONING:
            return 0
        call = self.said.call
        return len(self.said.text) + (len(call.name) + len(call.arguments) if call is not None else 0)


def pieces(messages: Sequence[Message]) -> Sequence[Message]:
    """The same, with each call by itself, behind the text that it came with."""
    found: list[Message] = []
    for message in messages:
        if not message.calls:
            found.append(message)
            continue
        if message.content or message.attachments:
            found.append(replace(message, calls=()))
        found += [replace(message, content="", calls=(call,), attachments=()) for call in message.calls]
    return found


def joined(messages: Iterable[Message]) -> tuple[Message, ...]:
    """The opposite of `pieces`: what a model calls is part of what it said just before. Takes time in
    proportion to them, however many calls one message has."""
    found: list[Message] = []
    more: list[Message] = []
    for message in messages:
        if message.calls and found and found[-1].role is Role.ASSISTANT:
            more.append(message)
            continue
        _add(found, more)
        found.append(message)
    _add(found, more)
    return tuple(found)


def _add(found: list[Message], more: list[Message]) -> None:
    """Make what came behind the last message part of it."""
    if more:
        said = (found[-1], *more)
        calls = tuple(call for message in said for call in message.calls)
        found[-1] = replace(said[0], content="".join(message.content for message in said), calls=calls)
        more.clear()


def asked(request: Request) -> Sequence[Item]:
    """What a request asks."""
    return [
        Item(Place(request.response_id, position), message)
        for position, message in enumerate(pieces(request.messages))
    ]
