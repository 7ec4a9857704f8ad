"""Deletes files that were kept for long enough, and bytes that nobody knows of."""

import asyncio
import logging
import random
import time
from collections.abc import Callable

from internal.biz.errors import Unavailable
from internal.biz.files import FileStore, Folder

log = logging.getLogger(__name__)

INTERVAL_S = 600.0
AT_ONCE = 250
"""Rows that are deleted together."""
STALE_S = 3600.0
"""An upload that says nothing for so long is no more; a row comes sooner behind its bytes. The clocks of
servers, and of the disk they share, differ by less."""


class FileKeeper:
    """Any number of processes may run one: what is gone already harms none."""

    def __init__(
        self, store: FileStore, folder: Folder, keep_s: float, *, now: Callable[[], float] = time.time
    ) -> None:
        """A file stays for `keep_s` (0: for ever)."""
        self._store = store
        self._folder = folder
        self._keep_s = keep_s
        self._now = now

    async def run(self) -> None:
        """Delete at once, and now and then, until cancelled."""
        while True:
            try:
                await self.sweep()
            except Unavailable:  # whoever needs the storage says so
                pass
            except Exception:  # nobody's answers may end with this
                log.exception("the files could not be tidied")
            # Not all servers at the same moment.
            await asyncio.sleep(INTERVAL_S * random.uniform(0.5, 1.0))

    async def sweep(self) -> None:
        """Delete all that has to go. Raises Unavailable."""
        await self._folder.tidy(STALE_S)
        if self._keep_s:
            await self._forget()
        if not await self._folder.is_ours():
            return
        async for ids in self._folder.stored(STALE_S):
            unknown = set(ids) - set(await self._store.known(ids))
            if unknown:
                log.info("removing %d files that nobody knows of", len(unknown))
                await self._folder.remove(unknown)

    async def _forget(self) -> None:
        while ids := await self._store.forget(self._now() - self._keep_s, AT_ONCE):
            await self._folder.remove(ids)
