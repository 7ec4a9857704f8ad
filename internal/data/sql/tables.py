"""The tables. A change here needs a migration beside it.

Ids sort by time. Times are Unix seconds. Whoever owns a row is `user_id`: a user's id, or a guest's, who has
no row in `users`.
"""

from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    false,
    text,
)

from internal.data.sql.types import Line, Words

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)


def _id(name: str = "id", *more: Any, **options: Any) -> Column[str]:
    return Column(name, Line(64), *more, **options)


def _of(table: str, **options: Any) -> ForeignKey:
    return ForeignKey(f"{table}.id", ondelete="CASCADE", **options)


users = Table(
    "users",
    metadata,
    _id(primary_key=True),
    Column("username", Line(64), nullable=False),
    Column("username_key", Line(64), nullable=False, unique=True),  # as it is compared
    Column("email", Line(254), nullable=False),
    Column("password_hash", String(255), nullable=False),
    Column("created_at", Double, nullable=False),
    Column("valid_after", Double, nullable=False),  # access tokens from before are void
    Column("disabled", Boolean, nullable=False),
)

api_keys = Table(
    "api_keys",
    metadata,
    _id(primary_key=True),
    _id("user_id", _of("users"), nullable=False, index=True),
    Column("name", Line(100), nullable=False),
    Column("hint", String(32), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("created_at", Double, nullable=False),
    Column("last_used_at", Double),
)

# A login is a family of refresh tokens, each of which replaced the one before it.
refresh_tokens = Table(
    "refresh_tokens",
    metadata,
    _id(primary_key=True),
    _id("user_id", _of("users"), nullable=False, index=True),
    _id("family", nullable=False, index=True),
    Column("expires_at", Double, nullable=False, index=True),
    Column("used_at", Double),
)

user_settings = Table(
    "user_settings",
    metadata,
    _id("user_id", primary_key=True),
    Column("model", String(64)),
    Column("max_output_tokens", Integer),
    Column("upstream_url", Line(2048)),
    Column("upstream_key", Words),  # encrypted
)

conversations = Table(
    "conversations",
    metadata,
    _id(primary_key=True),
    _id("user_id", nullable=False),
    Column("title", Line(50), nullable=False),
    Column("has_title", Boolean, nullable=False),  # from a person or a model; else it is the first words
    Column("wants_title", Boolean, nullable=False),  # a model is to find one
    Column("created_at", Double, nullable=False),
    Column("updated_at", Double, nullable=False),
    Column("deleted_at", Double),
    _id("head_id"),  # the response that the next turn continues
    Column("size", Integer, nullable=False, default=0),  # in characters, with something for each turn
    Column("labels", Words),  # JSON: what the API calls metadata
    Index(None, "user_id", "updated_at", "id"),
)

# SQLite uses a partial index only where a query has the same words.
Index(
    "ix_conversations_wanting",
    conversations.c.updated_at,
    sqlite_where=text("wants_title = 1 AND head_id IS NOT NULL"),
    postgresql_where=text("wants_title AND head_id IS NOT NULL"),
)
Index(
    "ix_conversations_deleted",
    conversations.c.deleted_at,
    sqlite_where=conversations.c.deleted_at.is_not(None),
    postgresql_where=conversations.c.deleted_at.is_not(None),
)

# A turn that asks several models: a response for each.
batches = Table(
    "batches",
    metadata,
    _id(primary_key=True),
    _id("user_id", nullable=False, index=True),
    _id("conversation_id", _of("conversations"), index=True),
    Column("prompt", Words, nullable=False),
    _id("chosen_id"),  # the response that a person chose to go on with
    Column("created_at", Double, nullable=False),
)

responses = Table(
    "responses",
    metadata,
    _id(primary_key=True),
    _id("user_id", nullable=False, index=True),
    _id("conversation_id", _of("conversations")),
    _id("previous_id"),
    _id("batch_id"),
    Column("batch_position", Integer),
    Column("aside", Boolean, nullable=False, server_default=false()),  # see branches.py
    Column("model", String(64), nullable=False),
    Column("status", String(16), nullable=False),
    Column("attempt", Integer),  # which one said how it ended; null while it runs
    Column("settings", Words, nullable=False),  # JSON
    Column("input_chars", Integer, nullable=False),
    Column("output_chars", Integer, nullable=False),  # reasoning left out
    Column("created_at", Double, nullable=False),
    Column("first_token_at", Double),
    Column("ended_at", Double),
    Column("input_tokens", Integer),
    Column("cached_tokens", Integer),
    Column("output_tokens", Integer),
    Column("reasoning_tokens", Integer),
    Column("error_code", String(64)),
    Column("error_message", Words),
    Column("incomplete_reason", String(32)),
    Index(None, "conversation_id", "created_at"),
)
Index(
    "ix_responses_running",
    responses.c.id,
    sqlite_where=responses.c.ended_at.is_(None),
    postgresql_where=responses.c.ended_at.is_(None),
)
Index(
    "ix_responses_busy",  # whether a conversation waits for an answer
    responses.c.conversation_id,
    sqlite_where=responses.c.ended_at.is_(None),
    postgresql_where=responses.c.ended_at.is_(None),
)
Index(
    "ix_responses_previous_id",  # what continues a response
    responses.c.previous_id,
    sqlite_where=responses.c.previous_id.is_not(None),
    postgresql_where=responses.c.previous_id.is_not(None),
)
Index(
    "ix_responses_batch_id",
    responses.c.batch_id,
    sqlite_where=responses.c.batch_id.is_not(None),
    postgresql_where=responses.c.batch_id.is_not(None),
)

messages = Table(
    "messages",
    metadata,
    _id(primary_key=True),
    _id("response_id", _of("responses"), nullable=False),
    Column("position", Integer, nullable=False),  # within its response
    Column("kind", String(16), nullable=False),  # input, output, reasoning or call
    Column("role", String(16), nullable=False),
    Column("content", Words, nullable=False),
    Column("details", Words),  # JSON: what the message has beside its text
    Column("created_at", Double, nullable=False),
    Index(None, "response_id", "position", unique=True),
)

# What was uploaded; the bytes are elsewhere.
files = Table(
    "files",
    metadata,
    _id(primary_key=True),
    _id("user_id", nullable=False, index=True),
    Column("name", Line(255), nullable=False),
    Column("media_type", Line(127), nullable=False),
    Column("purpose", String(32), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("created_at", Double, nullable=False),
)
