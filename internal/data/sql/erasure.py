"""Deletes what belongs to a user, for good."""

from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.engine import Connection

from internal.data.sql.tables import batches, conversations, files, responses, user_settings


def delete_user_data(connection: Connection, user_id: str) -> Sequence[str]:
    """Conversations, responses, messages, settings and files, in the caller's transaction. Returns the ids of
    the files, whose bytes are not deleted yet.

    What runs at that moment finds no row to write its end to.
    """
    uploaded = connection.scalars(select(files.c.id).where(files.c.user_id == user_id)).all()
    for table in (responses, batches, conversations, user_settings, files):  # messages go with their response
        connection.execute(delete(table).where(table.c.user_id == user_id))
    return uploaded
