"""A server with a model on the real exllamav2, asked as people ask."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

pytest.importorskip("exllamav2", reason="`make test-exl2` has exllamav2")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def address(
    model_folder: Path, exllamav2_environment: Mapping[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Of a server that is ready."""
    folder = tmp_path_factory.mktemp("server")
    options = {
        "path": str(model_folder),
        "cache_tokens": 2048,
        "max_seq_len": 1024,
        "max_batch_size": 4,
        "max_output_tokens": 32,
        "temperature": 0,
        "warmup": False,
    }
    conf = folder / "config.yaml"
    sections: dict[str, Any] = {
        "server": {"http": {"addr": "127.0.0.1:0"}},
        "storage": {"url": f"sqlite:///{folder}/sluice.db", "titles": False},
        "files": {"folder": str(folder / "files")},
        "auth": {"secret_file": str(folder / "secret.key")},
        "models": [{"name": "smollm2", "generator": "exllamav2", "options": options}],
    }
    conf.write_text(yaml.safe_dump(sections))
    server = subprocess.Popen(
        [sys.executable, "-m", "cmd.server", "-conf", str(conf)],
        cwd=ROOT,
        env={**os.environ, **exllamav2_environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    with server:
        assert server.stdout is not None
        for line in server.stdout:
            if "ws://" in line:
                yield line.rpartition("ws://")[2].removesuffix("/ws\n")
                break
        else:
            pytest.fail("the server ended before it was ready")
        server.send_signal(signal.SIGTERM)
        server.stdout.read()
        assert server.wait(60) == 0


async def test_the_capital_of_france_is_paris(address: str) -> None:
    async with aiohttp.ClientSession() as http, http.ws_connect(f"ws://{address}/ws") as socket:
        await socket.send_str("What is the capital of France?")
        said = ""
        while "Paris" not in said:
            said += await socket.receive_str(timeout=60)


async def test_a_dialogue_says_what_of_it_was_in_the_cache(address: str) -> None:
    async with aiohttp.ClientSession(f"http://{address}") as http:
        asked: dict[str, Any] = {"model": "smollm2", "input": "What is the capital of Italy?"}
        async with http.post("/v1/responses", json=asked) as answer:
            first = await answer.json()
        asked = {"model": "smollm2", "input": "And of Spain?", "previous_response_id": first["id"]}
        async with http.post("/v1/responses", json=asked) as answer:
            second = await answer.json()
    assert first["status"] == second["status"] == "completed"
    usage = second["usage"]
    assert usage["input_tokens_details"]["cached_tokens"] >= first["usage"]["total_tokens"] - 1


async def test_a_schema_holds_over_http(address: str) -> None:
    schema = {
        "type": "object",
        "properties": {"capital": {"type": "string", "maxLength": 16}},
        "required": ["capital"],
        "additionalProperties": False,
    }
    body = {
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": schema}},
    }
    url = f"http://{address}/v1/chat/completions"
    async with aiohttp.ClientSession() as http, http.post(url, json=body) as answer:
        said = await answer.json()
    assert list(json.loads(said["choices"][0]["message"]["content"])) == ["capital"]


async def test_the_engine_tells_what_it_does(address: str) -> None:
    async with aiohttp.ClientSession(f"http://{address}") as http, http.get("/metrics") as answer:
        text = await answer.text()
    told = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("sluice_engine_"))
    assert float(told['sluice_engine_cache_pages{model="smollm2"}']) == 8
    assert float(told['sluice_engine_cache_pages_used{model="smollm2"}']) == 0
    assert float(told['sluice_engine_generated_tokens_total{model="smollm2"}']) > 0
    assert float(told['sluice_engine_step_seconds_count{model="smollm2"}']) > 0
