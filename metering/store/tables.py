"""Every table, as SQLAlchemy Core metadata: what the migrations must add up to (`alembic check` compares)."""

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Date,
    DateTime,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Numeric,
    PrimaryKeyConstraint,
    Sequence,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

from metering.meters import FIRST_METERS, FURTHER_METERS, METERS
from metering.store.ledger_rows import meter_sql

metadata = MetaData(
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    }
)

#: Tables whose children alembic must not see.
PARTITIONED: Final = ("usage_events", "rejects", "conflicts")


def _instant() -> DateTime:
    return DateTime(timezone=True)


def _required(name: str, kind: Any, **options: Any) -> Column[Any]:
    return Column(name, kind, nullable=False, **options)


_FURTHER: Final = ", ".join(meter_sql(meter) for meter in FURTHER_METERS)
#: What holds of the further meters of a row: all of them or none, and one sign, as of its other meters.
FURTHER_CHECK: Final = (
    f"further_meters = '' OR octet_length(further_meters) = {4 * len(FURTHER_METERS)} AND "
    f"CASE WHEN source_id > 0 THEN least({_FURTHER}) >= 0 ELSE greatest({_FURTHER}) <= 0 END"
)


# ---- the usage ledger and what surrounds it ------------------------------------------------------------

ledger_floor = Table(
    "ledger_floor",
    metadata,
    _required("only_row", Boolean, server_default=text("true"), primary_key=True),
    _required("floor_at", _instant()),
    CheckConstraint("only_row", name="only_row"),
)
sources = Table(
    "sources",
    metadata,
    _required("source_id", Integer, primary_key=True, server_default=Identity(always=True)),
    _required("source", Text, unique=True),
    CheckConstraint("source_id > 0", name="source_id"),
)
projects = Table(
    "projects",
    metadata,
    _required("project_id", Integer, primary_key=True, server_default=Identity(always=True)),
    _required("project", Text, unique=True),
)
seats = Table(
    "seats",
    metadata,
    _required("seat_id", Integer, primary_key=True, server_default=Identity(always=True)),
    _required("seat", Text, unique=True),
)
series = Table(
    "series",
    metadata,
    _required("series_id", Integer, primary_key=True, server_default=Identity(always=True)),
    _required("series_digest", Uuid, unique=True),
    _required("customer", Text),
    _required("product", Text),
    _required("tier_sold", Text),
    _required("provider", Text),
    _required("model_served", Text),
    _required("tier_served", Text),
    _required("region", Text),
    Column("pool", Text),
    _required("ran_on", Text),
    _required("counts_for", Text),
    _required("context_breakpoint", Integer),
    CheckConstraint("ran_on IN ('pool', 'overflow', 'on_demand')", name="ran_on"),
    CheckConstraint("counts_for IN ('charge_and_cost', 'cost', 'charge')", name="counts_for"),
    CheckConstraint("ran_on = 'on_demand' OR pool IS NOT NULL", name="pool"),
    Index(None, "customer"),
)
usage_events = Table(
    "usage_events",
    metadata,
    # 16- and 8-byte columns first: no padding between them
    _required("event_key", Uuid),
    _required("request_key", Uuid),
    _required("occurred_at", _instant()),
    _required("digest", BigInteger),
    _required("batch_id", BigInteger),
    _required("source_id", Integer),
    _required("ordinal", Integer),
    _required("series_id", Integer),
    _required("project_id", Integer),
    _required("seat_id", Integer),
    Column("duration_ms", Integer),
    *(_required(meter, Integer) for meter in FIRST_METERS),
    _required("attempt", SmallInteger),
    _required("event_type", SmallInteger),
    _required("usage_source", SmallInteger),
    _required("nonbillable_reason", SmallInteger),
    _required("digest_version", SmallInteger),
    _required("event_id", Text),
    # the further meters in one value, empty where all are 0: it takes the byte that padded the row
    _required("further_meters", LargeBinary, server_default=text("''")),
    PrimaryKeyConstraint("event_key", "source_id"),
    CheckConstraint("source_id <> 0", name="source_id"),
    CheckConstraint(
        f"CASE WHEN source_id > 0 THEN least({', '.join(FIRST_METERS)}) >= 0"
        f" ELSE greatest({', '.join(FIRST_METERS)}) <= 0 END",
        name="sign",
    ),
    CheckConstraint(FURTHER_CHECK, name="further_meters"),
    Index(None, "batch_id"),
    postgresql_partition_by="RANGE (event_key)",
)
stream_positions = Table(
    "stream_positions",
    metadata,
    _required("intake_id", Integer, primary_key=True, server_default=Identity(always=True)),
    _required("kind", Text),
    Column("topic", Text),
    Column("topic_uuid", Uuid),
    Column("partition", Integer),
    _required("epoch", BigInteger, server_default=text("0")),
    _required("next_offset", BigInteger),
    _required("next_sequence", BigInteger, server_default=text("0")),
    _required("chain_head", LargeBinary),
    Column("seen_until", _instant()),
    Column("owner", Text),
    Column("owner_pid", Integer),
    Column("owner_started_at", _instant()),
    Column("retired_at", _instant()),
    UniqueConstraint("topic_uuid", "partition"),
    CheckConstraint("kind IN ('kafka', 'replay', 'settle', 'adjustments', 'bills')", name="kind"),
    CheckConstraint(
        "(kind = 'kafka') = (topic IS NOT NULL AND topic_uuid IS NOT NULL AND partition IS NOT NULL)",
        name="kafka",
    ),
    CheckConstraint("next_offset >= 0 AND next_sequence >= 0 AND epoch >= 0", name="not_negative"),
    # Kafka has an intake per partition, every other kind one
    Index("stream_positions_kind_idx", "kind", unique=True, postgresql_where=text("kind <> 'kafka'")),
)
batch_ids = Sequence("ingest_batches_batch_id_seq", metadata=metadata, data_type=BigInteger)
ingest_batches = Table(
    "ingest_batches",
    metadata,
    _required("batch_id", BigInteger, primary_key=True, autoincrement=False),
    _required("intake_id", Integer),
    _required("sequence", BigInteger),
    _required("epoch", BigInteger),
    _required("first_offset", BigInteger),
    _required("next_offset", BigInteger),
    _required("records", Integer),
    _required("received", Integer),
    _required("accepted", Integer),
    _required("duplicate", Integer),
    _required("conflict", Integer),
    _required("rejected", Integer),
    _required("unknown_fields", BigInteger),
    Column("appended_until", _instant()),
    _required("committed_at", _instant(), server_default=text("clock_timestamp()")),
    _required("chain_version", SmallInteger),
    _required("root", LargeBinary),
    _required("previous_head", LargeBinary),
    _required("head", LargeBinary),
    UniqueConstraint("intake_id", "sequence"),
    CheckConstraint("received = accepted + duplicate + conflict + rejected", name="complete"),
    CheckConstraint("least(records, accepted, duplicate, conflict, rejected) >= 0", name="not_negative"),
    CheckConstraint("next_offset >= first_offset", name="forward"),
    CheckConstraint("length(root) = 32 AND length(previous_head) = 32 AND length(head) = 32", name="chain"),
)


