"""Which turns of a conversation stand aside."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    # Until now a conversation was one straight line. Servers of before, which still run, know no such column.
    op.add_column("responses", sa.Column("aside", sa.Boolean, nullable=False, server_default=sa.false()))
