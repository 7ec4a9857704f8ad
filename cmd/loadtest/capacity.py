"""What this machine can open: file descriptors and local ports.

A TCP connection to one server address needs a local port of its own, and one source address has about 28,000.
On Linux all of 127.0.0.0/8 is this machine, so a test of a local server can use several source addresses.
"""

import ipaddress
import resource
import sys
from pathlib import Path

from cmd.loadtest.options import BadOption, Options

SPARE_DESCRIPTORS = 64
MAX_SOURCES = 200
_PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_DEFAULT_PORTS = 28_232


def raise_descriptor_limit() -> int:
    """Lift the soft limit to the hard one; returns how many descriptors there can be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError):  # macOS calls its hard limit infinite and refuses it
        return soft
    return sys.maxsize if hard == resource.RLIM_INFINITY else hard


def check_descriptors(options: Options, limit: int) -> None:
    """Raise BadOption when there are fewer descriptors than connections."""
    most = limit - SPARE_DESCRIPTORS
    if options.connections > most:
        raise BadOption(
            f"-connections {options.connections:,} needs more file descriptors than this process may open "
            f"({limit:,}): raise the hard limit (ulimit -Hn), or ask for at most {max(0, most):,}"
        )


def local_ports() -> int:
    """How many ports one source address has for outgoing connections."""
    try:
        low, high = map(int, _PORT_RANGE.read_text().split())
    except (OSError, ValueError):
        return _DEFAULT_PORTS
    return high - low + 1


def source_addresses(options: Options, ports: int) -> tuple[str | None, ...]:
    """The addresses to connect from, to be used in turn; (None,) leaves the choice to the system.

    Raises BadOption when the connections need more ports than there are.
    """
    # Some ports are taken or still in TIME_WAIT.
    usable = max(1, ports * 9 // 10)
    if options.connections <= usable:
        return (None,)
    needed = -(-options.connections // usable)
    if not _has_many_loopbacks(options) or needed > MAX_SOURCES:
        most = usable * MAX_SOURCES if _has_many_loopbacks(options) else usable
        raise BadOption(
            f"-connections {options.connections:,} needs more local ports than there are "
            f"({most:,} are usable to one server address): run several load testers on several machines"
        )
    return tuple(f"127.0.0.{host}" for host in range(2, 2 + needed))


def _has_many_loopbacks(options: Options) -> bool:
    if sys.platform != "linux" or not options.is_local:
        return False
    try:
        return ipaddress.ip_address(options.url.host or "").version == 4
    except ValueError:
        return True  # localhost by name: connecting from 127.0.0.x makes it IPv4
