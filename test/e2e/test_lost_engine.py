"""A server that runs its models itself loses its engine: its clients come back to the next process."""

import re
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from websockets.exceptions import ConnectionClosed

if TYPE_CHECKING:
    from test.e2e.conftest import JSON, OpenResponses, RunServer

PROGRAM = (str(Path(__file__).parents[1] / "chaos" / "programs" / "losing.py"), "server")
CONFIG: "JSON" = {
    "models": [{"name": "slow", "generator": "echo", "options": {"chunks": 100, "interval": "50ms"}}],
}


async def test_clients_are_told_and_come_back_to_the_process_that_takes_its_place(
    run_server: "RunServer", responses_socket: "OpenResponses"
) -> None:
    with run_server(CONFIG, program=PROGRAM) as server:
        server.expected_alarm = (
            r"ERROR +sluice: the engine is lost, and this process ends: a fault that sticks"
        )
        (first,) = psutil.Process(server.process.pid).children()
        async with responses_socket(server) as socket, responses_socket(server) as other:
            await other.create("hello")
            await other.until("response.output_text.delta")
            await socket.create("this is fatal")
            failed: list[str] = []
            for one in (socket, other):
                response = (await one.until("response.failed"))[-1]["response"]
                assert response["error"]["code"] == "engine_lost"
                failed.append(response["id"])
                with pytest.raises(ConnectionClosed) as closed:
                    await one.event()
                assert closed.value.rcvd is not None
                assert closed.value.rcvd.code == 1012
        async with responses_socket(server) as socket:  # which waits in the backlog of the supervisor
            (second,) = psutil.Process(server.process.pid).children()
            assert second.pid != first.pid
            stored = (await server.fetch(f"/v1/responses/{failed[1]}")).json
            assert (stored["status"], stored["error"]["code"]) == ("failed", "engine_lost")
            await socket.create("this is not fatal any more")
            await socket.until("response.output_text.delta")
        assert len(re.findall(r"starting another number=0 status=75", server.log)) == 1
        assert server.output.count("Sluice is ready") == 1
        assert not re.search(r"\bprocess=", (await server.fetch("/metrics")).text)

        server.signal(signal.SIGKILL)
        server.expected_status = -signal.SIGKILL
        second.wait(15)
