"""`metering period`: months are closed, once and in order; a closed month takes no postings."""

from __future__ import annotations

from typing import Annotated

import typer

from metering.cli.listing import FormatOption, show

app = typer.Typer(
    help="Closed months: what is learned of one later is posted to the first open month.",
    no_args_is_help=True,
    add_completion=False,
)


@app.command()
def close(
    month: Annotated[str, typer.Argument(help="The month, 2026-10.")],
    reason: Annotated[str, typer.Option("--reason", help="Why now; kept for good.")],
) -> None:
    """Pin what is known and close a month at it. It is not opened again."""
    import re

    from metering.errors import BadInput
    from metering.periods import parse_period
    from metering.settings import settings
    from metering.store.positions import checked_reason, operator_name
    from workers import periods
    from workers.loop import database_errors

    if not re.fullmatch(r"\d{4}-\d{2}", month):
        raise BadInput(f"'{month}' is not a month; give 2026-10")
    with database_errors():
        closed = periods.close(
            settings(), parse_period(month), by=operator_name(), reason=checked_reason(reason)
        )
    typer.echo(f"{month} is closed at watermark {closed.watermark_id}", err=True)
    typer.echo(closed.watermark_id)


@app.command("list")
def list_closes(form: str = FormatOption) -> None:
    """List the closed months, the newest first."""
    from metering.settings import settings
    from metering.store.periods import closes
    from metering.store.postgres import reading
    from workers.loop import database_errors

    with database_errors(), reading(settings()) as connection:
        found = closes(connection)
    rows = [{**vars(one), "month": f"{one.month:%Y-%m}"} for one in reversed(found)]
    show(rows, form, empty="no month was closed yet; `metering period close MONTH --reason ...` closes one")
