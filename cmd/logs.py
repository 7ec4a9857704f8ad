"""How log lines look."""

import logging
import sys
from typing import Any

import orjson

_OWN = ("sluice", "cmd", "internal")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


def _extra(record: logging.LogRecord) -> dict[str, Any]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


class _TextFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line, newline, trace = super().format(record).partition("\n")
        fields = "".join(f" {key}={value}" for key, value in _extra(record).items())
        return line + fields + newline + trace


class _JsonFormatter(logging.Formatter):
    def __init__(self, process: int | None) -> None:
        super().__init__()
        self._process = {} if process is None else {"process": process}

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._process,
            **_extra(record),
        }
        if record.exc_info:
            fields["trace"] = self.formatException(record.exc_info)
        return orjson.dumps(fields, default=str).decode()


def _is_ours(record: logging.LogRecord) -> bool:
    """Not the tracebacks that aiohttp logs for requests that cannot be parsed: anyone could fill the log."""
    # Whoever logs this has imported it; a command that serves nothing has not.
    from aiohttp.http_exceptions import HttpProcessingError

    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, (HttpProcessingError, ConnectionError))


def configure(level: str, form: str, process: int | None = None) -> None:
    """Send the logs of the process to stderr, as `text` or `json`. Each line tells `process`, where there are
    several. `level` is that of our own; of libraries only warnings are logged, or less."""
    handler = logging.StreamHandler(sys.stderr)
    who = "" if process is None else f"{process} "
    text = _TextFormatter(f"%(asctime)s {who}%(levelname)-7s %(name)s: %(message)s", "%H:%M:%S")
    handler.setFormatter(_JsonFormatter(process) if form == "json" else text)
    own = logging.getLevelNamesMapping()[level.upper()]
    logging.basicConfig(level=max(own, logging.WARNING), handlers=[handler], force=True)
    for name in _OWN:
        logging.getLogger(name).setLevel(own)
    logging.getLogger("aiohttp.server").addFilter(_is_ours)
    # It warns of offered subprotocols that are none of ours, and one of them may be a key.
    logging.getLogger("aiohttp.websocket").setLevel(logging.ERROR)
