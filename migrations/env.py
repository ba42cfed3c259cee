"""How migrations run: as the owner role, one at a time, never queueing behind a report for long."""

from typing import Any

from alembic import context

from metering.settings import settings
from metering.store import postgres, roles
from metering.store.tables import PARTITIONED, metadata

#: Two migrations at once wait for each other here.
MIGRATION_LOCK = 0x6D657465


def _include_object(item: Any, name: str | None, kind: str, reflected: bool, compare_to: Any) -> bool:
    """Partitions are made by `metering partitions`, not by migrations."""
    table = name if kind == "table" else getattr(getattr(item, "table", None), "name", None)
    return not (reflected and table and any(table.startswith(parent + "_") for parent in PARTITIONED))


def run() -> None:
    """Migrate the database of the settings, or the connection handed over by `metering.store.schema`."""
    configured = context.config.attributes.get("settings") or settings()
    with postgres.connect(configured, role=None) as connection:
        # for as long as a statement may last: the one before may have much to do
        connection.exec_driver_sql("SET lock_timeout = 0")
        connection.exec_driver_sql(f"SELECT pg_advisory_lock({MIGRATION_LOCK})")
        roles.ensure_roles(connection, configured.role_prefix)
        connection.exec_driver_sql(f"SET ROLE {configured.role_prefix}owner")
        connection.exec_driver_sql(f"SET lock_timeout = {configured.lock_timeout_ms}")
        connection.commit()
        context.configure(
            connection=connection,
            target_metadata=metadata,
            include_object=_include_object,
            compare_type=True,
            transaction_per_migration=True,
            role_prefix=configured.role_prefix,
        )
        with context.begin_transaction():
            context.run_migrations()
        connection.commit()


run()
