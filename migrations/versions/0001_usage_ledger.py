"""The usage ledger, what surrounds it, and the grants of those who write it."""

from alembic import context, op

from metering.store.roles import grant

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_METERS = (
    "uncached_input_tokens",
    "cache_read_tokens",
    "cache_write_5m_tokens",
    "cache_write_1h_tokens",
    "output_tokens",
    "reasoning_tokens",
    "accelerator_ms",
)


def _reject_columns(identity: str, at: str) -> str:
    return f"""
        {identity} bigint GENERATED ALWAYS AS IDENTITY,
        {at} timestamptz NOT NULL DEFAULT clock_timestamp(),
        batch_id bigint NOT NULL,
        intake_id integer NOT NULL,
        record_offset bigint NOT NULL,
        index integer NOT NULL,
        source text,
        event_id text,
        payload bytea NOT NULL,
        payload_bytes integer NOT NULL,
        payload_sha256 bytea NOT NULL"""


def upgrade() -> None:
    prefix = context.get_context().opts["role_prefix"]
    meters = ",\n        ".join(f"{meter} integer NOT NULL" for meter in _METERS)
    op.execute(
        """
        CREATE TABLE ledger_floor (
            only_row boolean PRIMARY KEY DEFAULT true CONSTRAINT ledger_floor_only_row_check CHECK (only_row),
            floor_at timestamptz NOT NULL
        )"""
    )
    op.execute(
        """
        CREATE TABLE sources (
            source_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY
                CONSTRAINT sources_source_id_check CHECK (source_id > 0),
            source text NOT NULL UNIQUE
        )"""
    )
    for table, column in (("projects", "project"), ("seats", "seat")):
        op.execute(
            f"""
            CREATE TABLE {table} (
                {column}_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
                {column} text NOT NULL UNIQUE
            )"""
        )
    op.execute(
        """
        CREATE TABLE series (
            series_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            series_digest uuid NOT NULL UNIQUE,
            customer text NOT NULL,
            product text NOT NULL,
            tier_sold text NOT NULL,
            provider text NOT NULL,
            model_served text NOT NULL,
            tier_served text NOT NULL,
            region text NOT NULL,
            pool text,
            ran_on text NOT NULL
                CONSTRAINT series_ran_on_check CHECK (ran_on IN ('pool', 'overflow', 'on_demand')),
            counts_for text NOT NULL
                CONSTRAINT series_counts_for_check CHECK (counts_for IN ('charge_and_cost', 'cost', 'charge')),
            context_breakpoint integer NOT NULL,
            CONSTRAINT series_pool_check CHECK (ran_on = 'on_demand' OR pool IS NOT NULL)
        )"""
    )
    op.execute(
        f"""
        CREATE TABLE usage_events (
        event_key uuid NOT NULL,
        request_key uuid NOT NULL,
        occurred_at timestamptz NOT NULL,
        digest bigint NOT NULL,
        batch_id bigint NOT NULL,
        source_id integer NOT NULL CONSTRAINT usage_events_source_id_check CHECK (source_id <> 0),
        ordinal integer NOT NULL,
        series_id integer NOT NULL,
        project_id integer NOT NULL,
        seat_id integer NOT NULL,
        duration_ms integer,
        {meters},
        attempt smallint NOT NULL,
        event_type smallint NOT NULL,
        usage_source smallint NOT NULL,
        nonbillable_reason smallint NOT NULL,
        digest_version smallint NOT NULL,
        event_id text NOT NULL,
        PRIMARY KEY (event_key, source_id),
        CONSTRAINT usage_events_sign_check CHECK (
            CASE WHEN source_id > 0 THEN least({", ".join(_METERS)}) >= 0
                 ELSE greatest({", ".join(_METERS)}) <= 0 END)
        ) PARTITION BY RANGE (event_key)"""
    )
    op.execute("CREATE INDEX usage_events_batch_id_idx ON usage_events (batch_id)")
    op.execute(
        """
        CREATE TABLE stream_positions (
            intake_id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            kind text NOT NULL CONSTRAINT stream_positions_kind_check
                CHECK (kind IN ('kafka', 'replay', 'settle', 'adjustments', 'bills')),
            topic text,
            topic_uuid uuid,
            partition integer,
            epoch bigint NOT NULL DEFAULT 0,
            next_offset bigint NOT NULL,
            next_sequence bigint NOT NULL DEFAULT 0,
            chain_head bytea NOT NULL,
            seen_until timestamptz,
            owner text,
            owner_pid integer,
            owner_started_at timestamptz,
            retired_at timestamptz,
            UNIQUE (topic_uuid, partition),
            CONSTRAINT stream_positions_kafka_check CHECK (
                (kind = 'kafka') = (topic IS NOT NULL AND topic_uuid IS NOT NULL AND partition IS NOT NULL)),
            CONSTRAINT stream_positions_not_negative_check
                CHECK (next_offset >= 0 AND next_sequence >= 0 AND epoch >= 0)
        )"""
    )
    op.execute("CREATE SEQUENCE ingest_batches_batch_id_seq AS bigint")
    op.execute(
        """
        CREATE TABLE ingest_batches (
            batch_id bigint PRIMARY KEY,
            intake_id integer NOT NULL,
            sequence bigint NOT NULL,
            epoch bigint NOT NULL,
            first_offset bigint NOT NULL,
            next_offset bigint NOT NULL,
            records integer NOT NULL,
            received integer NOT NULL,
            accepted integer NOT NULL,
            duplicate integer NOT NULL,
            conflict integer NOT NULL,
            rejected integer NOT NULL,
            unknown_fields bigint NOT NULL,
            appended_until timestamptz,
            committed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
            chain_version smallint NOT NULL,
            root bytea NOT NULL,
            previous_head bytea NOT NULL,
            head bytea NOT NULL,
            UNIQUE (intake_id, sequence),
            CONSTRAINT ingest_batches_complete_check
                CHECK (received = accepted + duplicate + conflict + rejected),
            CONSTRAINT ingest_batches_not_negative_check
                CHECK (least(records, accepted, duplicate, conflict, rejected) >= 0),
            CONSTRAINT ingest_batches_forward_check CHECK (next_offset >= first_offset),
            CONSTRAINT ingest_batches_chain_check
                CHECK (length(root) = 32 AND length(previous_head) = 32 AND length(head) = 32)
        )"""
    )
    op.execute(
        f"""
        CREATE TABLE rejects ({_reject_columns("reject_id", "rejected_at")},
            code text NOT NULL,
            field text,
            detail text NOT NULL,
            PRIMARY KEY (rejected_at, reject_id)
        ) PARTITION BY RANGE (rejected_at)"""
    )
    op.execute("CREATE INDEX rejects_batch_id_idx ON rejects (batch_id)")
    op.execute(
        f"""
        CREATE TABLE conflicts ({_reject_columns("conflict_id", "conflicted_at")},
            event_key uuid NOT NULL,
            source_id integer NOT NULL,
            accepted_digest bigint NOT NULL,
            refused_digest bigint NOT NULL,
            PRIMARY KEY (conflicted_at, conflict_id)
        ) PARTITION BY RANGE (conflicted_at)"""
    )
    op.execute("CREATE INDEX conflicts_batch_id_idx ON conflicts (batch_id)")
    op.execute(
        """
        CREATE TABLE source_stops (
            source_stop_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
            source text NOT NULL,
            stopped boolean NOT NULL,
            changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
            reason text NOT NULL,
            intervention_id bigint
        )"""
    )
    op.execute("CREATE INDEX source_stops_source_source_stop_id_idx ON source_stops (source, source_stop_id)")
    op.execute(
        """
        CREATE TABLE interventions (
            intervention_id bigint PRIMARY KEY,
            intervened_at timestamptz NOT NULL DEFAULT clock_timestamp(),
            kind text NOT NULL CONSTRAINT interventions_kind_check
                CHECK (kind IN ('adopt', 'skip', 'gap', 'resume')),
            by text NOT NULL,
            reason text NOT NULL,
            details jsonb NOT NULL,
            previous_head bytea NOT NULL,
            head bytea NOT NULL,
            CONSTRAINT interventions_named_check CHECK (length(trim(reason)) > 0 AND length(trim(by)) > 0)
        )"""
    )
    bytes_hidden = [
        "batch_id, intake_id, record_offset, index, source, event_id, payload_bytes, payload_sha256",
    ]
    open_tables = (
        "alembic_version", "ledger_floor", "sources", "projects", "seats", "series", "stream_positions",
        "ingest_batches", "source_stops",
    )  # fmt: skip
    op.execute(grant(prefix, "read", "SELECT", "usage_events", "interventions", *open_tables))
    op.execute(
        f"GRANT SELECT (reject_id, rejected_at, code, field, detail, {bytes_hidden[0]}) ON rejects TO {prefix}read"
    )
    op.execute(
        "GRANT SELECT (conflict_id, conflicted_at, event_key, source_id, accepted_digest, refused_digest, "
        f"{bytes_hidden[0]}) ON conflicts TO {prefix}read"
    )
    op.execute(grant(prefix, "rejects", "SELECT", "rejects", "conflicts"))
    op.execute(grant(prefix, "ingest", "SELECT", *open_tables))
    op.execute(
        f"GRANT SELECT (event_key, source_id, digest, digest_version) ON usage_events TO {prefix}ingest"
    )
    written = (
        "sources",
        "projects",
        "seats",
        "series",
        "usage_events",
        "ingest_batches",
        "rejects",
        "conflicts",
    )
    op.execute(grant(prefix, "ingest", "INSERT", "source_stops", *written))
    op.execute(grant(prefix, "ingest", "UPDATE", "stream_positions"))
    op.execute(f"GRANT USAGE ON SEQUENCE ingest_batches_batch_id_seq TO {prefix}ingest, {prefix}settle")
    op.execute(grant(prefix, "settle", "INSERT", "usage_events", "ingest_batches", "series"))
    op.execute(grant(prefix, "settle", "UPDATE", "stream_positions"))
    op.execute(grant(prefix, "operator", "INSERT", "interventions", "source_stops", "stream_positions"))
    op.execute(grant(prefix, "operator", "UPDATE", "stream_positions"))


def downgrade() -> None:
    for table in (
        "interventions", "source_stops", "conflicts", "rejects", "ingest_batches", "stream_positions",
        "usage_events", "series", "seats", "projects", "sources", "ledger_floor",
    ):  # fmt: skip
        op.execute(f"DROP TABLE {table}")
    op.execute("DROP SEQUENCE ingest_batches_batch_id_seq")
