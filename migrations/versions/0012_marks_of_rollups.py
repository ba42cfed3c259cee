"""Which quarter hours of rollups changed: so that the month so far is computed anew only where it moved."""

from alembic import context, op

from metering.store.roles import grant

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    prefix = context.get_context().opts["role_prefix"]
    op.execute(
        """
        CREATE TABLE rollup_marks (
            quarter_start timestamptz NOT NULL,
            changes bigint NOT NULL,
            PRIMARY KEY (quarter_start)
        )"""
    )
    op.execute(grant(prefix, "read", "SELECT", "rollup_marks"))
    op.execute(grant(prefix, "fold", "INSERT, UPDATE", "rollup_marks"))


def downgrade() -> None:
    op.execute("DROP TABLE rollup_marks")
