"""`metering report closure | obligations` and `metering reconcile`: our cost against what suppliers say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metering.cli import reports

if TYPE_CHECKING:
    from decimal import Decimal


Supplier = Annotated[
    str | None,
    typer.Option("--supplier", help="Of this supplier alone. [default: all]", show_default=False),
]


def mount(root: typer.Typer) -> None:
    """Mount `reconcile` on the root command; the others stand beside the reports."""
    root.command()(reconcile)


@reports.app.command()
def closure(
    period: reports.PeriodOption = None,
    supplier: Supplier = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            help="One part: term, document, capture or missing. [default: a table shows all, a file has the terms]",
            show_default=False,
        ),
    ] = None,
    as_of: reports.AsOf = None,
    form: reports.Format = "table",
    output: reports.Output = None,
) -> None:
    """Every part of what suppliers cost, up to their bills; what is not billed yet is an estimate and says so."""
    from metering.settings import settings
    from metering.store.postgres import reading
    from workers.closing import closure_report
    from workers.loop import database_errors

    reports.check_format(form, output)
    span = reports.read_period(period)
    with database_errors(), reading(settings()) as connection:
        made = closure_report(connection, settings(), span, as_of, supplier)
    together = by is None and form == "table" and output is None
    for report in made.all() if together else [made.by(by)]:
        reports.write(report, form, output)


@reports.app.command()
def obligations(
    period: reports.PeriodOption = None,
    supplier: Supplier = None,
    as_of: reports.AsOf = None,
    form: reports.Format = "table",
    output: reports.Output = None,
) -> None:
    """What is committed to suppliers at the end of the period, or its cut: drawn, projected, short, to be paid."""
    from metering.settings import settings
    from metering.store.postgres import reading
    from workers.closing import obligations_report
    from workers.loop import database_errors

    reports.check_format(form, output)
    span = reports.read_period(period)
    with database_errors(), reading(settings()) as connection:
        made = obligations_report(connection, settings(), span, as_of, supplier)
    reports.write(made, form, output)


def reconcile(
    file: Annotated[Path, typer.Argument(help="A supplier's usage export, CSV: docs/closure.md.")],
    supplier: Annotated[str, typer.Option("--supplier", help="Whose file it is: the provider of events.")],
    zone: Annotated[
        str | None,
        typer.Option(
            "--zone",
            help="Of its local times and days, an IANA name. [default: days are UTC, local times refused]",
            show_default=False,
        ),
    ] = None,
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns",
            metavar="OURS=THEIRS,...",
            help="Its names of day (or hour), model, unit, quantity, amount, currency; or of a column per unit.",
            show_default=False,
        ),
    ] = None,
    units: Annotated[
        str | None,
        typer.Option(
            "--units", metavar="THEIRS=OURS,...", help="Its names of our units.", show_default=False
        ),
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            "--models", metavar="THEIRS=OURS,...", help="Its names of our models.", show_default=False
        ),
    ] = None,
    ran_on: Annotated[
        str | None,
        typer.Option(
            "--ran-on",
            help="What of our usage it is about: any of pool, overflow, on_demand. [default: all]",
            show_default=False,
        ),
    ] = None,
    per: Annotated[int, typer.Option("--per", metavar="N", min=1, help="Its quantities are in Ns.")] = 1,
    tolerance: Annotated[
        str, typer.Option("--tolerance", metavar="RATIO", help="Share of theirs that may differ.")
    ] = "0",
    as_of: reports.AsOf = None,
    form: reports.Format = "table",
    output: reports.Output = None,
) -> None:
    """Compare a supplier's usage export with the ledger: by time, model and unit, with likely reasons.

    Exit code 1 where something does not match beyond the tolerance, or nothing could be compared.
    """
    from metering.bills.usage_export import Reading, pairs, read_usage_export
    from metering.errors import BadInput
    from metering.settings import settings
    from metering.store.postgres import reading
    from workers.loop import database_errors
    from workers.reconcile import RAN_ON, reconcile_usage

    reports.check_format(form, output)
    ran = tuple(word.strip() for word in ran_on.split(",")) if ran_on is not None else RAN_ON
    if odd := sorted(set(ran) - set(RAN_ON)):
        raise BadInput(f"--ran-on '{odd[0]}' is not where usage runs; give any of {', '.join(RAN_ON)}")
    most = settings().usage_export_bytes_max
    try:
        with file.open("rb") as opened:
            content = opened.read(most + 1)
    except OSError as error:
        raise BadInput(f"cannot read {file}: {error.strerror}") from None
    if len(content) > most:
        raise BadInput(
            f"{file}: is larger than {most:,} bytes (METERING_USAGE_EXPORT_BYTES_MAX); give it month by month"
        )
    read_as = Reading(
        columns=pairs("--columns", columns),
        units=pairs("--units", units),
        models=pairs("--models", models),
        per=per,
        zone=zone,
        currency=settings().reporting_currency,
    )
    export = read_usage_export(str(file), content, read_as)
    with database_errors(), reading(settings()) as connection:
        done = reconcile_usage(connection, settings(), supplier, export, _ratio(tolerance), as_of, ran)
    reports.write(done.report, form, output)
    if not done.matched:
        raise typer.Exit(1)


def _ratio(text: str) -> Decimal:
    from decimal import Decimal, InvalidOperation

    from metering.errors import BadInput

    try:
        ratio = Decimal(text)
    except InvalidOperation:
        ratio = Decimal(-1)
    if not (ratio.is_finite() and 0 <= ratio < 1):
        raise BadInput(
            f"--tolerance '{text}' is not a ratio from 0 to below 1; 0.001 is a tenth of a percent"
        )
    return ratio
