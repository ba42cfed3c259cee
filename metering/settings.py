"""Settings: everything that has a limit, with its name and unit, read once from the environment."""

import os
from decimal import Decimal
from functools import lru_cache
from pathlib import Path

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from metering.errors import BadInput

#: The sandbox leaves its addresses here; used where the environment does not say otherwise.
SANDBOX_ENV = Path(os.environ.get("METERING_SANDBOX_DIR") or "var/sandbox") / "env"


class Settings(BaseSettings):
    """Read from environment variables `METERING_<NAME>`; unknown ones are ignored."""

    model_config = SettingsConfigDict(
        env_prefix="METERING_", env_file=SANDBOX_ENV, extra="ignore", frozen=True
    )

    database_url: SecretStr = Field(
        SecretStr("postgresql://127.0.0.1:5432/metering"), description="Postgres, as a libpq URL"
    )
    kafka_bootstrap: str = Field("127.0.0.1:9092", description="Kafka brokers, host:port, comma-separated")
    kafka_topic: str = Field("inference-events", description="topic that carries the events")
    kafka_partitions: int = Field(
        4, ge=1, description="partitions of the topic, when `metering init` makes it"
    )
    kafka_replication_factor: int = Field(
        1, ge=1, description="replicas of the topic, when `metering init` makes it"
    )
    consumer_group: str = Field(
        "metering-ingest", description="group that deals out the partitions to the ingest workers"
    )
    role_prefix: str = Field(
        "metering_", pattern=r"^[a-z][a-z0-9_]{0,30}$", description="prefix of the database roles"
    )
    reporting_currency: str = Field("USD", pattern=r"^[A-Z]{3}$", description="currency of the reports")

    allowed_lateness_seconds: int = Field(
        600, ge=0, description="how late an event may arrive before a period counts as complete"
    )
    clock_skew_seconds: int = Field(
        5, ge=0, description="largest difference between our clock and the broker's"
    )
    event_ahead_seconds_max: int = Field(
        300, ge=0, description="how far an event's time may lie after its append time"
    )
    id_ahead_seconds_max: int = Field(
        86_400, ge=0, description="how far the time inside an id may lie after its append time"
    )
    ledger_back_days: int = Field(
        35, ge=0, description="days before today that a new ledger takes events for"
    )
    partition_ahead_days: int = Field(14, ge=1, description="days ahead for which ledger partitions are made")
    partition_ahead_days_min: int = Field(
        7, ge=0, description="days ahead below which it is an alarm that nobody makes partitions"
    )
    tend_interval_seconds: float = Field(
        3600.0, gt=0, description="how often partitions are made, retired and archived"
    )
    reject_retention_days: int = Field(
        90, ge=1, description="days that rejects and conflicts are kept with their bytes"
    )
    archive_address: str | None = Field(
        None,
        description="folder or fsspec address for archived days of the ledger; none: nothing is archived",
    )
    archive_after_days: int = Field(
        90, ge=1, description="full days that a day of the ledger stays in Postgres before it is archived"
    )

    record_bytes_max: int = Field(4 * 1024 * 1024, ge=1, description="largest record, decompressed")
    record_events_max: int = Field(10_000, ge=1, description="most events in a record")
    batch_records_max: int = Field(20_000, ge=1, description="most records in one transaction")
    batch_bytes_target: int = Field(
        12 * 1024 * 1024, ge=1, description="bytes of records after which a transaction is written"
    )
    fetch_bytes_max: int = Field(
        8 * 1024 * 1024, ge=1, description="most bytes that one fetch asks the broker for"
    )
    reject_bytes_max: int = Field(64 * 1024, ge=0, description="most bytes kept of a reject")
    reject_ratio_max: float = Field(
        0.5, gt=0, le=1, description="share of rejects at which a source is stopped"
    )
    reject_window_events_min: int = Field(
        5_000,
        ge=1,
        description="events after which a source is judged; as many rejects and nothing else stop the whole topic",
    )
    source_windows_max: int = Field(
        10_000, ge=1, description="sources whose rejects a worker counts at a time"
    )
    series_cache_entries_max: int = Field(500_000, ge=1, description="series that a worker remembers")
    series_new_per_batch_max: int = Field(
        5_000, ge=1, description="new series in one batch before their source is stopped"
    )
    series_new_ratio_max: float = Field(
        0.9, gt=0, le=1, description="share of events with a new series at which their source is stopped"
    )

    session_timeout_ms: int = Field(45_000, ge=6_000, description="Kafka session timeout of a worker")
    idle_in_transaction_session_timeout_ms: int = Field(
        30_000, ge=1, description="must be below the Kafka session timeout"
    )
    statement_timeout_ms: int = Field(60_000, ge=1, description="longest statement of a worker")
    lock_timeout_ms: int = Field(1_000, ge=1, description="longest wait for a row or table lock")
    idle_refresh_seconds: float = Field(
        5.0, gt=0, description="how often an idle partition confirms that it has been read to its end"
    )
    fold_interval_seconds: float = Field(
        0.2, gt=0, description="how often the fold looks for new ledger rows"
    )
    fold_batches_max: int = Field(50, ge=1, description="most batches folded in one transaction")
    pin_interval_seconds: int = Field(900, ge=1, description="how often the fold pins a watermark")
    settle_interval_seconds: float = Field(
        1.0, gt=0, description="how often settle looks for voids whose events are there"
    )
    settle_voids_max: int = Field(2_000, ge=1, description="most voids settled in one transaction")
    unmatched_void_seconds: int = Field(
        86_400, ge=0, description="how long a void may wait for its event before that is a finding"
    )
    findings_interval_seconds: float = Field(60.0, gt=0, description="how often settle looks for findings")
    findings_per_day_max: int = Field(
        10_000, ge=1, description="most requests of one day that findings name; the others are counted"
    )
    usage_export_bytes_max: int = Field(
        256 * 1024 * 1024, ge=1, description="largest usage export of a supplier that `reconcile` reads"
    )
    run_rate_days: int = Field(
        28, ge=1, le=366, description="days before the cut that a projection of spend goes on from"
    )
    expiring_days: int = Field(
        30, ge=1, le=366, description="days within which what expires is named in `report balances`"
    )
    adjustments_max: int = Field(10_000, ge=1, description="most adjustments in one file")
    bill_lines_max: int = Field(100_000, ge=1, description="most lines in one file of suppliers' bills")
    bill_months_before_max: int = Field(
        1, ge=0, description="months before the first one with usage to which a bill may be posted"
    )
    evaluate_interval_seconds: float = Field(
        60.0, gt=0, description="how often the alert rules are evaluated"
    )
    chain_heads_daily: bool = Field(
        False, description="post the heads of all chains to Slack once a day: a copy outside of the database"
    )
    deliver_interval_seconds: float = Field(1.0, gt=0, description="least time between two Slack messages")
    margin_resolve_band_ratio: Decimal = Field(
        Decimal("0.01"),
        ge=0,
        lt=1,
        description="how far above its floor, as a share of revenue, a margin resolves its alert",
    )
    full_probability_max: Decimal = Field(
        Decimal("0.05"), gt=0, lt=1, description="probability above which an hour of a pool counts as full"
    )
    runway_days_max: int = Field(365, ge=1, description="days ahead in which a full pool is looked for")
    plan_sizes_max: int = Field(40, ge=8, description="sizes of a pool of which a cost curve is made, about")
    alerts_per_rule_max: int = Field(
        10, ge=1, description="messages of one rule and evaluation before they become one digest"
    )
    retry_backoff_seconds_max: float = Field(
        30.0, gt=0, description="longest pause between two attempts to reach a server"
    )

    worker_restarts_max: int = Field(
        5, ge=0, description="restarts of one worker within the span before `metering work all` stops all"
    )
    worker_restart_span_seconds: int = Field(
        300, ge=1, description="span in which the restarts of a worker are counted"
    )
    worker_stop_seconds_max: float = Field(
        30.0, gt=0, description="how long the workers may finish their work in hand before they are killed"
    )
    probe_stall_seconds: int = Field(
        120, ge=1, description="how long a partition or the fold may stand still and count as healthy"
    )

    slack_webhook_url: SecretStr | None = Field(None, description="Slack incoming webhook (a secret)")
    slack_timeout_seconds: float = Field(10.0, gt=0, description="longest wait for Slack")
    slack_retry_seconds_max: int = Field(
        86_400, ge=1, description="longest pause between two attempts to deliver a message"
    )
    slack_attempts_max: int = Field(20, ge=1, description="attempts before a message is given up, visibly")
    log_level: str = Field(
        "info", pattern="^(debug|info|warning|error)$", description="least level that is logged"
    )


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process, read once. Raises BadInput that names the variable and what it must be."""
    return read_settings()


def read_settings(**overrides: object) -> Settings:
    """Read the environment (and `overrides`, for tests) into Settings."""
    try:
        read = Settings(**overrides)  # type: ignore[arg-type]  # pydantic validates them
    except ValidationError as error:
        first = error.errors()[0]
        name = "METERING_" + "_".join(str(part) for part in first["loc"]).upper()
        raise BadInput(
            f"{name}: {first['msg']}; run `metering settings` for what each setting means"
        ) from None
    if read.idle_in_transaction_session_timeout_ms >= read.session_timeout_ms:
        raise BadInput(
            "METERING_IDLE_IN_TRANSACTION_SESSION_TIMEOUT_MS must be below METERING_SESSION_TIMEOUT_MS: "
            "a stalled worker has to lose its lock before its partitions are dealt out again"
        )
    return read
