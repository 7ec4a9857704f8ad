"""Which addresses are connected to, however they are spelled, and whatever a name stood for before."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import aiohttp
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from internal.generator.openai.addresses import (
    ForbiddenAddress,
    GetAddrInfo,
    Lookups,
    connector,
    is_our_own,
    is_public,
    public_socket,
)

PRIVATE_V4 = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.0.0.0/24",
    "192.168.0.0/16",
    "198.18.0.0/15",
    "203.0.113.0/24",
    "224.0.0.0/4",
    "240.0.0.0/4",
)
PRIVATE_V6 = (
    "::/127",
    "100::/64",
    "2001:db8::/32",
    "2001::/32",
    "3fff::/20",
    "5f00::/16",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
)


def within(*networks: str) -> st.SearchStrategy[int]:
    """The numbers of addresses in one of these."""
    found: list[IPv4Network | IPv6Network] = [ip_network(one) for one in networks]
    return st.one_of([st.integers(int(it[0]), int(it[-1])) for it in found])


def spelled_v4(number: int) -> list[str]:
    """The ways in which C libraries take an address of IPv4."""
    first, second, third, fourth = IPv4Address(number).packed
    return [
        str(IPv4Address(number)),
        str(number),
        hex(number),
        f"0{number:o}",
        f"{first}.{number & 0xFFFFFF}",
        f"{first:#x}.{second:#o}.{number & 0xFFFF}".replace("0o", "0"),
        f"0{first:o}.0{second:o}.0{third:o}.0{fourth:o}",
        f"{IPv4Address(number)}.",
    ]


def spelled_v6(number: int) -> list[str]:
    address = IPv6Address(number)
    return [str(address), address.exploded, address.exploded.upper(), f"{address}%1"]


def as_v6(number: int) -> list[str]:
    """An address of IPv4 as one of IPv6 that leads there somehow."""
    return [
        f"::ffff:{IPv4Address(number)}",
        str(IPv6Address((0xFFFF << 32) | number)),
        str(IPv6Address(number)),
        str(IPv6Address((0x64FF9B << 96) | number)),  # NAT64
        str(IPv6Address((0x64FF9B0001 << 80) | number)),
        str(IPv6Address((0x2002 << 112) | (number << 80) | 1)),  # 6to4
        str(IPv6Address((0x20010000 << 96) | (number ^ 0xFFFFFFFF))),  # Teredo
    ]


# ── addresses ────────────────────────────────────────────────────────────────────────────────────


@given(within(*PRIVATE_V4))
@example(int(IPv4Address("169.254.169.254")))
def test_a_private_address_is_not_public_in_any_guise(number: int) -> None:
    assert not any(map(is_public, (*spelled_v4(number), *as_v6(number))))


@given(within("0.0.0.0/0"))
def test_no_address_of_ipv4_hides_in_one_of_ipv6(number: int) -> None:
    assert not any(map(is_public, as_v6(number)))


@given(within(*PRIVATE_V6))
def test_a_private_address_of_ipv6_is_not_public(number: int) -> None:
    assert not any(map(is_public, spelled_v6(number)))


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)))
def test_nothing_is_public_that_python_knows_to_be_special(address: IPv4Address | IPv6Address) -> None:
    special = (
        address.is_private,
        address.is_multicast,
        address.is_link_local,
        address.is_loopback,
        address.is_reserved,
        address.is_unspecified,
        not address.is_global,
    )
    assert not (is_public(str(address)) and any(special))


@pytest.mark.parametrize("text", ["8.8.8.8", "1.1.1.1", "192.0.1.1", "2606:4700::1111", "2a00:1450:4001::1"])
def test_what_everybody_can_reach_is_public(text: str) -> None:
    assert is_public(text)


@given(st.text())
def test_what_is_no_address_is_not_public(text: str) -> None:
    try:
        ip_address(text)
    except ValueError:
        assert not is_public(text)


def test_this_machine_s_own_address_is_known() -> None:
    assert is_our_own(socket.AF_INET, ("127.0.0.1", 80))
    assert not is_our_own(socket.AF_INET, ("8.8.8.8", 80))


def test_a_public_address_that_is_our_own_gets_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    info = (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("8.8.8.8", 80))
    public_socket(info).close()
    monkeypatch.setattr("internal.generator.openai.addresses.is_our_own", lambda *_: True)
    with pytest.raises(ForbiddenAddress):
        public_socket(info)


# ── connections ──────────────────────────────────────────────────────────────────────────────────


class Listener:
    """Something on this machine that nobody may reach."""

    def __init__(self) -> None:
        self.connections = 0
        self.port = 0

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.close()


@pytest.fixture
async def listener(watched_loop: None) -> AsyncIterator[Listener]:
    listener = Listener()
    async with await asyncio.start_server(listener.accept, "127.0.0.1") as server:
        listener.port = server.sockets[0].getsockname()[1]
        yield listener


class Names:
    """Answers in turn with each of these addresses, and from then on with the last."""

    def __init__(self, *answers: list[str]) -> None:
        self._answers = list(answers)
        self.asked = 0

    def getaddrinfo(self, host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        self.asked += 1
        found = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        return [
            (
                socket.AF_INET6 if ":" in address else socket.AF_INET,
                socket.SOCK_STREAM,
                socket.IPPROTO_TCP,
                "",
                (address, port, 0, 0) if ":" in address else (address, port),
            )
            for address in found
        ]


@asynccontextmanager
async def session(
    getaddrinfo: GetAddrInfo = socket.getaddrinfo, *, only_public: bool = True
) -> AsyncIterator[aiohttp.ClientSession]:
    lookups = Lookups(getaddrinfo)
    made = connector(lookups, only_public=only_public)
    async with aiohttp.ClientSession(connector=made) as session:
        yield session
    await lookups.close()


async def refused(client: aiohttp.ClientSession, url: str) -> Exception:
    with pytest.raises(aiohttp.ClientError) as error:
        async with client.post(url, timeout=aiohttp.ClientTimeout(5)):
            pass
    return error.value


LOOPBACK = int(IPv4Address("127.0.0.1"))


@pytest.mark.parametrize(
    "host",
    [
        *spelled_v4(LOOPBACK),
        *(f"[{address}]" for address in as_v6(LOOPBACK)),
        "127.1",
        "0",
        "[::]",
        "[::1]",
        "localhost",
        "LOCALHOST.",
        "0x7f.1",
        "%6c%6f%63%61%6c%68%6f%73%74",
    ],
)
async def test_this_machine_is_not_reached_however_it_is_spelled(listener: Listener, host: str) -> None:
    async with session() as client:
        error = await refused(client, f"http://{host}:{listener.port}/v1/chat/completions")
    if isinstance(error, aiohttp.ClientConnectorError):
        assert isinstance(error.os_error, ForbiddenAddress | socket.gaierror)
    else:
        assert isinstance(error, aiohttp.InvalidURL)
    assert not listener.connections


async def test_any_address_may_be_reached_where_that_is_allowed(listener: Listener) -> None:
    async with session(only_public=False) as client:
        await refused(client, f"http://127.0.0.1:{listener.port}/")
    assert listener.connections == 1


async def test_a_name_that_stands_for_something_else_the_second_time_gains_nothing(
    listener: Listener, connected: list[str]
) -> None:
    names = Names(["192.0.1.1"], ["127.0.0.1"])
    url = f"http://rebind.example:{listener.port}/"
    async with session(names.getaddrinfo) as client:
        await refused(client, url)
        assert connected == ["192.0.1.1"], "it went to the very address that was looked up"
        assert client.connector is not None
        client.connector.clear_dns_cache()  # type: ignore[attr-defined]
        error = await refused(client, url)
    assert isinstance(error, aiohttp.ClientConnectorError)
    assert isinstance(error.os_error, ForbiddenAddress)
    assert (names.asked, connected, listener.connections) == (2, ["192.0.1.1"], 0)


async def test_of_several_addresses_only_public_ones_are_tried(
    listener: Listener, connected: list[str]
) -> None:
    names = Names(["127.0.0.1", "::1", "192.0.1.1", "10.0.0.1", "::ffff:127.0.0.1"])
    async with session(names.getaddrinfo) as client:
        await refused(client, f"http://mixed.example:{listener.port}/")
    assert set(connected) == {"192.0.1.1"}
    assert not listener.connections


async def test_where_no_address_is_public_that_is_what_is_said(listener: Listener) -> None:
    names = Names(["127.0.0.1", "::1", "10.0.0.1"])
    async with session(names.getaddrinfo) as client:
        error = await refused(client, f"http://inside.example:{listener.port}/")
    assert isinstance(error, aiohttp.ClientConnectorError)
    assert isinstance(error.os_error, ForbiddenAddress)
    assert not listener.connections


async def test_a_name_that_is_none_is_not_found(watched_loop: None) -> None:
    async with session() as client:
        error = await refused(client, f"http://{'x' * 64}.example/")
    assert isinstance(error, aiohttp.ClientConnectorError | aiohttp.InvalidURL)


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that were allowed to be connected to; each connection is refused by ourselves."""
    seen: list[str] = []

    def guarded(info: tuple[Any, ...]) -> socket.socket:
        made = public_socket(info)
        seen.append(info[4][0])
        made.close()
        raise ConnectionRefusedError

    monkeypatch.setattr("internal.generator.openai.addresses.public_socket", guarded)
    return seen
