"""What many tests begin with: somebody has an account, and something was asked and answered."""

from typing import TYPE_CHECKING

from pages import ChatPage
from scripted import Upstream

if TYPE_CHECKING:
    from test.conftest import Server

PASSWORD = "correct horse battery"
"""Of everybody here."""


async def register(server: "Server", name: str) -> None:
    """A user, from elsewhere than the page."""
    body = {"username": name, "email": f"{name}@example.org", "password": PASSWORD}
    reply = await server.fetch("/api/v1/auth/register", "POST", body=body)
    assert reply.status == 201, reply.text


async def talk(chat: ChatPage, upstream: Upstream, question: str, *answer: str) -> None:
    """Ask one model, whose answer comes in these pieces, and wait for its end."""
    await chat.send(question)
    while (turn := await upstream.asked()).over.is_set():
        pass  # it was answered before
    assert turn.question == question
    await turn.answer(*answer)
    await chat.ended()
