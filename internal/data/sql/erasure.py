"""Deletes what belongs to a user, for good."""

from sqlalchemy import delete
from sqlalchemy.engine import Connection

from internal.data.sql.tables import conversations, responses, user_settings


def delete_user_data(connection: Connection, user_id: str) -> None:
    """Conversations, responses, messages and settings, in the caller's transaction.

    What runs at that moment finds no row to write its end to.
    """
    for table in (responses, conversations, user_settings):  # messages go with their response
        connection.execute(delete(table).where(table.c.user_id == user_id))
