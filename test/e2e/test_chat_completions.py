"""Chat Completions of the real process: by the npm package, and across protocols."""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from openai import AsyncOpenAI

if TYPE_CHECKING:
    from test.e2e.conftest import OpenResponses, RunServer, Server

Chunks = Callable[..., list[str]]
LOCK = Path(__file__).parent / "npm" / "package-lock.json"
PROGRAM = Path(__file__).parent / "programs" / "stream.cjs"
INSTALL_S = 30.0


@pytest.fixture(scope="module")
def server(run_server: "RunServer") -> Iterator["Server"]:
    models = [{"name": "echo", "generator": "echo", "options": {"interval": "50ms"}}]
    with run_server({"models": models}) as server:
        yield server


@pytest.fixture(scope="module")
def node_modules() -> Path:
    """The locked npm packages, kept beside this Python. What is missing is fetched, once, where it can be."""
    kept = Path(sys.prefix) / "npm"
    if shutil.which("node") is None:
        pytest.skip("there is no Node.js here")
    if not _is_current(kept):
        if (npm := shutil.which("npm")) is None:
            pytest.skip("the npm packages are not here, and there is no npm to fetch them")
        _install(npm, kept)
    return kept / "node_modules"


def _is_current(folder: Path) -> bool:
    lock = folder / LOCK.name
    return lock.is_file() and lock.read_bytes() == LOCK.read_bytes()


def _install(npm: str, kept: Path) -> None:
    try:
        with tempfile.TemporaryDirectory(dir=kept.parent) as name:
            folder = Path(name) / "npm"
            shutil.copytree(LOCK.parent, folder)
            command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--fetch-retries=0"]
            subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=INSTALL_S)
            shutil.rmtree(kept, ignore_errors=True)
            folder.rename(kept)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"the npm packages cannot be fetched: {error}")


@pytest.mark.deadline_s(60)
async def test_the_npm_package_streams(server: "Server", node_modules: Path, echo_chunks: Chunks) -> None:
    node = await asyncio.create_subprocess_exec(
        "node",
        str(PROGRAM),
        server.http("/v1"),
        env={**os.environ, "NODE_PATH": str(node_modules)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, complaint = await node.communicate()
    assert node.returncode == 0, complaint.decode()
    assert json.loads(output) == {
        "deltas": echo_chunks("hello"),
        "finish_reasons": ["stop"],
        "usage": {
            "prompt_tokens": 1,
            "completion_tokens": 5,
            "total_tokens": 6,
            "prompt_tokens_details": {"cached_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0},
        },
        "error": "NotFoundError",
    }


async def test_a_stored_completion_goes_on_as_a_response(
    server: "Server", responses_socket: "OpenResponses", echo_chunks: Chunks
) -> None:
    async with AsyncOpenAI(base_url=server.http("/v1"), api_key="unused") as client:
        ids = []
        for store in (True, False):
            said = await client.chat.completions.create(
                model="echo",
                messages=[
                    {"role": "system", "content": "be brief"},
                    {"role": "user", "content": "hello"},
                ],
                store=store,
            )
            assert said.choices[0].message.content == "".join(echo_chunks("hello"))
            ids.append(said.id.replace("chatcmpl-", "resp_"))
    stored, forgotten = ids
    async with responses_socket(server) as socket:
        for response_id in ids:
            await socket.resume(response_id)
            assert (await socket.rest()).text == "".join(echo_chunks("hello"))
        assert (await socket.ask("and?", previous_response_id=stored)).text == "".join(echo_chunks("and?"))
        await socket.create("and?", previous_response_id=forgotten)
        assert (await socket.error())["code"] == "previous_response_not_found"
