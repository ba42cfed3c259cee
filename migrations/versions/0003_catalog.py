"""The catalog: revisions, and the objects that each appended."""

from alembic import context, op

from metering.store.roles import grant

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    prefix = context.get_context().opts["role_prefix"]
    op.execute(
        """
        CREATE TABLE catalog_revisions (
            catalog_revision integer PRIMARY KEY
                CONSTRAINT catalog_revisions_catalog_revision_check CHECK (catalog_revision > 0),
            applied_at timestamptz NOT NULL,
            applied_by text NOT NULL,
            reason text NOT NULL,
            program_version text NOT NULL,
            digest bytea NOT NULL,
            previous_head bytea NOT NULL,
            head bytea NOT NULL
        )"""
    )
    op.execute(
        """
        CREATE TABLE catalog_objects (
            kind text NOT NULL,
            name text NOT NULL,
            catalog_revision integer NOT NULL,
            ended_at timestamptz,
            file text NOT NULL,
            line integer NOT NULL,
            body jsonb NOT NULL,
            digest bytea NOT NULL,
            PRIMARY KEY (kind, name, catalog_revision)
        )"""
    )
    op.execute(grant(prefix, "read", "SELECT", "catalog_revisions", "catalog_objects"))
    op.execute(grant(prefix, "operator", "INSERT", "catalog_revisions", "catalog_objects"))


def downgrade() -> None:
    op.execute("DROP TABLE catalog_objects")
    op.execute("DROP TABLE catalog_revisions")
