"""`metering probe`: answers for those who watch over processes, by exit code and in one line."""

import typer

app = typer.Typer(
    help="Is all well? Could a worker start? Exit code 0 and one line, or the reason and another code.",
    no_args_is_help=True,
)


@app.command("health")
def health() -> None:
    """Well is: the database answers, its schema fits, every partition moves or is read to its end, the fold runs.

    Judges all workers together, from the database. Exit code 3 when something stands still longer than
    METERING_PROBE_STALL_SECONDS or does not answer, 4 when a person has to act.
    """
    from metering.settings import settings
    from workers import probe

    typer.echo(probe.health(settings()))


@app.command("ready")
def ready() -> None:
    """Ready is: database, schema, today's partition and the topic are there for a worker that starts now.

    Exit code 3 when a server does not answer, 4 when a person has to act (`metering init`, mostly).
    """
    from metering.settings import settings
    from workers import probe

    typer.echo(probe.ready(settings()))
