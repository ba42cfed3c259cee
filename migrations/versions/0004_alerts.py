"""Alerts, the outbox, and the attempts to deliver it: all append-only."""

from alembic import context, op

from metering.store.roles import grant

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    prefix = context.get_context().opts["role_prefix"]
    op.execute(
        """
        CREATE TABLE alerts (
            rule text NOT NULL,
            scope text NOT NULL,
            sequence integer NOT NULL CONSTRAINT alerts_sequence_check CHECK (sequence > 0),
            state text NOT NULL,
            changed_at timestamptz NOT NULL,
            period text NOT NULL,
            watermark_id bigint,
            details jsonb NOT NULL,
            PRIMARY KEY (rule, scope, sequence),
            CONSTRAINT alerts_state_check
                CHECK (state = CASE sequence % 2 WHEN 1 THEN 'opened' ELSE 'resolved' END)
        )"""
    )
    op.execute(
        """
        CREATE TABLE outbox (
            outbox_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
            rule text NOT NULL,
            scope text NOT NULL,
            sequence integer NOT NULL,
            message jsonb NOT NULL
        )"""
    )
    op.execute(
        """
        CREATE TABLE outbox_attempts (
            outbox_id bigint NOT NULL,
            attempt integer NOT NULL,
            attempted_at timestamptz NOT NULL DEFAULT clock_timestamp(),
            outcome text NOT NULL CONSTRAINT outbox_attempts_outcome_check
                CHECK (outcome IN ('delivered', 'retry', 'given_up')),
            status integer,
            retry_at timestamptz,
            detail text NOT NULL,
            PRIMARY KEY (outbox_id, attempt)
        )"""
    )
    op.execute(grant(prefix, "read", "SELECT", "alerts", "outbox", "outbox_attempts"))
    op.execute(grant(prefix, "evaluate", "INSERT", "alerts", "outbox"))
    op.execute(grant(prefix, "deliver", "INSERT", "outbox_attempts"))


def downgrade() -> None:
    for table in ("outbox_attempts", "outbox", "alerts"):
        op.execute(f"DROP TABLE {table}")