def _reject_columns(identity: str, at: str) -> list[Any]:
    return [
        _required(identity, BigInteger, server_default=Identity(always=True)),
        _required(at, _instant(), server_default=text("clock_timestamp()")),
        _required("batch_id", BigInteger),
        _required("intake_id", Integer),
        _required("record_offset", BigInteger),
        _required("index", Integer),
        Column("source", Text),
        Column("event_id", Text),
        _required("payload", LargeBinary),
        _required("payload_bytes", Integer),
        _required("payload_sha256", LargeBinary),
        PrimaryKeyConstraint(at, identity),
        Index(None, "batch_id"),
    ]


rejects = Table(
    "rejects",
    metadata,
    *_reject_columns("reject_id", "rejected_at"),
    _required("code", Text),
    Column("field", Text),
    _required("detail", Text),
    # of the record, for a replay; null where it had none or is of before they were kept
    Column("content_type", Text),
    Column("appended_at", _instant()),
    postgresql_partition_by="RANGE (rejected_at)",
)
conflicts = Table(
    "conflicts",
    metadata,
    *_reject_columns("conflict_id", "conflicted_at"),
    _required("event_key", Uuid),
    _required("source_id", Integer),
    _required("accepted_digest", BigInteger),
    _required("refused_digest", BigInteger),
    postgresql_partition_by="RANGE (conflicted_at)",
)
source_stops = Table(
    "source_stops",
    metadata,
    _required("source_stop_id", BigInteger, primary_key=True, server_default=Identity(always=True)),
    _required("source", Text),
    _required("stopped", Boolean),
    _required("changed_at", _instant(), server_default=text("clock_timestamp()")),
    _required("reason", Text),
    Column("intervention_id", BigInteger),
    Index(None, "source", "source_stop_id"),
)
interventions = Table(
    "interventions",
    metadata,
    _required("intervention_id", BigInteger, primary_key=True, autoincrement=False),
    _required("intervened_at", _instant(), server_default=text("clock_timestamp()")),
    _required("kind", Text),
    _required("by", Text),
    _required("reason", Text),
    _required("details", JSONB),
    _required("previous_head", LargeBinary),
    _required("head", LargeBinary),
    CheckConstraint("kind IN ('adopt', 'skip', 'gap', 'resume')", name="kind"),
    CheckConstraint("length(trim(reason)) > 0 AND length(trim(by)) > 0", name="named"),
)


