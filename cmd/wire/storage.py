"""Where a process keeps what was said."""

from internal.biz.batches import BatchStore
from internal.biz.own_upstreams import OwnUpstreams
from internal.biz.ports import History
from internal.biz.responses import ResponseStore
from internal.conf import settings as conf
from internal.data.credentials.cipher import SecretCipher
from internal.data.memory_history import MemoryHistory
from internal.data.sql.accounts import SqlAccounts
from internal.data.sql.batches import SqlBatches
from internal.data.sql.database import Database
from internal.data.sql.history import SqlHistory
from internal.data.sql.migrate import migrate
from internal.data.sql.responses import SqlResponses


class Storage:
    """What was said, and who said it: in a database, or in memory where there is none."""

    def __init__(self, settings: conf.Storage) -> None:
        self._url = settings.url.get_secret_value()
        self.database = Database(self._url) if self._url else None
        self.history: History
        self.responses: ResponseStore
        self.batches: BatchStore
        if self.database is None:
            self.history = self.responses = self.batches = MemoryHistory()
        else:
            self.history, self.responses = SqlHistory(self.database), SqlResponses(self.database)
            self.batches = SqlBatches(self.database)

    def upstreams(self, cipher: SecretCipher) -> OwnUpstreams | None:
        """Those that users have set for themselves; None where there is no database."""
        return OwnUpstreams(SqlAccounts(self.database), cipher) if self.database is not None else None

    async def connect(self) -> None:
        """Make or update the tables, once. Raises SluiceError when the database cannot be used."""
        if self.database is not None:
            await migrate(self._url)
            await self.database.connect()

    async def run(self) -> None:
        """Write what is to be stored, until cancelled."""
        if self.database is not None:
            try:
                await self.database.run()
            finally:
                await self.close()

    async def close(self) -> None:
        """Close all connections."""
        if self.database is not None:
            await self.database.close()
