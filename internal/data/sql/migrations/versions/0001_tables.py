"""Users, conversations, responses, messages."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.mysql import LONGTEXT

revision = "0001"
down_revision = None


def _id(name: str = "id", *more: Any, **options: Any) -> sa.Column[str]:
    return sa.Column(name, sa.String(64), *more, **options)


def _of(table: str) -> sa.ForeignKey:
    return sa.ForeignKey(f"{table}.id", ondelete="CASCADE")


def _long_text() -> sa.Text:
    return sa.Text().with_variant(LONGTEXT(), "mysql", "mariadb")


def upgrade() -> None:
    op.create_table(
        "users",
        _id(primary_key=True),
        sa.Column("username", sa.String(64), nullable=False),
        sa.Column("username_key", sa.String(64), nullable=False, unique=True),
        sa.Column("email", sa.String(254), nullable=False),
        sa.Column("password_hash", sa.String(255), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("valid_after", sa.Double, nullable=False),
        sa.Column("disabled", sa.Boolean, nullable=False),
    )
    op.create_table(
        "api_keys",
        _id(primary_key=True),
        _id("user_id", _of("users"), nullable=False, index=True),
        sa.Column("name", sa.String(100), nullable=False),
        sa.Column("hint", sa.String(32), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False, unique=True),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("last_used_at", sa.Double),
    )
    op.create_table(
        "refresh_tokens",
        _id(primary_key=True),
        _id("user_id", _of("users"), nullable=False, index=True),
        _id("family", nullable=False, index=True),
        sa.Column("expires_at", sa.Double, nullable=False, index=True),
        sa.Column("used_at", sa.Double),
    )
    op.create_table(
        "user_settings",
        _id("user_id", primary_key=True),
        sa.Column("model", sa.String(64)),
        sa.Column("max_output_tokens", sa.Integer),
        sa.Column("upstream_url", sa.String(2048)),
        sa.Column("upstream_key", _long_text()),
    )
    _create_threads()


def _create_threads() -> None:
    op.create_table(
        "conversations",
        _id(primary_key=True),
        _id("user_id", nullable=False),
        sa.Column("title", sa.String(50), nullable=False),
        sa.Column("has_title", sa.Boolean, nullable=False),
        sa.Column("wants_title", sa.Boolean, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("updated_at", sa.Double, nullable=False),
        sa.Column("deleted_at", sa.Double),
        _id("head_id"),
        sa.Column("size", sa.Integer, nullable=False),
        sa.Index(None, "user_id", "updated_at", "id"),
    )
    op.create_index(
        "ix_conversations_wanting",
        "conversations",
        ["updated_at"],
        sqlite_where=sa.text("wants_title = 1 AND head_id IS NOT NULL"),
        postgresql_where=sa.text("wants_title AND head_id IS NOT NULL"),
    )
    op.create_index(
        "ix_conversations_deleted",
        "conversations",
        ["deleted_at"],
        sqlite_where=sa.text("deleted_at IS NOT NULL"),
        postgresql_where=sa.text("deleted_at IS NOT NULL"),
    )
    op.create_table(
        "responses",
        _id(primary_key=True),
        _id("user_id", nullable=False, index=True),
        _id("conversation_id", _of("conversations")),
        _id("previous_id"),
        sa.Column("model", sa.String(64), nullable=False),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("attempt", sa.Integer),
        sa.Column("settings", _long_text(), nullable=False),
        sa.Column("input_chars", sa.Integer, nullable=False),
        sa.Column("output_chars", sa.Integer, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("first_token_at", sa.Double),
        sa.Column("ended_at", sa.Double),
        sa.Column("input_tokens", sa.Integer),
        sa.Column("cached_tokens", sa.Integer),
        sa.Column("output_tokens", sa.Integer),
        sa.Column("reasoning_tokens", sa.Integer),
        sa.Column("error_code", sa.String(64)),
        sa.Column("error_message", _long_text()),
        sa.Column("incomplete_reason", sa.String(32)),
        sa.Index(None, "conversation_id", "created_at"),
    )
    for name, column, where in (
        ("ix_responses_running", "id", sa.text("ended_at IS NULL")),
        ("ix_responses_busy", "conversation_id", sa.text("ended_at IS NULL")),
        ("ix_responses_previous_id", "previous_id", sa.text("previous_id IS NOT NULL")),
    ):
        op.create_index(name, "responses", [column], sqlite_where=where, postgresql_where=where)
    op.create_table(
        "messages",
        _id(primary_key=True),
        _id("response_id", _of("responses"), nullable=False),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("content", _long_text(), nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Index(None, "response_id", "position", unique=True),
    )
