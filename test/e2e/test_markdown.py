"""Markdown on a real server, which renders it in a process of its own."""

import asyncio
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from test.conftest import Eventually
    from test.e2e.conftest import RunServer, Server

ECHO = {"models": [{"name": "echo", "generator": "echo", "options": {"interval": "0"}}]}
EVIL = "```csharp\n" + "a\n" * 32_000 + "```"
"""For one expression of its lexer this is minutes of work."""


@pytest.fixture
def server(run_server: "RunServer") -> Iterator["Server"]:
    env = {"SLUICE_AUTH__JWT_SECRET": "a secret of thirty-two bytes or more"}
    with run_server(ECHO, env=env) as server:
        yield server


async def rendered(server: "Server", *texts: str) -> list[str]:
    reply = await server.fetch("/api/markdown", "POST", body={"texts": texts})
    assert reply.status == 200, reply.text
    assert "Set-Cookie" not in reply.headers
    html: list[str] = reply.json["html"]
    return html


def renderers(server: "Server") -> list[psutil.Process]:
    children = psutil.Process(server.process.pid).children()
    return [it for it in children if "cmd.renderer" in it.cmdline()]


async def test_it_is_rendered_beside_everything_else(server: "Server") -> None:
    assert renderers(server) == []
    evil = asyncio.create_task(rendered(server, EVIL))
    # Meanwhile the server answers: one text takes half a second.
    for _ in range(20):
        assert (await server.fetch("/livez")).status == 200
    html = await rendered(server, "# Hi", "<script>alert(1)</script>")
    assert html == ["<h1>Hi</h1>\n", "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>\n"]
    assert "csharp" in (await evil)[0]
    (process,) = renderers(server)
    assert not [name for name in process.environ() if name.startswith("SLUICE_")]
    server.signal()
    assert await server.exit_status() == 0
    assert not process.is_running()


async def test_nothing_is_left_of_it_when_the_server_is_killed(
    server: "Server", eventually: "Eventually"
) -> None:
    await rendered(server, "a")
    (process,) = renderers(server)
    server.expected_status = -signal.SIGKILL
    server.kill()

    async def is_gone() -> bool:
        return not process.is_running()

    await eventually(is_gone)
