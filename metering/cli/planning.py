"""`metering plan capacity` and `metering what-if`: how much to buy and by when; what would have been."""

from __future__ import annotations

import sys
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metering.cli.reports import AsOf, Format, Output, PeriodOption, check_format, read_period, write

if TYPE_CHECKING:
    from metering.delivery.report import Report

app = typer.Typer(
    help="How much capacity to buy, what it saves and risks, and by when.",
    no_args_is_help=True,
    add_completion=False,
)


@app.callback()
def _plan() -> None:
    """How much capacity to buy, what it saves and risks, and by when."""


@app.command()
def capacity(
    period: PeriodOption = None,
    pool: Annotated[
        str | None, typer.Option("--pool", help="Size this pool alone.", show_default=False)
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            help="What a row is about: pool, or size (the cost curve). [default: pool]",
            show_default=False,
        ),
    ] = None,
    unit_price: Annotated[
        str | None,
        typer.Option(
            "--unit-price",
            metavar="AMOUNT",
            help="Price of one more unit a month, in the pool's currency. [default: as those held]",
            show_default=False,
        ),
    ] = None,
    alpha: Annotated[
        str | None,
        typer.Option(
            "--alpha",
            metavar="RATIO",
            help="Probability above which an hour counts as full. [default: METERING_FULL_PROBABILITY_MAX]",
            show_default=False,
        ),
    ] = None,
    as_of: AsOf = None,
    form: Format = "table",
    output: Output = None,
) -> None:
    """Break-even, cost at every size replayed on recorded minutes, the best size, and when a pool will be full."""
    from metering.settings import settings
    from metering.store.postgres import reading
    from workers.loop import database_errors
    from workers.planning import capacity_plan

    check_format(form, output)
    span = read_period(period)
    price = None if unit_price is None else _amount(unit_price, "--unit-price", Decimal(10) ** 12)
    share = None if alpha is None else _amount(alpha, "--alpha", Decimal(1))
    with database_errors(), reading(settings()) as connection:
        made = capacity_plan(
            connection, settings(), span, as_of, pool=pool, unit_price=price, alpha=share, say=_progress
        )
    write(made.by(by), form, output)


def what_if(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A scenario, as YAML: docs/planning.md.")],
    period: PeriodOption = None,
    by: Annotated[
        str | None,
        typer.Option(
            "--by",
            help="company, pool, plan, segment or customer. [default: a table shows the first two and the last, a "
            "file has pools]",
            show_default=False,
        ),
    ] = None,
    as_of: AsOf = None,
    form: Format = "table",
    output: Output = None,
) -> None:
    """Recorded usage again, with supply and demand changed as FILE says: before and after, side by side."""
    from metering.settings import settings
    from metering.store.postgres import reading
    from workers.loop import database_errors
    from workers.scenarios import what_if as run

    check_format(form, output)
    span = read_period(period)
    with database_errors(), reading(settings()) as connection:
        compared = run(connection, settings(), file, span, as_of, say=_progress)
    reports: list[Report] = []
    if by is None and form == "table" and output is None:
        reports = [
            *(compared.by(part, concluding=False) for part in ("company", "pool")),
            compared.by("customer"),
        ]
    else:
        reports = [compared.by(by or "pool")]
    for report in reports:
        write(report, form, output)


def mount(root: typer.Typer) -> None:
    """Mount `plan` and `what-if` on the root command."""
    root.add_typer(app, name="plan")
    root.command("what-if")(what_if)


def _progress(message: str) -> None:
    """Long work says on stderr how far it is, where somebody looks at it."""
    if sys.stderr.isatty():
        typer.echo(f"{message} ...", err=True)


def _amount(text: str, option: str, most: Decimal) -> Decimal:
    from metering.errors import BadInput

    try:
        amount = Decimal(text)
    except InvalidOperation:
        amount = Decimal(-1)
    if not amount.is_finite() or not 0 < amount < most or -int(amount.as_tuple().exponent) > 6:
        raise BadInput(f"{option} '{text}': must be above 0, below {most:f}, with at most 6 decimals")
    return amount
