"""Listening sockets, and the limits of the process that holds many."""

import resource
import socket

BACKLOG = 4096


def listen(host: str, port: int, send_buffer_bytes: int) -> socket.socket:
    """A listening TCP socket. Raises OSError when the address cannot be had.

    Accepted sockets inherit the kernel's send buffer size from it: without a bound the kernel holds up
    to 4 MiB for a client that does not read.
    """
    family, kind, proto, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
        listener.bind(address)
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def raise_descriptor_limit() -> int:
    """Allow this process as many descriptors as the system lets it have; returns how many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # macOS calls its hard limit infinite and refuses it
        return soft
    return hard
