"""Rollups by interval, the fold's position, and watermarks."""

from alembic import context, op

from metering.store.roles import grant

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_SUMS = """
            requests bigint NOT NULL,
            uncached_input_tokens bigint NOT NULL,
            cache_read_tokens bigint NOT NULL,
            cache_write_5m_tokens bigint NOT NULL,
            cache_write_1h_tokens bigint NOT NULL,
            output_tokens bigint NOT NULL,
            reasoning_tokens bigint NOT NULL,
            accelerator_ms bigint NOT NULL"""


def upgrade() -> None:
    prefix = context.get_context().opts["role_prefix"]
    op.execute(
        f"""
        CREATE TABLE usage_quarters (
            quarter_start timestamptz NOT NULL,
            series_id integer NOT NULL,
            interval_id bigint NOT NULL,{_SUMS},
            PRIMARY KEY (quarter_start, series_id, interval_id)
        )"""
    )
    op.execute(
        f"""
        CREATE TABLE pool_minutes (
            minute timestamptz NOT NULL,
            pool text NOT NULL,
            ran_on text NOT NULL,
            model_served text NOT NULL,
            tier_served text NOT NULL,
            region text NOT NULL,
            context_breakpoint integer NOT NULL,
            interval_id bigint NOT NULL,{_SUMS},
            PRIMARY KEY (minute, pool, ran_on, model_served, tier_served, region, context_breakpoint, interval_id)
        )"""
    )
    op.execute("CREATE TABLE fold_positions (intake_id integer PRIMARY KEY, next_sequence bigint NOT NULL)")
    op.execute(
        """
        CREATE TABLE watermarks (
            watermark_id bigint PRIMARY KEY CONSTRAINT watermarks_watermark_id_check CHECK (watermark_id > 0),
            pinned_at timestamptz NOT NULL DEFAULT clock_timestamp(),
            positions jsonb NOT NULL,
            catalog_revision integer NOT NULL,
            program_version text NOT NULL,
            complete_until timestamptz,
            reason text NOT NULL,
            previous_head bytea NOT NULL,
            head bytea NOT NULL
        )"""
    )
    derived = ("usage_quarters", "pool_minutes", "fold_positions")
    op.execute(grant(prefix, "read", "SELECT", "watermarks", *derived))
    op.execute(grant(prefix, "fold", "INSERT, UPDATE", *derived))
    op.execute(grant(prefix, "fold", "INSERT", "watermarks"))


def downgrade() -> None:
    for table in ("watermarks", "fold_positions", "pool_minutes", "usage_quarters"):
        op.execute(f"DROP TABLE {table}")
