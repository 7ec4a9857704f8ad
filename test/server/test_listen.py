"""Listening sockets."""

import contextlib
import resource
import socket

import pytest

from internal.biz.errors import SluiceError
from internal.server.listen import listen, listen_together, naming, raise_descriptor_limit


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


def test_several_sockets_listen_on_one_free_port() -> None:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(one) for one in listen_together("127.0.0.1", 0, 1 << 16, 3)]
        assert not any(listener.getblocking() for listener in listeners)
        (address,) = {listener.getsockname() for listener in listeners}
        for _ in range(64):
            stack.enter_context(socket.create_connection(address, timeout=5))
        for listener in listeners:
            # Each has some of them.
            listener.settimeout(5)
            stack.enter_context(listener.accept()[0])


def test_an_address_that_others_share_is_in_use_too() -> None:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(one) for one in listen_together("127.0.0.1", 0, 1 << 16, 2)]
        port = listeners[0].getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            listen_together("127.0.0.1", port, 1 << 16, 2)
        with pytest.raises(OSError, match="in use"):
            listen("127.0.0.1", port, 1 << 16)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(98, "Address already in use"), "Address already in use"),
        (OSError("AF_UNIX path too long"), "AF_UNIX path too long"),
        (UnicodeError("label too long"), "not a host name"),
    ],
)
def test_a_failure_to_listen_says_where(error: Exception, told: str) -> None:
    with pytest.raises(SluiceError, match=f"^cannot listen on here:80: {told}$"), naming("here:80"):
        raise error


def test_a_process_may_open_as_many_descriptors_as_the_system_lets_it() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        assert raise_descriptor_limit() == hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == hard
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
