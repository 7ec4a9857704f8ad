"""Listening sockets, and the limits of the process that holds many."""

import contextlib
import resource
import socket
from collections.abc import Iterator

from internal.biz.errors import SluiceError

BACKLOG = 4096


@contextlib.contextmanager
def naming(address: str) -> Iterator[None]:
    """Failures to listen, as a SluiceError that says where."""
    try:
        yield
    except (OSError, UnicodeError) as error:
        # What Python finds wrong by itself, such as a path that is too long, has no number.
        system = error.strerror or str(error) if isinstance(error, OSError) else "not a host name"
        raise SluiceError(f"cannot listen on {address}: {system}") from error


def listen(host: str, port: int, send_buffer_bytes: int) -> socket.socket:
    """A listening TCP socket. Raises OSError when the address cannot be had.

    Accepted sockets inherit the kernel's send buffer size from it: without a bound the kernel holds up
    to 4 MiB for a client that does not read.
    """
    listener = _bound(host, port, shared=False)
    _start(listener, send_buffer_bytes)
    return listener


def listen_together(host: str, port: int, send_buffer_bytes: int, count: int) -> list[socket.socket]:
    """`count` listening sockets of one address, over which Linux spreads the connections. Port 0: the first
    takes a free one, and the others the same. Raises OSError."""
    if port:
        # Sharing servers of one user may share with each other, and one that was started twice would.
        _bound(host, port, shared=False).close()
    with contextlib.ExitStack() as on_error:
        listeners: list[socket.socket] = []
        for _ in range(count):
            listener = on_error.enter_context(_bound(host, port, shared=True))
            listeners.append(listener)
            port = listener.getsockname()[1]
        for listener in listeners:
            _start(listener, send_buffer_bytes)
        on_error.pop_all()
    return listeners


def _bound(host: str, port: int, *, shared: bool) -> socket.socket:
    family, kind, proto, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    bound = socket.socket(family, kind, proto)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def _start(listener: socket.socket, send_buffer_bytes: int) -> None:
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise


def raise_descriptor_limit() -> int:
    """Allow this process as many descriptors as the system lets it have; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # macOS calls its hard limit infinite and refuses it
        return soft
    return hard