# ---- the other ends of an event: what stands beside a ledger row, in the same transaction ---------------


def _event(*more: Any) -> list[Any]:
    return [
        _required("event_key", Uuid),
        _required("source_id", Integer),
        _required("batch_id", BigInteger),
        *more,
        PrimaryKeyConstraint("event_key", "source_id"),
    ]


voids = Table(
    "voids",
    metadata,
    *_event(
        _required("occurred_at", _instant()),
        _required("target_key", Uuid),
        _required("target_source_id", Integer),
        _required("target_id", Text),
        _required("side", Text),
        Column("reason", Text),
    ),
    CheckConstraint("side IN ('charge', 'both')", name="side"),
    Index(None, "target_key", "target_source_id"),
)
refusals = Table(
    "refusals",
    metadata,
    *_event(
        _required("occurred_at", _instant()),
        _required("customer", Text),
        _required("request_id", Text),
        _required("attempt", SmallInteger),
        _required("reason", Text),
        *(
            Column(name, Text)
            for name in (
                *("product", "tier_sold", "provider", "model"),
                *("region", "pool", "project", "seat"),
            )
        ),
        Column("estimated_input_tokens", Integer),
        Column("estimated_output_tokens", Integer),
    ),
    CheckConstraint("reason IN ('customer_limit', 'pool_full')", name="reason"),
    CheckConstraint("reason <> 'pool_full' OR pool IS NOT NULL", name="pool"),
)
heartbeats = Table(
    "heartbeats",
    metadata,
    *_event(
        _required("occurred_at", _instant()),
        _required("sequence", BigInteger),
        _required("complete_until", _instant()),
    ),
    CheckConstraint("sequence > 0", name="sequence"),
    Index(None, "source_id", "occurred_at"),
)
settlements = Table(
    "settlements",
    metadata,
    _required("void_key", Uuid),
    _required("void_source_id", Integer),
    _required("batch_id", BigInteger),
    _required("settled_at", _instant(), server_default=text("clock_timestamp()")),
    _required("outcome", Text),
    _required("target_key", Uuid),
    _required("target_source_id", Integer),
    PrimaryKeyConstraint("void_key", "void_source_id"),
    CheckConstraint(
        "outcome IN ('compensated', 'second_void', 'void_of_void', 'void_of_other', 'nonbillable_charge', "
        "'target_archived')",
        name="outcome",
    ),
)
adjustments = Table(
    "adjustments",
    metadata,
    *_event(_required("author", Text), _required("reason", Text)),
    CheckConstraint("length(trim(reason)) > 0 AND length(trim(author)) > 0", name="named"),
)
replays = Table(
    "replays",
    metadata,
    _required("reject_id", BigInteger, primary_key=True, autoincrement=False),
    _required("batch_id", BigInteger),
    _required("replayed_at", _instant(), server_default=text("clock_timestamp()")),
)
batch_sources = Table(
    "batch_sources",
    metadata,
    _required("batch_id", BigInteger),
    _required("source_id", Integer),
    *(_required(name, Integer) for name in ("accepted", "duplicate", "conflict", "rejected")),
    PrimaryKeyConstraint("batch_id", "source_id"),
    CheckConstraint(
        "source_id >= 0 AND least(accepted, duplicate, conflict, rejected) >= 0", name="not_negative"
    ),
)
findings = Table(
    "findings",
    metadata,
    _required("kind", Text),
    _required("subject", Text),
    _required("sequence", Integer),
    _required("state", Text),
    _required("found_at", _instant()),
    Column("day", Date),
    Column("customer", Text),
    _required("details", JSONB),
    PrimaryKeyConstraint("kind", "subject", "sequence"),
    CheckConstraint("sequence > 0", name="sequence"),
    CheckConstraint("state = CASE sequence % 2 WHEN 1 THEN 'opened' ELSE 'resolved' END", name="state"),
)
finding_passes = Table(
    "finding_passes",
    metadata,
    _required("day", Date, primary_key=True),
    _required("watermark_id", BigInteger),
    _required("passed_at", _instant(), server_default=text("clock_timestamp()")),
)

