"""Usage per minute, pool and customer; and which rollup an upgrade left to be filled."""

from alembic import context, op

from metering.store.roles import grant

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    prefix = context.get_context().opts["role_prefix"]
    op.execute(
        """
        CREATE TABLE pool_customer_minutes (
            minute timestamptz NOT NULL,
            series_id integer NOT NULL,
            interval_id bigint NOT NULL,
            requests bigint NOT NULL,
            uncached_input_tokens bigint NOT NULL,
            cache_read_tokens bigint NOT NULL,
            cache_write_5m_tokens bigint NOT NULL,
            cache_write_1h_tokens bigint NOT NULL,
            output_tokens bigint NOT NULL,
            reasoning_tokens bigint NOT NULL,
            accelerator_ms bigint NOT NULL,
            PRIMARY KEY (minute, series_id, interval_id)
        )"""
    )
    op.execute("CREATE TABLE unfilled_rollups (rollup text PRIMARY KEY)")
    # what was folded so far may lie in archived days, which only a rebuild reads
    op.execute(
        "INSERT INTO unfilled_rollups SELECT 'pool_customer_minutes' WHERE EXISTS (SELECT FROM pool_minutes)"
    )
    op.execute(grant(prefix, "read", "SELECT", "pool_customer_minutes", "unfilled_rollups"))
    op.execute(grant(prefix, "fold", "INSERT, UPDATE, DELETE", "pool_customer_minutes"))
    op.execute(grant(prefix, "fold", "DELETE", "unfilled_rollups"))


def downgrade() -> None:
    for table in ("unfilled_rollups", "pool_customer_minutes"):
        op.execute(f"DROP TABLE {table}")
