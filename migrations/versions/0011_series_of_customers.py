"""Series are found by their customer: one customer's usage is read without looking at all series."""

from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("CREATE INDEX series_customer_idx ON series (customer)")


def downgrade() -> None:
    op.execute("DROP INDEX series_customer_idx")
