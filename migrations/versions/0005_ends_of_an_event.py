"""Every way an event can end: voids and what settles them, refusals, heartbeats, adjustments, replays, findings."""

from alembic import context, op

from metering.store.roles import grant

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_EVENT = """
            event_key uuid NOT NULL,
            source_id integer NOT NULL,
            batch_id bigint NOT NULL"""


def upgrade() -> None:
    prefix = context.get_context().opts["role_prefix"]
    op.execute("ALTER TABLE rejects ADD COLUMN content_type text, ADD COLUMN appended_at timestamptz")
    op.execute(f"GRANT SELECT (content_type, appended_at) ON rejects TO {prefix}read")
    op.execute(
        "CREATE UNIQUE INDEX stream_positions_kind_idx ON stream_positions (kind) WHERE kind <> 'kafka'"
    )
    op.execute(
        f"""
        CREATE TABLE voids ({_EVENT},
            occurred_at timestamptz NOT NULL,
            target_key uuid NOT NULL,
            target_source_id integer NOT NULL,
            target_id text NOT NULL,
            side text NOT NULL CONSTRAINT voids_side_check CHECK (side IN ('charge', 'both')),
            reason text,
            PRIMARY KEY (event_key, source_id)
        )"""
    )
    op.execute("CREATE INDEX voids_target_key_target_source_id_idx ON voids (target_key, target_source_id)")
    op.execute(
        f"""
        CREATE TABLE refusals ({_EVENT},
            occurred_at timestamptz NOT NULL,
            customer text NOT NULL,
            request_id text NOT NULL,
            attempt smallint NOT NULL,
            reason text NOT NULL
                CONSTRAINT refusals_reason_check CHECK (reason IN ('customer_limit', 'pool_full')),
            product text,
            tier_sold text,
            provider text,
            model text,
            region text,
            pool text,
            project text,
            seat text,
            estimated_input_tokens integer,
            estimated_output_tokens integer,
            PRIMARY KEY (event_key, source_id),
            CONSTRAINT refusals_pool_check CHECK (reason <> 'pool_full' OR pool IS NOT NULL)
        )"""
    )
    op.execute(
        f"""
        CREATE TABLE heartbeats ({_EVENT},
            occurred_at timestamptz NOT NULL,
            sequence bigint NOT NULL CONSTRAINT heartbeats_sequence_check CHECK (sequence > 0),
            complete_until timestamptz NOT NULL,
            PRIMARY KEY (event_key, source_id)
        )"""
    )
    op.execute("CREATE INDEX heartbeats_source_id_occurred_at_idx ON heartbeats (source_id, occurred_at)")
    op.execute(
        """
        CREATE TABLE settlements (
            void_key uuid NOT NULL,
            void_source_id integer NOT NULL,
            batch_id bigint NOT NULL,
            settled_at timestamptz NOT NULL DEFAULT clock_timestamp(),
            outcome text NOT NULL CONSTRAINT settlements_outcome_check CHECK (outcome IN (
                'compensated', 'second_void', 'void_of_void', 'void_of_other', 'nonbillable_charge',
                'target_archived')),
            target_key uuid NOT NULL,
            target_source_id integer NOT NULL,
            PRIMARY KEY (void_key, void_source_id)
        )"""
    )
    op.execute(
        f"""
        CREATE TABLE adjustments ({_EVENT},
            author text NOT NULL,
            reason text NOT NULL,
            PRIMARY KEY (event_key, source_id),
            CONSTRAINT adjustments_named_check CHECK (length(trim(reason)) > 0 AND length(trim(author)) > 0)
        )"""
    )
    op.execute(
        """
        CREATE TABLE replays (
            reject_id bigint PRIMARY KEY,
            batch_id bigint NOT NULL,
            replayed_at timestamptz NOT NULL DEFAULT clock_timestamp()
        )"""
    )
    op.execute(
        """
        CREATE TABLE batch_sources (
            batch_id bigint NOT NULL,
            source_id integer NOT NULL,
            accepted integer NOT NULL,
            duplicate integer NOT NULL,
            conflict integer NOT NULL,
            rejected integer NOT NULL,
            PRIMARY KEY (batch_id, source_id),
            CONSTRAINT batch_sources_not_negative_check
                CHECK (source_id >= 0 AND least(accepted, duplicate, conflict, rejected) >= 0)
        )"""
    )
    op.execute(
        """
        CREATE VIEW source_hours AS
        SELECT date_bin('1 hour', b.committed_at, 'epoch') AS hour, coalesce(s.source, '') AS source,
            sum(accepted + duplicate + conflict + rejected)::bigint AS received,
            sum(o.accepted)::bigint AS accepted, sum(o.duplicate)::bigint AS duplicate,
            sum(o.conflict)::bigint AS conflict, sum(o.rejected)::bigint AS rejected
        FROM (SELECT batch_id, committed_at FROM ingest_batches) b JOIN batch_sources o USING (batch_id)
            LEFT JOIN sources s USING (source_id)
        GROUP BY 1, 2"""
    )
    op.execute(
        """
        CREATE TABLE findings (
            kind text NOT NULL,
            subject text NOT NULL,
            sequence integer NOT NULL CONSTRAINT findings_sequence_check CHECK (sequence > 0),
            state text NOT NULL,
            found_at timestamptz NOT NULL,
            day date,
            customer text,
            details jsonb NOT NULL,
            PRIMARY KEY (kind, subject, sequence),
            CONSTRAINT findings_state_check
                CHECK (state = CASE sequence % 2 WHEN 1 THEN 'opened' ELSE 'resolved' END)
        )"""
    )
    op.execute(
        """
        CREATE TABLE finding_passes (
            day date PRIMARY KEY,
            watermark_id bigint NOT NULL,
            passed_at timestamptz NOT NULL DEFAULT clock_timestamp()
        )"""
    )
    details = ("voids", "refusals", "heartbeats")
    ledgers = (
        *details,
        "settlements",
        "adjustments",
        "replays",
        "batch_sources",
        "findings",
        "finding_passes",
    )
    op.execute(grant(prefix, "read", "SELECT", *ledgers, "source_hours"))
    op.execute(grant(prefix, "ingest", "INSERT", *details, "batch_sources"))
    op.execute(
        grant(prefix, "settle", "INSERT", "settlements", "batch_sources", "findings", "finding_passes")
    )
    op.execute(grant(prefix, "settle", "UPDATE", "finding_passes"))
    op.execute(grant(prefix, "settle", "INSERT", "stream_positions"))
    op.execute(f"GRANT USAGE ON SEQUENCE ingest_batches_batch_id_seq TO {prefix}operator")
    op.execute(
        grant(
            prefix,
            "operator",
            "INSERT",
            "usage_events",
            "ingest_batches",
            "rejects",
            "conflicts",
            "sources",
            "projects",
            "seats",
            "series",
            "adjustments",
            "replays",
            *details,
            "batch_sources",
        )
    )


def downgrade() -> None:
    op.execute("DROP VIEW source_hours")
    for table in (
        "finding_passes", "findings", "batch_sources", "replays", "adjustments", "settlements", "heartbeats",
        "refusals", "voids",
    ):  # fmt: skip
        op.execute(f"DROP TABLE {table}")
    op.execute("DROP INDEX stream_positions_kind_idx")
    op.execute("ALTER TABLE rejects DROP COLUMN content_type, DROP COLUMN appended_at")
