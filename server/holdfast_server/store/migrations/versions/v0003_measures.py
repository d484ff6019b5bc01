"""What windows measure besides counts of requests: labels, scores, the bins of a reference."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("windows", sa.Column("measures", sa.Text(), nullable=False, server_default=""))
