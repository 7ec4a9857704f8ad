"""Batches, files, and what messages have beside their text."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.mysql import LONGTEXT

revision = "0002"
down_revision = "0001"


def _long_text() -> sa.Text:
    return sa.Text().with_variant(LONGTEXT(), "mysql", "mariadb")


def upgrade() -> None:
    op.add_column("messages", sa.Column("details", _long_text()))
    op.add_column("conversations", sa.Column("labels", _long_text()))
    op.add_column("responses", sa.Column("batch_id", sa.String(64)))
    op.add_column("responses", sa.Column("batch_position", sa.Integer))
    where = sa.text("batch_id IS NOT NULL")
    op.create_index(
        "ix_responses_batch_id", "responses", ["batch_id"], sqlite_where=where, postgresql_where=where
    )
    of_conversation = sa.ForeignKey("conversations.id", ondelete="CASCADE")
    op.create_table(
        "batches",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("user_id", sa.String(64), nullable=False, index=True),
        sa.Column("conversation_id", sa.String(64), of_conversation, index=True),
        sa.Column("prompt", _long_text(), nullable=False),
        sa.Column("chosen_id", sa.String(64)),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_table(
        "files",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("user_id", sa.String(64), nullable=False, index=True),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("media_type", sa.String(127), nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("size_bytes", sa.BigInteger, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
