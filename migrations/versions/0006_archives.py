"""Archived days of the ledger; and rollups that a rebuild may put right."""

from alembic import context, op

from metering.store.roles import grant

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    prefix = context.get_context().opts["role_prefix"]
    op.execute(
        """
        CREATE TABLE archives (
            archive_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            day date NOT NULL,
            address text NOT NULL,
            rows bigint NOT NULL,
            bytes bigint NOT NULL,
            sha256 bytea NOT NULL,
            first_batch_id bigint,
            last_batch_id bigint,
            archived_at timestamptz NOT NULL DEFAULT clock_timestamp(),
            restored_at timestamptz,
            CONSTRAINT archives_not_negative_check CHECK (least(rows, bytes) >= 0),
            CONSTRAINT archives_sha256_check CHECK (length(sha256) = 32)
        )"""
    )
    op.execute("CREATE UNIQUE INDEX archives_day_idx ON archives (day) WHERE restored_at IS NULL")
    # a batch that was decoded under the old floor finds the day closed: 40001 lets its worker begin it anew
    op.execute(
        """
        CREATE FUNCTION refuse_archived_day() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            RAISE EXCEPTION 'the day of % is archived', TG_TABLE_NAME USING ERRCODE = '40001';
        END $$"""
    )
    op.execute(grant(prefix, "read", "SELECT", "archives"))
    op.execute(grant(prefix, "fold", "DELETE", "usage_quarters", "pool_minutes"))


def downgrade() -> None:
    prefix = context.get_context().opts["role_prefix"]
    op.execute(f"REVOKE DELETE ON usage_quarters, pool_minutes FROM {prefix}fold")
    op.execute("DROP FUNCTION refuse_archived_day")
    op.execute("DROP TABLE archives")
