"""How far the test is, while it runs: a bar on a terminal, else a line now and then. All on stderr."""

import sys
import time
from types import TracebackType
from typing import NoReturn, Self

from tqdm import tqdm

from cmd.loadtest.options import Options
from cmd.loadtest.stats import Tally

LINE_EVERY_S = 5.0


class Progress:
    """A context manager; call `show` as often as you like."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._bar: tqdm[NoReturn] | None = None
        self._shown_at = time.perf_counter()
        self._shown_frames = 0

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            tqdm.monitor_interval = 0  # no thread beside the loop
            self._bar = tqdm(total=self._options.messages, unit=" answers", dynamic_ncols=True, leave=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def show(self, tally: Tally) -> None:
        now = time.perf_counter()
        if self._bar is None and now - self._shown_at < LINE_EVERY_S:
            return
        took_s = now - self._shown_at
        rate = (tally.frames - self._shown_frames) / took_s if took_s > 0 else 0.0
        self._shown_at, self._shown_frames = now, tally.frames
        state = f"{tally.open_now:,} open, {tally.failures.total():,} failures, {rate:,.0f} frames/s"
        if self._bar is None:
            line = f"{tally.answered:,} of {self._options.messages:,} answers, {state}"
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.n = tally.answered
            self._bar.set_postfix_str(state)
