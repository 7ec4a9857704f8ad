"""python -m cmd.migrate -conf FILE [-check]

Brings the tables of the storage up to date, as every server does at its start. Exit status: 0 when they are,
1 when they are not (with -check: migrations are pending) or the storage cannot be reached, 2 when the
configuration or the command line cannot be used.
"""

import argparse
import asyncio
import os
import sys
from pathlib import Path

import uvloop

from cmd import logs
from cmd.process import exit_status
from internal.conf.load import ConfigError, load
from internal.data.sql.migrate import Migration, migrate, pending


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m cmd.migrate", allow_abbrev=False)
    parser.add_argument("-conf", type=Path, required=True, metavar="FILE", help="configuration file")
    parser.add_argument("-check", action="store_true", help="say what is pending, and change nothing")
    options = parser.parse_args()
    try:
        settings = load(options.conf, os.environ)
        url = settings.storage.url.get_secret_value()
        if not url:
            raise ConfigError("storage.url is empty: nothing is stored, there is nothing to migrate")
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    logs.configure(settings.log.level, settings.log.format)
    return exit_status(lambda: check(url) if options.check else bring_up_to_date(url))


def bring_up_to_date(url: str) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        done = runner.run(migrate(url))
    if done.steps:
        print(f"migrated from {done.before or 'nothing'} to {done.after}")
    else:
        say_up_to_date(done)
    return 0


def check(url: str) -> int:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        found = runner.run(pending(url))
    if not found.steps:
        say_up_to_date(found)
        return 0
    print(f"is at {found.before or 'nothing'}; pending: {', '.join(found.steps)}")
    return 1


def say_up_to_date(found: Migration) -> None:
    print(f"is up to date, at {found.after}")


if __name__ == "__main__":
    sys.exit(main())
