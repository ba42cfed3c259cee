"""Usage per minute, series, project and seat: what limits are counted in."""

from alembic import context, op

from metering.store.roles import grant

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    prefix = context.get_context().opts["role_prefix"]
    op.execute(
        """
        CREATE TABLE limit_minutes (
            minute timestamptz NOT NULL,
            series_id integer NOT NULL,
            project_id integer NOT NULL,
            seat_id integer NOT NULL,
            interval_id bigint NOT NULL,
            requests bigint NOT NULL,
            uncached_input_tokens bigint NOT NULL,
            cache_read_tokens bigint NOT NULL,
            cache_write_5m_tokens bigint NOT NULL,
            cache_write_1h_tokens bigint NOT NULL,
            output_tokens bigint NOT NULL,
            reasoning_tokens bigint NOT NULL,
            accelerator_ms bigint NOT NULL,
            PRIMARY KEY (minute, series_id, project_id, seat_id, interval_id)
        )"""
    )
    # what was folded so far may lie in archived days, which only a rebuild reads
    op.execute(
        "INSERT INTO unfilled_rollups SELECT 'limit_minutes' WHERE EXISTS (SELECT FROM usage_quarters)"
    )
    op.execute(grant(prefix, "read", "SELECT", "limit_minutes"))
    op.execute(grant(prefix, "fold", "INSERT, UPDATE, DELETE", "limit_minutes"))


def downgrade() -> None:
    op.execute("DELETE FROM unfilled_rollups WHERE rollup = 'limit_minutes'")
    op.execute("DROP TABLE limit_minutes")
