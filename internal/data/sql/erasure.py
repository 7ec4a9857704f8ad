"""Deletes what belongs to a user, for good."""

from sqlalchemy import delete
from sqlalchemy.ext.asyncio import AsyncConnection

from internal.data.sql.tables import conversations, responses, user_settings


async def delete_user_data(connection: AsyncConnection, user_id: str) -> None:
    """Conversations, responses, messages and settings, in the caller's transaction.

    What runs at that moment finds no row to write its end to.
    """
    for table in (responses, conversations, user_settings):  # messages go with their response
        await connection.execute(delete(table).where(table.c.user_id == user_id))
