"""`metering explain`: a cell of a report, down to its parts."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from metering.cli.reports import AsOf, PeriodOption, read_period


def explain(
    report: Annotated[
        str,
        typer.Argument(metavar="REPORT", help="margin, contracts, balances, limits, capacity or closure."),
    ],
    cell: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CELL]...",
            help="What the cell is about and its column: customer=acme product=large charge. `-` is nobody, nothing.",
            show_default=False,
        ),
    ] = None,
    period: PeriodOption = None,
    day: Annotated[
        str | None,
        typer.Option("--day", metavar="DAY", help="The same as --period with a day.", show_default=False),
    ] = None,
    as_of: AsOf = None,
    batches: Annotated[
        bool,
        typer.Option(
            "--batches",
            help="Also the batches that the usage came from: topic, partition, offsets. Reads the ledger.",
        ),
    ] = False,
    every_part: Annotated[
        bool,
        typer.Option("--all", help="Every part in text, however many: each quarter hour, each customer."),
    ] = False,
    depth: Annotated[
        int | None,
        typer.Option("--depth", min=0, help="Levels of parts in text. Default: all.", show_default=False),
    ] = None,
    form: Annotated[str, typer.Option("--format", metavar="text|json", help="What to write.")] = "text",
) -> None:
    """Take one number of a report apart, down to quantities, prices, shares, fees and bills that sum to it.

    metering explain margin customer=acme-robotics cost --period 2026-11
    """
    import shutil

    from metering.delivery import trees
    from metering.errors import BadInput
    from metering.settings import settings
    from metering.store.postgres import reading
    from workers.explaining import explained
    from workers.loop import database_errors

    if form not in ("text", "json"):
        raise BadInput(f"--format '{form}': a tree comes as text or json")
    if period is not None and day is not None:
        raise BadInput("--period and --day: give one of them")
    span = read_period(day if day is not None else period)
    words = cell or []
    with database_errors(), reading(settings()) as connection:
        found = explained(connection, settings(), report, words, span, as_of, batches=batches)
    if form == "json":
        text = trees.to_json(found.tree, found.provenance, report, " ".join(words), found.batches)
        typer.echo(text, nl=False)
        return
    width = shutil.get_terminal_size((100, 24)).columns if sys.stdout.isatty() else 100
    text = trees.to_text(
        found.tree,
        found.provenance,
        found.title,
        width,
        found.batches,
        depth=depth,
        every_part=every_part,
    )
    typer.echo(text, nl=False)


def mount(root: typer.Typer) -> None:
    """Mount `explain` on the root command."""
    root.command("explain")(explain)
