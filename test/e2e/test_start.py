"""How the process starts: what it refuses to start with, and what it says while it loads."""

import re
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

if TYPE_CHECKING:
    from test.conftest import RunProgram
    from test.e2e.conftest import Reply, RunServer, Server

ECHO = {"name": "echo", "generator": "echo", "options": {"interval": "10ms"}}


def write(folder: Path, text: str) -> Path:
    path = folder / "sluice.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("processes", [1, 2])
def test_a_port_in_use_is_one_clear_line(run_program: "RunProgram", tmp_path: Path, processes: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        server = {"http": {"addr": address}, "processes": processes}
        tree = {"server": server, "queue": {"driver": "redis"}, "models": [ECHO]}
        conf = write(tmp_path, yaml.safe_dump(tree))
        ended = run_program("-m", "cmd.server", "-conf", str(conf), fresh=True)
    assert ended == (1, "", f"cannot listen on {address}: Address already in use\n")


@pytest.mark.parametrize(
    ("text", "tells"),
    [
        ("sesion: {}", ["unknown key sesion", "session"]),
        ("session: {pong_timout: 3s}", ["session.pong_timout", "did you mean pong_timeout?"]),
        ("session: {grace: soon}", ["session.grace", "'soon' is not a duration"]),
        ("session: {max_in_flight: 0}", ["session.max_in_flight", "greater than or equal to 1"]),
        ("server: {http: {addr: here}}", ["server.http.addr", "host:port"]),
        ("models: [{name: e, generator: magic}]", ["models.0", "echo", "llamacpp"]),
        (
            "models: [{name: m, generator: llamacpp, options: {path: /nowhere/m.gguf}}]",
            ["models.0.options.path", "there is no file /nowhere/m.gguf"],
        ),
        ("server: {processes: 2}", ["server.processes", "set queue.driver: redis"]),
        ("server: [", ["line 1", "not valid YAML"]),
    ],
)
def test_a_bad_configuration_exits_2_naming_key_and_file(
    run_program: "RunProgram", tmp_path: Path, text: str, tells: list[str]
) -> None:
    conf = write(tmp_path, text)
    status, output, errors = run_program("-m", "cmd.server", "-conf", str(conf))
    assert (status, output) == (2, "")
    assert errors.startswith(str(conf))
    assert errors.count("\n") == 1
    for part in tells:
        assert part in errors


def test_a_model_that_is_not_there_exits_1_and_says_so_once(
    run_program: "RunProgram", tmp_path: Path
) -> None:
    conf = tmp_path / "config.yaml"
    model = {"name": "m", "generator": "exllamav2", "options": {"path": str(tmp_path / "nowhere")}}
    storage = {"url": f"sqlite:///{tmp_path}/sluice.db"}
    server = {"http": {"addr": "127.0.0.1:0"}}
    auth = {"secret_file": str(tmp_path / "secret.key")}
    conf.write_text(yaml.safe_dump({"models": [model], "storage": storage, "server": server, "auth": auth}))
    status, _, errors = run_program("-m", "cmd.server", "-conf", str(conf), fresh=True)
    assert status == 1
    assert errors.count("there is no model folder") == 1
    assert "Traceback" not in errors


def test_a_missing_configuration_file_exits_2(run_program: "RunProgram", tmp_path: Path) -> None:
    ended = run_program("-m", "cmd.server", "-conf", str(tmp_path / "none.yaml"), fresh=True)
    assert ended == (2, "", f"there is no configuration file {tmp_path}/none.yaml\n")


def test_a_bad_variable_is_named_instead_of_the_file(run_program: "RunProgram", tmp_path: Path) -> None:
    conf = write(tmp_path, "{}")
    env = {"SLUICE_SESSION__GRACE": "soon"}
    status, output, errors = run_program("-m", "cmd.server", "-conf", str(conf), env=env)
    assert (status, output) == (2, "")
    assert errors.startswith("SLUICE_SESSION__GRACE: session.grace: 'soon' is not a duration")
    assert errors.count("\n") == 1


def test_check_prints_what_is_in_effect_with_secrets_masked(
    run_program: "RunProgram", tmp_path: Path
) -> None:
    conf = write(
        tmp_path, "auth: {jwt_secret: do-not-tell-what-signs-all-the-tokens}\nsession: {grace: 1500ms}\n"
    )
    env = {"SLUICE_SESSION__MAX_IN_FLIGHT": "3"}
    status, output, errors = run_program("-m", "cmd.server", "-conf", str(conf), "-check", env=env)
    assert (status, errors) == (0, "")
    assert "do-not-tell" not in output
    effective = yaml.safe_load(output)
    assert effective["auth"]["jwt_secret"] == "**********"
    assert effective["session"]["grace"] == "1.5s"
    assert effective["session"]["max_in_flight"] == 3
    assert effective["models"][0]["name"] == "smollm2"


def test_the_configuration_that_comes_with_sluice_is_good(run_program: "RunProgram") -> None:
    status, output, errors = run_program(
        "-m", "cmd.server", "-check", "-conf", "configs/config.yaml", fresh=True
    )
    assert (status, errors) == (0, "")
    assert yaml.safe_load(output)["server"]["http"]["addr"] == "0.0.0.0:8080"


def test_a_variable_overrides_the_address_and_port_0_is_a_free_one(run_server: "RunServer") -> None:
    env = {"SLUICE_SERVER__HTTP__ADDR": "127.0.0.1:0"}
    with run_server({"models": [ECHO]}, env=env, ready=False, fresh=True) as server:
        until = time.monotonic() + 20
        while not (banner := re.search(r"ws://localhost:(\d+)/ws", server.output)):
            assert time.monotonic() < until, server.log
            time.sleep(0.02)
        configured, server.port = server.port, int(banner[1])
        assert server.port not in (0, configured)
        assert server.get("/readyz").status == 200


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_stops_at_once(run_server: "RunServer", number: signal.Signals) -> None:
    with run_server({"models": [ECHO]}, fresh=True) as server:
        server.signal(number)
        assert server.wait(timeout_s=3) == 0


@pytest.mark.real_model
def test_a_loading_server_is_alive_but_not_ready_and_answers_later(run_server: "RunServer") -> None:
    options = {"slots": 1, "context": 256, "max_output_tokens": 8}
    models = [{"name": "smollm2", "generator": "llamacpp", "options": options}]
    with run_server({"models": models}, ready=False, fresh=True) as server:
        alive = first_reply(server, "/livez")
        assert (alive.status, alive.text) == (200, "ok\n")
        readiness = server.get("/readyz")
        assert readiness.status == 503, "loaded before anybody could look: make the model bigger"
        assert readiness.json["status"] == "loading"
        assert readiness.json["models"]["smollm2"]["ready"] is False
        with connect(server.ws(), proxy=None) as early:
            early.send("Say hello.")
            assert server.get("/readyz").status == 503, "the message was not sent while loading"
            server.wait_until_ready()
            assert early.recv(timeout=20)
        readiness = server.get("/readyz")
        assert readiness.json == {
            "status": "ready",
            "models": {"smollm2": {"ready": True, "progress": 1.0}},
        }
    assert f"page    http://localhost:{server.port}/\n" in server.output
    assert f"wscat -c ws://localhost:{server.port}/ws" in server.output


def first_reply(server: "Server", path: str) -> "Reply":
    until = time.monotonic() + 20
    while True:
        try:
            return server.get(path)
        except ConnectionRefusedError:
            assert time.monotonic() < until, server.log
            time.sleep(0.005)


def test_a_signal_while_loading_stops_the_server(run_server: "RunServer", tmp_path: Path) -> None:
    with run_server(loads_slowly(tmp_path, gibibytes=3), ready=False, fresh=True) as server:
        wait_until_loading(server.log_file)
        server.signal()
        assert server.wait(timeout_s=3) == 0


def test_a_file_that_is_no_model_is_one_clear_line(run_server: "RunServer", tmp_path: Path) -> None:
    with run_server(loads_slowly(tmp_path, gibibytes=0.5), ready=False, fresh=True) as server:
        wait_until_loading(server.log_file)
        # Somebody is connected, and waits: that must not keep the process.
        with connect(server.ws(), proxy=None) as waiting:
            waiting.send("Is anybody there?")
            with pytest.raises(ConnectionClosed):
                waiting.recv(timeout=10)
        assert server.wait() == 1
        last = server.log.splitlines()[-1]
        assert "llama.cpp cannot load" in last
        assert "model.gguf" in last
        server.expected_status = 1


def loads_slowly(folder: Path, gibibytes: float) -> dict[str, object]:
    """A model whose file takes a moment to read, and which is none."""
    path = folder / "model.gguf"
    with path.open("wb") as file:
        file.truncate(int(gibibytes * (1 << 30)))  # sparse: it takes no space
    return {"models": [{"name": "big", "generator": "llamacpp", "options": {"path": str(path)}}, ECHO]}


def wait_until_loading(log: Path) -> None:
    until = time.monotonic() + 20
    while "loading big" not in log.read_text():
        assert time.monotonic() < until, log.read_text()
        time.sleep(0.005)
