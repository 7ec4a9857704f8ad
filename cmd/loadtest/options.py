"""What the command line says, checked. Knows no network and runs nothing."""

import argparse
import ipaddress
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NoReturn

from yarl import URL

MAX_CONNECTIONS = 1_000_000
MAX_ROUNDS = 1_000_000
MAX_CHUNKS = 100_000
MAX_ECHO_BYTES = 64 * 1024 * 1024

_UNITS_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_DURATION = re.compile(rf"(?:{_DURATION_PART.pattern})+")


class BadOption(Exception):
    """The command line cannot be followed. The message is one sentence for a person."""


class DialectName(StrEnum):
    TEXT = "text"
    RESPONSES = "responses"


@dataclass(frozen=True, slots=True)
class Options:
    """One load test. `url` is where the connections really go: path and `model=` are settled."""

    url: URL
    connections: int
    rounds: int
    message: str
    dialect: DialectName = DialectName.TEXT
    model: str | None = None
    """None: the server's default."""
    chunks: int = 5
    """How many chunks the echo model sends; the text dialect cannot know otherwise."""
    ramp_per_s: float = 500.0
    """New connections per second; 0 opens them as fast as the server takes them."""
    timeout_s: float = 60.0
    """The longest silence: while a connection opens, and before each frame of an answer."""
    report: Path | None = None

    @property
    def messages(self) -> int:
        return self.connections * self.rounds

    @property
    def shown_url(self) -> str:
        """The URL without what may be secret: user, password, and all of the query but the model."""
        shown = self.url.with_user(None)
        query = [(name, value if name == "model" else "***") for name, value in self.url.query.items()]
        return str(shown.with_query(query or None))

    @property
    def is_local(self) -> bool:
        host = self.url.host or ""
        if host == "localhost" or host.endswith(".localhost"):
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False


def parse_options(arguments: Sequence[str]) -> Options:
    """Raise BadOption. `-h` prints the help and raises SystemExit(0)."""
    given = _parser().parse_args(arguments)
    dialect = DialectName(given.dialect)
    model = given.model
    if dialect is DialectName.TEXT and model is None:
        model = "echo"
    if dialect is DialectName.TEXT and given.chunks * (len(given.message.encode()) + 16) > MAX_ECHO_BYTES:
        raise BadOption(f"-message times -chunks is more than {MAX_ECHO_BYTES >> 20} MiB")
    return Options(
        url=_settle(given.url, dialect, model),
        connections=given.connections,
        rounds=given.rounds,
        message=given.message,
        dialect=dialect,
        model=model,
        chunks=given.chunks,
        ramp_per_s=given.ramp,
        timeout_s=given.timeout,
        report=given.report,
    )


def duration_s(text: str) -> float:
    """Seconds in `400ms`, `1.5s`, `10m`, `1m30s`. Raises ValueError."""
    if not _DURATION.fullmatch(text):
        raise ValueError(text)
    return sum(float(number) * _UNITS_S[unit] for number, unit in _DURATION_PART.findall(text))


class _Parser(argparse.ArgumentParser):
    """argparse would print its whole usage before the one line that says what is wrong."""

    def error(self, message: str) -> NoReturn:
        raise BadOption(message)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m cmd.loadtest",
        description="Open many WebSockets, send messages, check and time every answer.",
        epilog="Exit status: 0 all answered, 1 something was lost or failed, 2 bad options, 130 interrupted.",
    )

    def add(name: str, **more: object) -> None:
        parser.add_argument(f"-{name}", f"--{name}", **more)  # type: ignore[arg-type]

    add("url", required=True, type=_url, help="ws:// or wss:// address of the server")
    add("connections", type=_whole(1, MAX_CONNECTIONS), default=100, metavar="N", help="default 100")
    add("rounds", type=_whole(1, MAX_ROUNDS), default=1, metavar="N", help="messages each; default 1")
    add("message", type=_message, default="hello", metavar="TEXT", help="what each one says; default hello")
    add("dialect", choices=[*DialectName], default=DialectName.TEXT, help="default text")
    add("model", type=_message, metavar="NAME", help="default: echo with text, else the server's default")
    add(
        "chunks",
        type=_whole(1, MAX_CHUNKS),
        default=5,
        metavar="N",
        help="chunks of echo's answer; default 5",
    )
    ramp_help = "new connections per second; 0: as fast as they open; default 500"
    add("ramp", type=_rate, default=500.0, metavar="PER_SECOND", help=ramp_help)
    timeout_help = "longest wait for an opening, and for each frame: 400ms, 1.5s, 10m; default 60s"
    add("timeout", type=_timeout, default=60.0, metavar="DURATION", help=timeout_help)
    add("report", type=_report, metavar="FILE.html", help="also write a report with plots")
    return parser


def _settle(url: URL, dialect: DialectName, model: str | None) -> URL:
    if dialect is DialectName.RESPONSES:
        return url.with_path("/v1/responses", keep_query=True) if url.path in ("", "/", "/ws") else url
    if url.path in ("", "/"):
        url = url.with_path("/ws", keep_query=True)
    return url if "model" in url.query or model is None else url.update_query(model=model)


def _url(text: str) -> URL:
    try:
        url = URL(text)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(f"{text!r} is not a URL") from exc
    if url.scheme not in ("ws", "wss") or not url.host:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form ws://HOST[:PORT]/PATH or wss://…")
    return url.with_fragment(None)


class _whole:  # noqa: N801 - reads as a function where it is used
    def __init__(self, least: int, most: int) -> None:
        self._least, self._most = least, most

    def __call__(self, text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not self._least <= int(text) <= self._most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, {self._least} to {self._most}")
        return int(text)


def _rate(text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 <= rate <= MAX_CONNECTIONS or 0 < rate < 0.001:
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate per second, or 0 for no limit")
    return rate


def _timeout(text: str) -> float:
    try:
        seconds = duration_s(text)
    except ValueError:
        seconds = 0.0
    if not 0.001 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration from 1ms to 24h, as 400ms, 1.5s, 10m")
    return seconds


def _message(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as exc:  # a byte that the terminal's encoding did not know
        raise argparse.ArgumentTypeError("is not valid UTF-8") from exc
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return text


def _report(text: str) -> Path:
    # Told now: after a long test it would be too late.
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is not a file in a folder that exists")
    return path
