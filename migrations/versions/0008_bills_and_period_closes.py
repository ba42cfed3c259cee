"""Suppliers' bills, with every revision and line; and the months that are closed."""

from alembic import context, op

from metering.store.roles import grant

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    prefix = context.get_context().opts["role_prefix"]
    op.execute(
        """
        CREATE TABLE bills (
            bill_id bigint PRIMARY KEY,
            batch_id bigint NOT NULL CONSTRAINT bills_batch_id_key UNIQUE,
            supplier text NOT NULL,
            document text NOT NULL,
            revision integer NOT NULL,
            currency text NOT NULL,
            posted_month date NOT NULL,
            file text NOT NULL,
            digest bytea NOT NULL,
            added_at timestamptz NOT NULL,
            added_by text NOT NULL,
            reason text NOT NULL,
            CONSTRAINT bills_supplier_document_revision_key UNIQUE (supplier, document, revision),
            CONSTRAINT bills_revision_check CHECK (revision > 0),
            CONSTRAINT bills_posted_month_check CHECK (extract(day FROM posted_month) = 1),
            CONSTRAINT bills_digest_check CHECK (length(digest) = 32),
            CONSTRAINT bills_named_check
                CHECK (length(trim(added_by)) > 0 AND (revision = 1 OR length(trim(reason)) > 0))
        )"""
    )
    op.execute(
        """
        CREATE TABLE bill_lines (
            bill_id bigint NOT NULL,
            line text NOT NULL,
            category text NOT NULL,
            object_kind text NOT NULL,
            object text,
            amount numeric(38, 12) NOT NULL,
            service_from timestamptz NOT NULL,
            service_until timestamptz NOT NULL,
            description text,
            split_of text,
            PRIMARY KEY (bill_id, line),
            CONSTRAINT bill_lines_category_check CHECK (category IN ('charge', 'credit', 'true_up')),
            CONSTRAINT bill_lines_object_kind_check
                CHECK (object_kind IN ('pool', 'on_demand', 'commitment', 'overhead')),
            CONSTRAINT bill_lines_amount_check CHECK (amount BETWEEN -1e14 AND 1e14),
            CONSTRAINT bill_lines_span_check CHECK (service_until > service_from)
        )"""
    )
    op.execute(
        """
        CREATE TABLE period_closes (
            month date PRIMARY KEY,
            watermark_id bigint NOT NULL,
            closed_at timestamptz NOT NULL,
            closed_by text NOT NULL,
            reason text NOT NULL,
            previous_head bytea NOT NULL,
            head bytea NOT NULL,
            CONSTRAINT period_closes_month_check CHECK (extract(day FROM month) = 1),
            CONSTRAINT period_closes_named_check CHECK (length(trim(reason)) > 0 AND length(trim(closed_by)) > 0)
        )"""
    )
    op.execute(grant(prefix, "read", "SELECT", "bills", "bill_lines", "period_closes"))
    op.execute(grant(prefix, "operator", "INSERT", "bills", "bill_lines"))
    # a month is closed in the transaction that pins its watermark
    op.execute(grant(prefix, "fold", "INSERT", "period_closes"))


def downgrade() -> None:
    for table in ("period_closes", "bill_lines", "bills"):
        op.execute(f"DROP TABLE {table}")
