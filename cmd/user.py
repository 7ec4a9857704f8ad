"""python -m cmd.user -conf FILE add NAME [-email E] [-password-stdin]
                           | list | disable NAME | enable NAME
                           | reset NAME [-password-stdin]

For who operates a server: its users. A password is asked for on the terminal, or is the first line of the
standard input with -password-stdin; where there is neither, one is made up and printed. Exit status: 0 when
it was done, 1 when it was not (the name is taken, the database is away), 2 when the configuration or the
command line cannot be used.
"""

import argparse
import asyncio
import getpass
import os
import secrets
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import uvloop

from cmd import logs
from cmd.terminal import answer, moment, show
from cmd.wire.user_desk import build_user_desk
from internal.biz.errors import InvalidRequest
from internal.biz.names import checked_email, checked_password, checked_username
from internal.biz.user_admin import UserAdmin
from internal.biz.users import Draft, User
from internal.conf.load import ConfigError, load
from internal.conf.settings import Settings

MAX_LINE_BYTES = 1 << 16

T = TypeVar("T")


def main() -> int:
    options = _options()
    try:
        settings = load(options.conf, os.environ)
        if not settings.storage.url.get_secret_value():
            raise ConfigError("storage.url is empty: users live in a database, and this needs one")
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    logs.configure("error", settings.log.format)
    return answer(lambda: options.run(settings, options))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m cmd.user", allow_abbrev=False)
    parser.add_argument("-conf", type=Path, required=True, metavar="FILE", help="configuration file")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    adding = commands.add_parser("add", help="a new user", allow_abbrev=False)
    adding.add_argument("-email", metavar="E", help="their e-mail address")
    adding.set_defaults(run=add)
    listing = commands.add_parser("list", help="all users, the oldest first")
    listing.set_defaults(run=list_users)
    disabling = commands.add_parser("disable", help="keep a user out, from now on", allow_abbrev=False)
    disabling.set_defaults(run=disable)
    enabling = commands.add_parser("enable", help="let a user in again", allow_abbrev=False)
    enabling.set_defaults(run=enable)
    resetting = commands.add_parser("reset", help="another password, no API keys", allow_abbrev=False)
    resetting.set_defaults(run=reset)
    for command in (adding, disabling, enabling, resetting):
        command.add_argument("name", metavar="NAME")
    for command in (adding, resetting):
        command.add_argument(
            "-password-stdin", action="store_true", help="the first line of the standard input"
        )
    return parser.parse_args()


def _at_desk(settings: Settings, command: Callable[[UserAdmin], Awaitable[T]]) -> T:
    async def run() -> T:
        desk = build_user_desk(settings)
        async with desk.connected():
            return await command(desk.admin)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


def add(settings: Settings, options: argparse.Namespace) -> int:
    # What is wrong with them is told before anybody types a password.
    checked_username(options.name)
    if options.email is not None:
        checked_email(options.email)
    password = _password(options.password_stdin)
    draft = Draft.checked(options.name, options.email, password.text)
    user = _at_desk(settings, lambda admin: admin.add(draft))
    _tell(f"added {user.username}", password)
    return 0


def reset(settings: Settings, options: argparse.Namespace) -> int:
    user = _at_desk(settings, lambda admin: admin.find(options.name))
    password = _password(options.password_stdin)
    _at_desk(settings, lambda admin: admin.reset_password(options.name, password.text))
    done = f"{user.username} has another password; all their logins have ended, their API keys are revoked"
    _tell(done, password)
    return 0


def disable(settings: Settings, options: argparse.Namespace) -> int:
    user = _at_desk(settings, lambda admin: admin.disable(options.name))
    print(f"disabled {user.username}")
    return 0


def enable(settings: Settings, options: argparse.Namespace) -> int:
    user = _at_desk(settings, lambda admin: admin.enable(options.name))
    print(f"enabled {user.username}")
    return 0


def list_users(settings: Settings, _: argparse.Namespace) -> int:
    users = _at_desk(settings, lambda admin: admin.users())
    if not users:
        print("there are no users")
        return 0
    show(("name", "email", "since", "id", ""), [_row(user) for user in users])
    return 0


def _row(user: User) -> tuple[str, ...]:
    state = "disabled" if user.disabled else ""
    return (user.username, user.email or "-", moment(user.created_at), user.id, state)


# ── passwords ────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class Password:
    """`is_ours`: nobody knows it yet."""

    text: str
    is_ours: bool = False


def _password(from_stdin: bool) -> Password:
    """Raises InvalidRequest for one that cannot be used."""
    if from_stdin:
        password = Password(_first_line())
    elif sys.stdin.isatty():
        password = Password(_asked())
    else:
        password = Password(secrets.token_urlsafe(15), is_ours=True)
    checked_password(password.text)
    return password


def _first_line() -> str:
    line = sys.stdin.buffer.readline(MAX_LINE_BYTES).rstrip(b"\r\n")
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise InvalidRequest("the password is no text in UTF-8") from None


def _asked() -> str:
    try:
        first = getpass.getpass("Password: ")
        checked_password(first)
        if getpass.getpass("Again: ") != first:
            raise InvalidRequest("these are two passwords; nothing was done")
    except EOFError:
        print(file=sys.stderr)
        raise InvalidRequest("there was no password; nothing was done") from None
    return first


def _tell(done: str, password: Password) -> None:
    print(done)
    if password.is_ours:
        print(f"password: {password.text}")


if __name__ == "__main__":
    sys.exit(main())
