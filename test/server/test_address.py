"""Who the client is, whatever stands in X-Forwarded-For."""

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from internal.server.address import MAX_HOPS, Proxies

PEER = "10.0.0.9"
PROXIES = Proxies(["10.0.0.0/8", "192.168.1.1", "2001:db8:ffff::/48"])


@pytest.mark.parametrize(
    ("header", "client"),
    [
        ("198.51.100.7", "198.51.100.7"),
        # What the client wrote itself stands before what the proxy added.
        ("1.1.1.1, 198.51.100.7", "198.51.100.7"),
        ("10.1.1.1, 198.51.100.7", "198.51.100.7"),
        ("nonsense, 198.51.100.7", "198.51.100.7"),
        # Several proxies of ours, one behind the other.
        ("198.51.100.7, 10.1.1.1", "198.51.100.7"),
        ("1.1.1.1, 198.51.100.7, 192.168.1.1, 10.1.1.1", "198.51.100.7"),
        ("1.1.1.1, 198.51.100.7, 192.168.1.2, 10.1.1.1", "192.168.1.2"),
        ("198.51.100.7, 2001:db8:ffff::1", "198.51.100.7"),
        # All of them ours: the farthest one is.
        ("10.2.2.2, 10.1.1.1", "10.2.2.2"),
        ("", PEER),
        (" , ,, ", PEER),
        ("198.51.100.7, ", "198.51.100.7"),
        # Ports, brackets, quotes.
        ("198.51.100.7:4711", "198.51.100.7"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        ('"[2001:db8::1]:4711"', "2001:db8::1"),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("::ffff:198.51.100.7", "198.51.100.7"),
        ("[::ffff:198.51.100.7]:80", "198.51.100.7"),
        ("198.51.100.7, ::ffff:10.1.1.1", "198.51.100.7"),
        ("\t198.51.100.7\t", "198.51.100.7"),
        # What cannot be understood says nothing.
        ("unknown", PEER),
        ("_hidden", PEER),
        ("198.51.100.7, unknown", PEER),
        ("198.51.100.7, unknown, 10.1.1.1", PEER),
        ("198.51.100.7:", PEER),
        ("198.51.100.7:http", PEER),
        ("198.51.100.7:123456", PEER),
        ("198.51.100.7:٣", PEER),
        ("[2001:db8::1", PEER),
        ("[2001:db8::1]4711", PEER),
        ("2001:db8::1]", PEER),
        ("198.51.100.07", PEER),
        ("198.51.100", PEER),
        ("3325256711", PEER),
        ("0xc6336407", PEER),
        ("198.51.100.7/32", PEER),
        ("198.51.100.7 1.1.1.1", PEER),
        ("for=198.51.100.7", PEER),
        ("<script>", PEER),
        ("::1%" + "x" * 1000, PEER),
        ("1" * 100_000, PEER),
    ],
)
def test_what_a_trusted_proxy_says(header: str, client: str) -> None:
    assert PROXIES.client(PEER, [header]) == client


@pytest.mark.parametrize("peer", ["198.51.100.1", "2001:db8::1", "192.168.1.2", "172.16.0.1"])
@pytest.mark.parametrize("header", ["1.1.1.1", "10.0.0.1", "127.0.0.1", "unknown"])
def test_what_others_say_does_not_count(peer: str, header: str) -> None:
    assert PROXIES.client(peer, [header]) == peer


def test_several_headers_are_one() -> None:
    assert PROXIES.client(PEER, ["1.1.1.1, 198.51.100.7", "10.1.1.1"]) == "198.51.100.7"
    assert PROXIES.client(PEER, ["198.51.100.7", "192.168.1.2", "10.1.1.1"]) == "192.168.1.2"


def test_a_very_long_chain_is_not_followed_to_its_begin() -> None:
    assert PROXIES.client(PEER, ["198.51.100.7" + ", 10.1.1.1" * (MAX_HOPS - 1)]) == "198.51.100.7"
    assert PROXIES.client(PEER, ["198.51.100.7" + ", 10.1.1.1" * MAX_HOPS]) == "10.1.1.1"
    assert PROXIES.client(PEER, ["," * 1_000_000]) == PEER
    assert PROXIES.client(PEER, ["1.1.1.1" + ", 198.51.100.7" * 10_000]) == "198.51.100.7"


@pytest.mark.parametrize("peer", ["", "/run/sluice.sock", "@abstract", "unix"])
def test_a_socket_without_an_address_is_trusted_by_nobody(peer: str) -> None:
    assert PROXIES.client(peer, ["198.51.100.7"]) == peer


def test_a_trusted_peer_may_come_by_ipv6() -> None:
    assert PROXIES.client("::ffff:10.0.0.9", ["198.51.100.7"]) == "198.51.100.7"
    assert PROXIES.client("2001:db8:ffff::9", ["198.51.100.7"]) == "198.51.100.7"
    assert Proxies(["fe80::/10"]).client("fe80::1%eth0", ["198.51.100.7"]) == "198.51.100.7"


@given(st.lists(st.text()))
def test_nothing_in_the_header_is_an_error(headers: list[str]) -> None:
    assert PROXIES.client(PEER, headers)
    assert PROXIES.client("198.51.100.1", headers) == "198.51.100.1"


@given(st.lists(st.ip_addresses().map(str)), st.ip_addresses().filter(lambda ip: not str(ip).startswith("1")))
def test_nobody_can_be_another_one(claims: list[str], client: object) -> None:
    """Whatever the client claims, the proxy's word about it comes last."""
    text = str(client)
    if Proxies(["10.0.0.9"]).client(text, []) == text:
        assert Proxies(["10.0.0.9"]).client(PEER, [", ".join([*claims, text])]) == text


# ── requests ─────────────────────────────────────────────────────────────────────────────────────


Peer = tuple[str, int] | tuple[str, int, int, int] | str | None


def request(peer: Peer, *forwarded_for: str) -> web.Request:
    headers = CIMultiDict([("X-Forwarded-For", one) for one in forwarded_for])
    request = make_mocked_request("GET", "/", headers=headers)
    request._transport_peername = peer
    return request


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        (("198.51.100.1", 4711), "198.51.100.1"),
        (("::ffff:198.51.100.1", 4711, 0, 0), "198.51.100.1"),
        (("2001:db8::1", 4711, 0, 0), "2001:db8::1"),
        ("", ""),
        (None, ""),
    ],
)
def test_without_trusted_proxies_the_peer_is_the_client(peer: Peer, client: str) -> None:
    assert Proxies([]).client_of(request(peer, "1.1.1.1")) == client
    assert PROXIES.client_of(request(peer, "1.1.1.1")) == client


def test_all_headers_of_a_request_are_read() -> None:
    both = request((PEER, 1), "1.1.1.1, 198.51.100.7", "10.1.1.1")
    assert PROXIES.client_of(both) == "198.51.100.7"
    assert PROXIES.client_of(request((PEER, 1))) == PEER
