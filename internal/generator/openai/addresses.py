"""Which addresses may be connected to where others than the operator say where an upstream is.

What counts is the address that a connection goes to, at the moment when it is made: however a URL spells it,
and whatever a name stood for when it was looked up before.

Source: https://www.iana.org/assignments/iana-ipv6-special-registry, and the same for IPv4
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from ipaddress import IPv4Address, IPv6Network, ip_address, ip_network
from typing import Any

from aiohttp import TCPConnector
from aiohttp.abc import AbstractResolver, ResolveResult

MAX_LOOKUPS = 32
"""At a time, each in a thread: a name whose servers are silent takes one for half a minute."""

_UNICAST = IPv6Network("2000::/3")
"""All of IPv6 that is given out to anybody. What stands for an address of IPv4 in some way (mapped, NAT64) is
not in it."""
_SPECIAL = tuple(
    ip_network(text)
    for text in (
        "192.0.0.0/24",  # protocols' own, some of them global
        "192.88.99.0/24",  # relays of 6to4
        "2001::/23",  # protocols' own: Teredo, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: an address of IPv4
        "3fff::/20",  # documentation
    )
)
"""What is within the others, and yet no address of a server. Not every version of Python knows all of it."""

GetAddrInfo = Callable[..., list[tuple[Any, ...]]]


class ForbiddenAddress(OSError):
    """Such an address is not connected to."""

    def __init__(self) -> None:
        super().__init__("this address is not connected to")


def is_public(text: str) -> bool:
    """Whether an address, as a socket takes it, is one that everybody on the Internet can reach."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if not address.is_global or address.is_multicast or address.is_reserved or address.is_unspecified:
        return False
    if any(address in network for network in _SPECIAL):
        return False
    return isinstance(address, IPv4Address) or (address in _UNICAST and address.scope_id is None)


def is_our_own(family: int, address: tuple[Any, ...]) -> bool:
    """Whether an address is this machine's: what listens there may take whoever comes from here for a friend.
    Sends nothing: who talks to themselves comes from the address that they go to."""
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(address)
        return bool(probe.getsockname()[0] == address[0])
    return False


def public_socket(addr_info: tuple[Any, ...]) -> socket.socket:
    """A socket that is about to be connected. Raises ForbiddenAddress."""
    family, kind, protocol, _, address = addr_info
    if not is_public(address[0]) or is_our_own(family, address):
        raise ForbiddenAddress
    return socket.socket(family, kind, protocol)


class Lookups(AbstractResolver):
    """Looks names up in threads of its own: names that are never answered must not keep those threads from
    others that the rest of the process uses. Has to be closed."""

    def __init__(self, getaddrinfo: GetAddrInfo = socket.getaddrinfo) -> None:
        self._getaddrinfo = getaddrinfo
        self._threads = ThreadPoolExecutor(MAX_LOOKUPS, "lookup")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        look = partial(
            self._getaddrinfo,
            host,
            port,
            family=family,
            type=socket.SOCK_STREAM,
            flags=socket.AI_ADDRCONFIG,
        )
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._threads, look)
        except UnicodeError as error:  # a label is too long
            raise OSError("that is not a name") from error
        return [
            ResolveResult(
                hostname=host,
                host=address[0],
                port=port,
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def connector(lookups: Lookups, *, only_public: bool) -> TCPConnector:
    """Makes connections, to public addresses only or to any."""
    return TCPConnector(limit=0, resolver=lookups, socket_factory=public_socket if only_public else None)