archives = Table(
    "archives",
    metadata,
    _required("archive_id", BigInteger, primary_key=True, server_default=Identity(always=True)),
    _required("day", Date),
    _required("address", Text),
    _required("rows", BigInteger),
    _required("bytes", BigInteger),
    _required("sha256", LargeBinary),
    Column("first_batch_id", BigInteger),
    Column("last_batch_id", BigInteger),
    _required("archived_at", _instant(), server_default=text("clock_timestamp()")),
    Column("restored_at", _instant()),
    CheckConstraint("least(rows, bytes) >= 0", name="not_negative"),
    CheckConstraint("length(sha256) = 32", name="sha256"),
    Index("archives_day_idx", "day", unique=True, postgresql_where=text("restored_at IS NULL")),
)

# ---- derived: rollups and points of knowledge ----------------------------------------------------------


def _sums() -> list[Column[Any]]:
    """Sums of a rollup: that of a further meter is null where it is 0, so that it takes no room."""
    return [Column(name, BigInteger, nullable=name in FURTHER_METERS) for name in ("requests", *METERS)]


#: Rows of a rollup that have a further meter: an index finds them.
HAS_FURTHER: Final = f"num_nonnulls({', '.join(FURTHER_METERS)}) > 0"
usage_quarters = Table(
    "usage_quarters",
    metadata,
    _required("quarter_start", _instant()),
    _required("series_id", Integer),
    _required("interval_id", BigInteger),
    *_sums(),
    PrimaryKeyConstraint("quarter_start", "series_id", "interval_id"),
    Index("usage_quarters_further_idx", "quarter_start", postgresql_where=text(HAS_FURTHER)),
)
pool_minutes = Table(
    "pool_minutes",
    metadata,
    _required("minute", _instant()),
    _required("pool", Text),
    _required("ran_on", Text),
    _required("model_served", Text),
    _required("tier_served", Text),
    _required("region", Text),
    _required("context_breakpoint", Integer),
    _required("interval_id", BigInteger),
    *_sums(),
    PrimaryKeyConstraint(
        "minute",
        "pool",
        "ran_on",
        "model_served",
        "tier_served",
        "region",
        "context_breakpoint",
        "interval_id",
    ),
    Index("pool_minutes_further_idx", "minute", postgresql_where=text(HAS_FURTHER)),
)
pool_customer_minutes = Table(
    "pool_customer_minutes",
    metadata,
    _required("minute", _instant()),
    _required("series_id", Integer),
    _required("interval_id", BigInteger),
    *_sums(),
    PrimaryKeyConstraint("minute", "series_id", "interval_id"),
    Index("pool_customer_minutes_further_idx", "minute", postgresql_where=text(HAS_FURTHER)),
)
limit_minutes = Table(
    "limit_minutes",
    metadata,
    _required("minute", _instant()),
    _required("series_id", Integer),
    _required("project_id", Integer),
    _required("seat_id", Integer),
    _required("interval_id", BigInteger),
    *_sums(),
    PrimaryKeyConstraint("minute", "series_id", "project_id", "seat_id", "interval_id"),
    Index("limit_minutes_further_idx", "minute", postgresql_where=text(HAS_FURTHER)),
)
#: Rollups that came with an upgrade and lack what was folded before it.
unfilled_rollups = Table("unfilled_rollups", metadata, _required("rollup", Text, primary_key=True))
#: Of each quarter hour how often a fold added to its rollups; '-infinity': how often they were rebuilt.
rollup_marks = Table(
    "rollup_marks",
    metadata,
    _required("quarter_start", _instant(), primary_key=True),
    _required("changes", BigInteger),
)
fold_positions = Table(
    "fold_positions",
    metadata,
    _required("intake_id", Integer, primary_key=True, autoincrement=False),
    _required("next_sequence", BigInteger),
)
watermarks = Table(
    "watermarks",
    metadata,
    _required("watermark_id", BigInteger, primary_key=True, autoincrement=False),
    _required("pinned_at", _instant(), server_default=text("clock_timestamp()")),
    _required("positions", JSONB),
    _required("catalog_revision", Integer),
    _required("program_version", Text),
    Column("complete_until", _instant()),
    _required("reason", Text),
    _required("previous_head", LargeBinary),
    _required("head", LargeBinary),
    CheckConstraint("watermark_id > 0", name="watermark_id"),
)

# ---- books ---------------------------------------------------------------------------------------------

