"""`metering report contracts | balances`: what customers agreed to, how far it is fulfilled, what they have left."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from metering.cli import reports

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from metering.delivery.report import Report

Customer = Annotated[
    str | None,
    typer.Option("--customer", help="Of this customer alone. [default: all]", show_default=False),
]


def mount(app: typer.Typer) -> None:
    """Mount both beside the reports."""
    app.command()(contracts)
    app.command()(balances)


def contracts(
    period: reports.PeriodOption = None,
    customer: Customer = None,
    as_of: reports.AsOf = None,
    form: reports.Format = "table",
    output: reports.Output = None,
) -> None:
    """What customers committed to and are entitled to: drawn, overage, shortfall so far and projected, pace."""
    from workers.standing import contracts_report

    _run(contracts_report, period, customer, as_of, form, output)


def balances(
    period: reports.PeriodOption = None,
    customer: Customer = None,
    as_of: reports.AsOf = None,
    form: reports.Format = "table",
    output: reports.Output = None,
) -> None:
    """What customers have left of commitments and credits, what is not billed yet, and what will expire unused."""
    from workers.standing import balances_report

    _run(balances_report, period, customer, as_of, form, output)


def _run(
    make: Callable[..., Report],
    period: str | None,
    customer: str | None,
    as_of: int | None,
    form: str,
    output: Path | None,
) -> None:
    from metering.settings import settings
    from metering.store.postgres import reading
    from workers.loop import database_errors

    reports.check_format(form, output)
    span = reports.read_period(period)
    with database_errors(), reading(settings()) as connection:
        made = make(connection, settings(), span, as_of, customer)
    reports.write(made, form, output)
