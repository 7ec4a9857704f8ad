"""The server's secret: made once, whole, and for nobody else to read."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from internal.biz.errors import SluiceError
from internal.data.credentials.secret import signing_secret

ROOT = Path(__file__).parents[3]


def test_a_secret_in_the_configuration_is_taken_and_no_file_made(tmp_path: Path) -> None:
    assert signing_secret("s" * 32, tmp_path / "secret.key") == b"s" * 32
    assert not list(tmp_path.iterdir())


def test_a_secret_that_is_no_text_is_the_bytes_that_the_environment_holds(tmp_path: Path) -> None:
    configured = os.fsdecode(b"\xff" * 32)
    assert signing_secret(configured, tmp_path / "secret.key") == b"\xff" * 32


def test_the_first_start_makes_a_secret_and_the_next_one_finds_it(tmp_path: Path) -> None:
    path = tmp_path / "data" / "deep" / "secret.key"
    secret = signing_secret("", path)
    assert len(secret) >= 43
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert signing_secret("", path) == secret
    assert [entry.name for entry in path.parent.iterdir()] == ["secret.key"]
    assert signing_secret("", tmp_path / "another.key") != secret


def test_a_file_that_somebody_wrote_is_taken_without_its_end_of_line(tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    path.write_text("s" * 40 + "\r\n")
    assert signing_secret("", path) == b"s" * 40


@pytest.mark.parametrize("content", [b"", b"\n", b"s" * 31, b" " * 40])
def test_a_file_with_too_little_in_it_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "secret.key"
    path.write_bytes(content)
    with pytest.raises(SluiceError, match=r"auth.secret_file: .*secret.key is shorter than 32 bytes"):
        signing_secret("", path)
    assert path.read_bytes() == content


def test_a_place_where_no_file_can_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path, tmp_path / "file" / "secret.key"):
        with pytest.raises(SluiceError, match=r"auth.secret_file: .*set auth.jwt_secret"):
            signing_secret("", path)


def test_processes_that_start_at_once_get_the_same_secret(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from internal.data.credentials.secret import signing_secret\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "print(signing_secret('', Path(sys.argv[1])).decode())"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / "secret.key")],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    told = {process.communicate(timeout=20)[0] for process in processes}
    assert [process.returncode for process in processes] == [0] * 8
    assert told == {(tmp_path / "secret.key").read_text()}
    assert [entry.name for entry in tmp_path.iterdir()] == ["secret.key"]
