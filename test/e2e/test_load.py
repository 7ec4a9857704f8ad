"""The load tester against the real server: nothing is lost."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from test.conftest import RunProgram
    from test.e2e.conftest import RunServer, Server


@pytest.fixture(scope="module")
def server(run_server: "RunServer") -> Iterator["Server"]:
    models = [{"name": "echo", "generator": "echo", "options": {"interval": "20ms"}}]
    with run_server({"models": models}) as server:
        yield server


@pytest.mark.parametrize("dialect", ["text", "responses"])
def test_every_message_is_answered_in_full(
    server: "Server", run_program: "RunProgram", tmp_path: Path, dialect: str
) -> None:
    report = tmp_path / "report.html"
    ended = run_program(
        *("-m", "cmd.loadtest", "-url", server.ws("/"), "-dialect", dialect, "-model", "echo"),
        *("-connections", "200", "-rounds", "5", "-ramp", "400", "-report", str(report)),
    )
    assert ended.errors == ""
    assert ended.status == 0, ended.output
    assert "OK: 1,000 of 1,000 messages answered in full" in ended.output
    assert "<svg" in report.read_text()


def test_the_server_counts_the_same(server: "Server", run_program: "RunProgram") -> None:
    def completed() -> int:
        found = re.search(
            r'^sluice_responses_total\{model="echo",status="completed"\} (\d+)',
            server.get("/metrics").text,
            re.MULTILINE,
        )
        return int(found[1]) if found else 0

    before = completed()
    ended = run_program("-m", "cmd.loadtest", "-url", server.ws(), "-connections", "20", "-rounds", "3")
    assert ended.status == 0, ended.output
    assert completed() - before == 60
