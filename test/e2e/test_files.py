"""Files of users, from their upload to their end with the account, over the real process."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from openai import AsyncOpenAI

if TYPE_CHECKING:
    from test.e2e.conftest import JSON, RunServer, Server, Visitor

PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def server(run_server: "RunServer") -> Iterator["Server"]:
    models = [{"name": "echo", "generator": "echo", "options": {"interval": "0"}}]
    with run_server({"models": models}) as server:
        yield server


@pytest.fixture
def stored(server: "Server") -> Callable[[], set[str]]:
    """The ids of all files that have bytes."""
    return lambda: {it.name for it in (server.config_file.parent / "files").glob("??/*")}


async def upload(visitor: "Visitor", name: str, content: bytes) -> str:
    async with AsyncOpenAI(base_url=visitor.server.http("/v1"), api_key=visitor.token) as client:
        return (await client.files.create(file=(name, content), purpose="user_data")).id


def asks(text: str, *parts: "JSON") -> "list[JSON]":
    return [{"role": "user", "content": [{"type": "input_text", "text": text}, *parts]}]


async def test_a_file_from_its_upload_to_the_end_of_the_account(
    server: "Server", visitor: "type[Visitor]", stored: Callable[[], set[str]]
) -> None:
    ada, bob = visitor(server), visitor(server)
    await ada.register("ada")
    await bob.register("bob")
    file_id, his = await upload(ada, "notes.txt", b"hello"), await upload(bob, "his.txt", b"hi")
    begun = (await ada.call("POST", "/conversations", {})).json["session_id"]
    async with ada.responses() as socket:
        answer = await socket.ask(
            asks("sum it up", {"type": "input_file", "file_id": file_id}), conversation=begun
        )
        # An echo says what was said, and not what was attached.
        assert answer.text == "".join(f"chunk {number}: sum it up" for number in range(1, 6))
        await socket.create(asks("look", {"type": "input_file", "file_id": his}))
        assert (await socket.error())["code"] == "file_not_found"
        image = {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo="}
        await socket.create(asks("look", image))
        assert "'echo' cannot do this: images" in (await socket.error())["message"]
    said = (await ada.call("GET", f"/conversations/{begun}/history")).json["messages"]
    assert [message["content"] for message in said] == ["sum it up", answer.text]
    assert said[0]["attachments"] == [{"file_id": file_id, "name": "notes.txt", "media_type": "text/plain"}]
    assert stored() == {file_id, his}
    assert (await ada.call("DELETE", "/api/v1/me", {"password": PASSWORD})).status == 204
    assert stored() == {his}


async def test_a_guest_takes_their_files_along(server: "Server", visitor: "type[Visitor]") -> None:
    guest = visitor(server)
    async with AsyncOpenAI(base_url=server.http("/v1"), api_key="unused") as client:
        file = await client.files.create(file=("mine.txt", b"mine"), purpose="user_data")
        # The package keeps cookies, as a browser does.
        for cookie in client._client.cookies.jar:
            guest.cookies[cookie.name] = cookie.value or ""
    await guest.register("eve")
    reply = await guest.call("GET", f"/v1/files/{file.id}/content")
    assert (reply.status, reply.text) == (200, "mine")


async def test_the_folder_is_nobody_elses(server: "Server", visitor: "type[Visitor]") -> None:
    await upload(visitor(server, token="unused"), "a.txt", b"x")
    folder = server.config_file.parent / "files"
    assert _mode(folder) == 0o700
    assert {_mode(it) for it in folder.glob("??/*")} == {0o600}


def _mode(path: Path) -> int:
    return path.stat().st_mode & 0o777
