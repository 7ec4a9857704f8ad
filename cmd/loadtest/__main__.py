"""The program: reads the options, runs the test, prints the table, writes the report, says how it went."""

import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import datetime

from cmd.loadtest.capacity import check_descriptors, local_ports, raise_descriptor_limit, source_addresses
from cmd.loadtest.options import BadOption, Options, parse_options
from cmd.loadtest.progress import Progress
from cmd.loadtest.report import render
from cmd.loadtest.run import LoadTest
from cmd.loadtest.stats import Tally
from cmd.loadtest.summary import Summary, as_text, summarize

OK, FAILED, BAD_OPTIONS, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str]) -> int:
    try:
        options = parse_options(arguments)
        check_descriptors(options, raise_descriptor_limit())
        sources = source_addresses(options, local_ports())
    except BadOption as exc:
        print(f"loadtest: {exc}", file=sys.stderr)
        return BAD_OPTIONS
    if not options.is_local:
        print(
            f"loadtest: {options.url.host} is not a loopback address: load only servers that are yours",
            file=sys.stderr,
        )
    # With thousands of connections the collector's default pace adds pauses of its own to what is measured.
    gc.set_threshold(10_000, 50, 1000)
    started, tally = datetime.now().astimezone(), Tally()
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        completed = runner.run(_run(options, sources, tally))
    summary = summarize(options, tally, interrupted=not completed)
    # The report first: who reads the table may have hung up.
    reported = _write_report(options, started, tally, summary)
    print(as_text(options, summary), flush=True)
    if not completed:
        return INTERRUPTED
    return OK if summary.passed and reported else FAILED


async def _run(options: Options, sources: tuple[str | None, ...], tally: Tally) -> bool:
    """Whether the test ran to its end; on SIGINT or SIGTERM it does not."""
    loop = asyncio.get_running_loop()
    with Progress(options) as progress:
        test = asyncio.create_task(LoadTest(options, sources, tally).run(progress.show))

        def stop() -> None:
            test.cancel()
            # The next one ends the program at once.
            loop.remove_signal_handler(signal.SIGINT)
            loop.remove_signal_handler(signal.SIGTERM)

        loop.add_signal_handler(signal.SIGINT, stop)
        loop.add_signal_handler(signal.SIGTERM, stop)
        await asyncio.wait([test])
    if test.cancelled():
        return False
    test.result()
    return True


def _write_report(options: Options, started: datetime, tally: Tally, summary: Summary) -> bool:
    if options.report is None:
        return True
    try:
        options.report.write_text(render(options, started, tally, summary), encoding="utf-8")
    except OSError as exc:
        print(f"loadtest: the report was not written: {exc}", file=sys.stderr)
        return False
    return True


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # Python would fail once more when it flushes standard output at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
