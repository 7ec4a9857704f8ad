"""The address of a client, where proxies that we trust stand in between.

Each proxy adds whom it heard to the end of X-Forwarded-For; a client may send the header too, with anything
in it. So it is read from its end, for as long as those who speak are trusted: the first that is not is the
client.
"""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from aiohttp import web

MAX_HOPS = 16
"""Of longer chains only the end counts."""
_MAX_CHARS = 64
"""No address with a port is longer."""
_MAPPED = "::ffff:"

Address = IPv4Address | IPv6Address


class Proxies:
    """Those whose X-Forwarded-For counts."""

    def __init__(self, trusted: Sequence[str]) -> None:
        """`trusted`: addresses and networks. Raises ValueError."""
        self._networks = tuple(ip_network(one) for one in trusted)

    def client_of(self, request: web.Request) -> str:
        """The client's address; empty for a Unix socket."""
        remote = request.remote or ""
        if not self._networks:
            # A socket that listens to both kinds of IP writes 192.0.2.1 as ::ffff:192.0.2.1.
            return _canonical(remote) if remote.startswith(_MAPPED) else remote
        return self.client(remote, request.headers.getall("X-Forwarded-For", ()))

    def client(self, remote: str, forwarded_for: Sequence[str]) -> str:
        """Whose request came from the peer `remote` with these X-Forwarded-For headers.

        The peer's, when what it says of others cannot be understood; the farthest, when all are trusted.
        """
        peer = _parse(remote)
        if peer is None or not self._trusts(peer):
            return str(peer or remote)
        client = peer
        hops = ",".join(forwarded_for).rsplit(",", MAX_HOPS)[-MAX_HOPS:]
        for hop in reversed(hops):
            hop = hop.strip()
            if not hop:
                continue
            found = _parse(hop)
            if found is None:
                return str(peer)
            client = found
            if not self._trusts(client):
                break
        return str(client)

    def _trusts(self, address: Address) -> bool:
        return any(address in network for network in self._networks)


def _canonical(text: str) -> str:
    return str(_parse(text) or text)


def _parse(text: str) -> Address | None:
    """An address, bare or quoted, with a port or without; None when it is none."""
    if len(text) > _MAX_CHARS:
        return None
    text = text.strip('"')
    if text.startswith("["):
        text, bracket, port = text[1:].partition("]")
        if not bracket or (port and not _is_port(port)):
            return None
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not _is_port(f":{port}"):
            return None
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv4Address):
        return address
    # Without the zone, which means something on that machine only.
    return address.ipv4_mapped or IPv6Address(int(address))


def _is_port(text: str) -> bool:
    return text.startswith(":") and text.isascii() and text[1:].isdecimal() and len(text) <= 6