catalog_revisions = Table(
    "catalog_revisions",
    metadata,
    _required("catalog_revision", Integer, primary_key=True, autoincrement=False),
    _required("applied_at", _instant()),
    _required("applied_by", Text),
    _required("reason", Text),
    _required("program_version", Text),
    _required("digest", LargeBinary),
    _required("previous_head", LargeBinary),
    _required("head", LargeBinary),
    CheckConstraint("catalog_revision > 0", name="catalog_revision"),
)
catalog_objects = Table(
    "catalog_objects",
    metadata,
    _required("kind", Text),
    _required("name", Text),
    _required("catalog_revision", Integer),
    Column("ended_at", _instant()),
    _required("file", Text),
    _required("line", Integer),
    _required("body", JSONB),
    _required("digest", LargeBinary),
    PrimaryKeyConstraint("kind", "name", "catalog_revision"),
)

# ---- bills of suppliers, and closed months ---------------------------------------------------------------

bills = Table(
    "bills",
    metadata,
    # numbered without gaps: the position of the intake counts them
    _required("bill_id", BigInteger, primary_key=True, autoincrement=False),
    _required("batch_id", BigInteger),
    _required("supplier", Text),
    _required("document", Text),
    _required("revision", Integer),
    _required("currency", Text),
    _required("posted_month", Date),
    _required("file", Text),
    _required("digest", LargeBinary),
    _required("added_at", _instant()),
    _required("added_by", Text),
    _required("reason", Text),
    UniqueConstraint("batch_id"),
    UniqueConstraint("supplier", "document", "revision"),
    CheckConstraint("revision > 0", name="revision"),
    CheckConstraint("extract(day FROM posted_month) = 1", name="posted_month"),
    CheckConstraint("length(digest) = 32", name="digest"),
    CheckConstraint(
        "length(trim(added_by)) > 0 AND (revision = 1 OR length(trim(reason)) > 0)", name="named"
    ),
)
bill_lines = Table(
    "bill_lines",
    metadata,
    _required("bill_id", BigInteger),
    _required("line", Text),
    _required("category", Text),
    _required("object_kind", Text),
    Column("object", Text),
    _required("amount", Numeric(38, 12)),
    _required("service_from", _instant()),
    _required("service_until", _instant()),
    Column("description", Text),
    Column("split_of", Text),
    PrimaryKeyConstraint("bill_id", "line"),
    CheckConstraint("category IN ('charge', 'credit', 'true_up')", name="category"),
    CheckConstraint("object_kind IN ('pool', 'on_demand', 'commitment', 'overhead')", name="object_kind"),
    CheckConstraint("amount BETWEEN -1e14 AND 1e14", name="amount"),
    CheckConstraint("service_until > service_from", name="span"),
)
period_closes = Table(
    "period_closes",
    metadata,
    _required("month", Date, primary_key=True),
    _required("watermark_id", BigInteger),
    _required("closed_at", _instant()),
    _required("closed_by", Text),
    _required("reason", Text),
    _required("previous_head", LargeBinary),
    _required("head", LargeBinary),
    CheckConstraint("extract(day FROM month) = 1", name="month"),
    CheckConstraint("length(trim(reason)) > 0 AND length(trim(closed_by)) > 0", name="named"),
)

# ---- alerts and what leaves by webhook -----------------------------------------------------------------

alerts = Table(
    "alerts",
    metadata,
    _required("rule", Text),
    _required("scope", Text),
    _required("sequence", Integer),
    _required("state", Text),
    _required("changed_at", _instant()),
    _required("period", Text),
    Column("watermark_id", BigInteger),
    _required("details", JSONB),
    PrimaryKeyConstraint("rule", "scope", "sequence"),
    CheckConstraint("sequence > 0", name="sequence"),
    # odd entries open, even ones resolve: a second open alert of one rule and scope cannot be written
    CheckConstraint("state = CASE sequence % 2 WHEN 1 THEN 'opened' ELSE 'resolved' END", name="state"),
)
outbox = Table(
    "outbox",
    metadata,
    _required("outbox_id", BigInteger, primary_key=True, server_default=Identity(always=True)),
    _required("created_at", _instant(), server_default=text("clock_timestamp()")),
    _required("rule", Text),
    _required("scope", Text),
    _required("sequence", Integer),
    _required("message", JSONB),
)
outbox_attempts = Table(
    "outbox_attempts",
    metadata,
    _required("outbox_id", BigInteger),
    _required("attempt", Integer),
    _required("attempted_at", _instant(), server_default=text("clock_timestamp()")),
    _required("outcome", Text),
    Column("status", Integer),
    Column("retry_at", _instant()),
    _required("detail", Text),
    PrimaryKeyConstraint("outbox_id", "attempt"),
    CheckConstraint("outcome IN ('delivered', 'retry', 'given_up')", name="outcome"),
)
