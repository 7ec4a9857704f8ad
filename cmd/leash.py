"""Keeps a child process from outliving ours, however ours ends. Knows nothing of what the child does."""

import subprocess
from collections.abc import Iterable

# Our end of the pipe closes with our process, also when that is killed: nothing of ours has to run for it.
_WATCH = 'read -r _; kill -s "$@"'


class Leash:
    """Sends `signal_name` to process `pid` when our process has gone, and to those in `also`.

    A shell in a session of its own waits for that. (Linux could signal the child itself, but does so as soon
    as the *thread* has gone that started it.) Release the leash when the child is reaped: its number is
    free from then on.
    """

    __slots__ = ("_shell",)

    def __init__(self, pid: int, signal_name: str = "TERM", *, also: Iterable[int] = ()) -> None:
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", _WATCH, "leash", signal_name, *map(str, (pid, *also))],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def release(self) -> None:
        """From now on the process may outlive ours. Takes a millisecond."""
        self._shell.kill()
        self._shell.wait()
        assert self._shell.stdin
        self._shell.stdin.close()
