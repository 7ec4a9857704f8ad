"""Listening sockets."""

import resource
import socket

import pytest

from internal.server.listen import listen, raise_descriptor_limit


def test_port_zero_takes_a_free_one_and_clients_get_in() -> None:
    with listen("127.0.0.1", 0, 1 << 16) as listener:
        assert not listener.getblocking()
        address = listener.getsockname()
        with socket.create_connection(address, timeout=5) as client:
            assert client.getpeername() == address


def test_accepted_sockets_inherit_a_small_send_buffer() -> None:
    with (
        listen("127.0.0.1", 0, 1 << 16) as listener,
        socket.create_connection(listener.getsockname(), timeout=5),
    ):
        listener.settimeout(5)
        accepted, _ = listener.accept()
        with accepted:
            # The kernel doubles what it is told, for its own needs.
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) <= 4 << 16


def test_an_address_in_use_is_an_error() -> None:
    with listen("127.0.0.1", 0, 1 << 16) as listener, pytest.raises(OSError, match="in use"):
        listen("127.0.0.1", listener.getsockname()[1], 1 << 16)


def test_an_address_of_another_machine_is_an_error() -> None:
    with pytest.raises(OSError, match="assign"):
        listen("192.0.2.1", 0, 1 << 16)


def test_a_process_may_open_as_many_descriptors_as_the_system_lets_it() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        assert raise_descriptor_limit() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
