"""Commands that run the workers in the foreground, one or all; SIGTERM finishes the work in hand and leaves."""

import typer

app = typer.Typer(
    help="Run a worker, or all. Any number of `ingest`; one of each other.", no_args_is_help=True
)

_UNTIL_IDLE = typer.Option(False, "--until-idle", help="Stop when there is nothing left to do.")


@app.command("all")
def run_all(
    ingest: int = typer.Option(2, "--ingest", metavar="N", help="How many workers read the topic."),
) -> None:
    """Run every worker as a process of its own, and start again what ends, within a limit.

    SIGTERM or SIGINT stops all when each has finished its work in hand; a second one kills what is left. A
    worker that ends more than METERING_WORKER_RESTARTS_MAX times within METERING_WORKER_RESTART_SPAN_SECONDS
    stops all with exit code 4. Every line that a worker logs comes after its name.
    """
    from metering.settings import settings
    from workers import supervise
    from workers.loop import configure_logging

    configure_logging(settings())
    supervise.run(settings(), ingest)


@app.command("ingest")
def ingest(until_idle: bool = _UNTIL_IDLE) -> None:
    """Read events from Kafka into the ledger, exactly once."""
    from metering.settings import settings
    from workers import ingest as worker
    from workers.loop import configure_logging

    configure_logging(settings())
    totals = worker.work(settings(), until_idle=until_idle)
    counts = ", ".join(
        f"{totals[name]:,} {name}" for name in ("accepted", "duplicate", "conflict", "rejected")
    )
    typer.echo(f"{totals['records']:,} records: {counts}", err=True)


@app.command("fold")
def fold(until_idle: bool = _UNTIL_IDLE) -> None:
    """Fold new ledger rows into the rollups, several times a second."""
    from metering.settings import settings
    from workers import fold as worker
    from workers.loop import configure_logging

    configure_logging(settings())
    worker.run(settings=settings(), until_idle=until_idle)


@app.command("settle")
def settle(until_idle: bool = _UNTIL_IDLE) -> None:
    """Join voids and the events they name, append what takes those back, and look for findings."""
    from metering.settings import settings
    from workers import settle as worker
    from workers.loop import configure_logging

    configure_logging(settings())
    worker.run(settings=settings(), until_idle=until_idle)


@app.command("evaluate")
def evaluate(until_idle: bool = _UNTIL_IDLE) -> None:
    """Open and resolve alerts on the open month, every minute."""
    from metering.settings import settings
    from workers import evaluate as worker
    from workers.loop import configure_logging

    configure_logging(settings())
    worker.run(settings=settings(), until_idle=until_idle)


@app.command("deliver")
def deliver(until_idle: bool = _UNTIL_IDLE) -> None:
    """Post what is in the outbox to Slack, once a second at most."""
    from metering.settings import settings
    from workers import deliver as worker
    from workers.loop import configure_logging

    configure_logging(settings())
    worker.run(settings=settings(), until_idle=until_idle)


@app.command("tend")
def tend(until_idle: bool = _UNTIL_IDLE) -> None:
    """Make partitions ahead, retire rejects and archive old days, every hour. Two at once do no harm."""
    from metering.settings import settings
    from workers import tend as worker
    from workers.loop import configure_logging

    configure_logging(settings())
    worker.run(settings(), until_idle=until_idle)
