"""What an exception of a driver means: the database is away, a row breaks a rule, the setting is wrong.

Knows SQLSTATE and the result codes of SQLite, not what is stored. Shows no statement and no value.
"""

import re
from collections.abc import Iterator

from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.exc import DBAPIError, NoSuchModuleError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from internal.biz.errors import SluiceError, Unavailable

_PASSING = ("08", "25", "26", "28", "3D", "40", "42P05", "53", "55", "57", "58", "0A000", "XX")
"""SQLSTATEs and classes of them: no connection, read only for now, a pooler that lost or kept a prepared
statement, no login, no such database, a deadlock, no room, in use, coming up or going down, its disk, a plan
from before a migration, itself. Source: PostgreSQL manual, appendix A."""
_ROLLED_BACK = ("40001", "40P01")
_FORBIDDEN = "42501"
_BAD_VALUE = "22"
_SQLITE_PASSING = frozenset((5, 6, 7, 8, 10, 13, 14, 15))
"""BUSY, LOCKED, NOMEM, READONLY, IOERR, FULL, CANTOPEN, PROTOCOL. Source: https://sqlite.org/rescode.html"""
_SQLITE_BUSY = 5


def is_away(error: Exception) -> bool:
    """The database, or room in it, is missing for the moment."""
    if isinstance(error, (OSError, PoolTimeout)) or is_cut(error):
        return True
    if state := _sqlstate(error):
        return state.startswith(_PASSING)
    if code := _sqlite_code(error):
        return code in _SQLITE_PASSING
    # asyncpg says InterfaceError for a connection that is closed, and for a value that it cannot send.
    causes = list(_causes(error))
    return any(isinstance(cause, OSError) for cause in causes) or (
        any("InterfaceError" in type(cause).__name__ for cause in causes)
        and not any(isinstance(cause, ValueError) for cause in causes)
    )


def is_busy(error: Exception) -> bool:
    """Another connection to the same SQLite file writes."""
    return _sqlite_code(error) == _SQLITE_BUSY


def is_forbidden(error: Exception) -> bool:
    """The database's user may not do this."""
    return _sqlstate(error) == _FORBIDDEN


def is_undone(error: Exception) -> bool:
    """The database undid the transaction so that others can go on, as it does to end a deadlock."""
    return _sqlstate(error) in _ROLLED_BACK


def is_cut(error: Exception) -> bool:
    """The connection broke, be it while nobody used it."""
    return isinstance(error, DBAPIError) and error.connection_invalidated


def told(error: Exception) -> str:
    """What happened, in one line for a log."""
    orig = error.orig if isinstance(error, DBAPIError) else error
    line = next(iter(str(orig).splitlines()), "")
    # SQLAlchemy puts the driver's class before what the driver said.
    line = re.sub(r"^<class '[\w.]+'>: ", "", line)
    return f"{type(orig).__name__}: {line}"[:200]


def hide_values(context: ExceptionContext) -> None:
    """For the event `handle_error` of an engine: who logs the exception tells nothing of what people said.

    PostgreSQL shows the row that breaks a rule, asyncpg the value that it cannot send.
    """
    error = context.original_exception
    causes = list(_causes(error))
    is_bad_value = any(
        isinstance(cause, ValueError) or str(getattr(cause, "sqlstate", "")).startswith(_BAD_VALUE)
        for cause in causes
    )
    for cause in (*causes, context.sqlalchemy_exception):
        if cause is None or isinstance(cause, UnicodeError):  # tells of one character, and where it stands
            continue
        if getattr(cause, "detail", None):
            cause.detail = None  # type: ignore[attr-defined]
        cause.args = tuple(
            _without_values(it, is_bad_value) if isinstance(it, str) else it for it in cause.args
        )


_WORDS_BEFORE_A_VALUE = re.compile(r"(?:\([\w.]+\) )?(?:<class '[\w.]+'>: )?[^:]*")


def _without_values(words: str, is_bad_value: bool) -> str:
    words = words.partition("\nDETAIL:")[0]
    if not is_bad_value:
        return words
    told = _WORDS_BEFORE_A_VALUE.match(words)
    return told[0] if told else ""


def explained(error: Exception, url: URL) -> SluiceError:
    """A sentence for who started us: what is wrong with `url`. Unavailable when waiting may help."""
    sentence = _what_is_wrong(error, url)
    kind = Unavailable if is_away(error) and not _needs_a_person(error) else SluiceError
    return kind(f"{sentence} (storage.url)", code="storage_unavailable")


def _what_is_wrong(error: Exception, url: URL) -> str:
    if isinstance(error, ModuleNotFoundError):
        return f"the driver {error.name} is not installed: pip install {error.name}"
    if isinstance(error, NoSuchModuleError):
        return f"there is no driver for {url.drivername}"
    if url.get_backend_name() == "sqlite":
        return (
            f"the file {url.database} cannot be used: {_SQLITE_WORDS.get(_sqlite_code(error), told(error))}"
        )
    place = f"{url.host or 'localhost'}:{url.port or _PORTS.get(url.get_backend_name(), '')}"
    state = _sqlstate(error)
    if isinstance(error, TypeError):
        return f"a parameter behind the ? is not one of the driver's: {error}"
    if words := _STATE_WORDS.get(state):
        return words.format(place=place, user=url.username or "", database=url.database or "")
    if state:
        return f"the database at {place} says no: {told(error)}"
    if any(isinstance(cause, TimeoutError) for cause in _causes(error)):
        return f"the database at {place} does not answer"
    return f"the database at {place} cannot be reached: {told(error)}"


_PORTS = {"postgresql": 5432, "mysql": 3306, "mariadb": 3306}
_STATE_WORDS = {
    "28P01": "the database at {place} does not take the password of {user!r}",
    "28000": "the database at {place} does not let {user!r} in: there is no such user, or not from here",
    "3D000": "the database at {place} has no database {database!r}: create it, or name another one",
    _FORBIDDEN: "the user {user!r} may not create tables in {database!r}: "
    "GRANT CREATE ON DATABASE and ON SCHEMA public to it, or let it own the database",
    "53300": "the database at {place} has no connection left",
    "57P03": "the database at {place} is starting or stopping",
}
_SQLITE_WORDS = {
    5: "another program keeps it locked",
    8: "it, or its folder, may not be written to",
    10: "reading or writing failed",
    11: "it is damaged",
    13: "the disk is full",
    14: "it cannot be opened; does its folder exist, and may it be written to?",
    26: "it is not an SQLite database",
}


def _needs_a_person(error: Exception) -> bool:
    """Waiting does not help: a wrong password, an unknown database, a file that may not be written."""
    return _sqlstate(error).startswith(("28", "3D")) or _sqlite_code(error) in (8, 14)


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error.orig if isinstance(error, DBAPIError) else error
    while cause is not None:
        yield cause
        cause = cause.__cause__


def _sqlstate(error: Exception) -> str:
    return next((str(state) for cause in _causes(error) if (state := getattr(cause, "sqlstate", None))), "")


def _sqlite_code(error: Exception) -> int:
    """Without the part that tells finer."""
    codes = (getattr(cause, "sqlite_errorcode", None) for cause in _causes(error))
    return next((code & 0xFF for code in codes if code is not None), 0)
