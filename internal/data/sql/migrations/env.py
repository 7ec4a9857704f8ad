"""What Alembic runs in the transaction of `internal.data.sql.migrate`, which hands it the connection."""

from alembic import context

from internal.data.sql.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=context.config.attributes["version_table"],
    transactional_ddl=True,  # Alembic thinks that SQLite cannot
)
context.run_migrations()
