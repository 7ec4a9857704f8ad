"""What a person is told while a server starts."""

import socket

import pytest

from cmd.progress import say_ready


def test_a_person_is_told_where_the_server_is(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        say_ready(listener)
        address = f"ws://localhost:{listener.getsockname()[1]}/ws"
    assert address in capsys.readouterr().out


def test_a_server_that_stops_before_it_is_ready_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.close()
    say_ready(listener)
    assert capsys.readouterr().out == ""
