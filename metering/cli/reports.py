"""`metering report` and `metering export`: margin, capacity, unrated usage, and how things stand now."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from metering.delivery.report import Report
    from metering.periods import Period
    from metering.settings import Settings

app = typer.Typer(
    help="What each customer used, cost and earned; how full capacity was; how things stand.",
    no_args_is_help=True,
    add_completion=False,
)

PeriodOption = Annotated[
    str | None,
    typer.Option(
        "--period",
        help="A month (2026-11), a day (2026-11-21) or FROM..UNTIL, UTC. [default: the current month]",
        show_default=False,
    ),
]
AsOf = Annotated[
    int | None,
    typer.Option(
        "--as-of",
        metavar="WATERMARK",
        help="What was known at a watermark. [default: live]",
        show_default=False,
    ),
]
Format = Annotated[str, typer.Option("--format", metavar="table|csv|json|parquet", help="What to write.")]
Output = Annotated[
    Path | None, typer.Option("--output", help="Write to this file instead of stdout.", show_default=False)
]
FORMATS = ("table", "csv", "json", "parquet")


def _by(allowed: str, default: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        "--by", help=f"What a row is about: {allowed}. [default: {default}]", show_default=False
    )
    return option


@app.command()
def margin(
    period: PeriodOption = None,
    as_of: AsOf = None,
    by: Annotated[
        str | None,
        _by(
            "any of day, line, customer, kind, segment, contract, plan, product, tier_sold, provider, model_served, "
            "pool, project; with "
            "posted also, what was posted to a month, in place of what was served in it",
            "customer",
        ),
    ] = None,
    form: Format = "table",
    output: Output = None,
) -> None:
    """Revenue, cost and margin; idle capacity is a line of its own, and who carries it a column."""
    from workers.posted import margin_by

    _run(period, as_of, form, output, lambda c, s, p, w: margin_by(c, s, p, w, by))


@app.command()
def plans(
    period: PeriodOption = None, as_of: AsOf = None, form: Format = "table", output: Output = None
) -> None:
    """The customers of every plan in tenths by what they cost: margin of each, and how many lose money."""
    from workers import reports

    _run(
        period,
        as_of,
        form,
        output,
        lambda c, s, p, w: reports.margin_report(c, s, p, w, by=("plan",)).plans(),
    )


@app.command()
def capacity(
    period: PeriodOption = None,
    as_of: AsOf = None,
    by: Annotated[
        str | None,
        _by("pool; one window: month, day, hour, 15m, 5m, minute; hour_of_week; model; customer", "pool"),
    ] = None,
    pool: Annotated[
        str | None,
        typer.Option(
            "--pool",
            metavar="NAME",
            help="Show this pool or carve-out alone; shares stay those of the whole.",
            show_default=False,
        ),
    ] = None,
    picture: Annotated[
        bool | None,
        typer.Option(
            "--picture/--no-picture",
            help="A heat map by hour of week below the table. [default: for one pool, on a terminal]",
            show_default=False,
        ),
    ] = None,
    form: Format = "table",
    output: Output = None,
) -> None:
    """How much of what was contracted was used, minute by minute; what spilled and what stood idle."""
    from metering.errors import BadInput
    from workers import reports

    if picture and form != "table":
        raise BadInput(
            "--picture is drawn below a table; the same numbers as data: --by hour_of_week --format csv"
        )
    drawn = picture
    if picture is None and not (form == "table" and output is None and sys.stdout.isatty()):
        drawn = False
    _run(
        period,
        as_of,
        form,
        output,
        lambda c, s, p, w: reports.capacity_report(c, s, p, w, by=by, pool=pool).by(by, picture=drawn),
        bars=("served_of_available_ratio",),
    )


@app.command()
def bridge(
    old: Annotated[
        str, typer.Option("--from", metavar="PERIOD", help="The period to start from, as for --period.")
    ],
    new: Annotated[str, typer.Option("--to", metavar="PERIOD", help="The period to arrive at.")],
    as_of: AsOf = None,
    by: Annotated[str | None, _by("term; customer, for the terms of each", "term")] = None,
    segment: Annotated[
        str | None,
        typer.Option("--segment", metavar="NAME", help="Of one segment's customers.", show_default=False),
    ] = None,
    customer: Annotated[
        str | None,
        typer.Option("--customer", metavar="NAME", help="Of one customer.", show_default=False),
    ] = None,
    basis: Annotated[
        str,
        typer.Option(
            "--basis",
            metavar="usage|loaded",
            help="Cost of usage alone, or with the idle that customers carry.",
        ),
    ] = "usage",
    form: Format = "table",
    output: Output = None,
) -> None:
    """What moved the margin between two periods: volume, mix, price, discounts, fees, supplier price, utilization."""
    from workers.bridging import bridge_report

    start = read_period(old)
    _run(
        new,
        as_of,
        form,
        output,
        lambda c, s, p, w: bridge_report(
            c, s, start, p, w, by=by, segment=segment, customer=customer, basis=basis
        ),
    )


@app.command()
def quotas(
    period: PeriodOption = None,
    as_of: AsOf = None,
    by: Annotated[
        str | None,
        _by("quota; one window: month, day, hour, 15m, 5m, minute; hour_of_week", "quota"),
    ] = None,
    form: Format = "table",
    output: Output = None,
) -> None:
    """How full the rate limits of what runs on demand were, minute by minute."""
    from workers.quota_report import quota_report

    _run(period, as_of, form, output, lambda c, s, p, w: quota_report(c, s, p, w, by))


@app.command()
def limits(
    period: PeriodOption = None,
    as_of: AsOf = None,
    by: Annotated[str | None, _by("limit, plan, customer, holder or window", "limit")] = None,
    pool: Annotated[
        str | None,
        typer.Option(
            "--pool",
            metavar="NAME",
            help="Show what this pool would burn if every holder used its limit, against what it has.",
            show_default=False,
        ),
    ] = None,
    form: Format = "table",
    output: Output = None,
) -> None:
    """How much of their limits holders used, where limits bind and whom they turn away; exposure of a pool."""
    from metering.errors import BadInput
    from workers import limit_reports

    if pool is None:
        _run(
            period, as_of, form, output, lambda c, s, p, w: limit_reports.limits_report(c, s, p, w, by=by),
            bars=("max_ratio",),
        )  # fmt: skip
        return
    if by is not None:
        raise BadInput("--pool shows the exposure of a pool, limit by limit; leave --by out")
    _run(
        period, as_of, form, output, lambda c, s, p, w: limit_reports.exposure_report(c, s, p, w, pool),
        bars=("exposure_ratio", "peak_ratio"),
    )  # fmt: skip


@app.command()
def unrated(
    period: PeriodOption = None,
    as_of: AsOf = None,
    by: Annotated[
        str | None,
        _by(
            "any of day, side, reason, customer, product, tier_sold, provider, model_served, tier_served, "
            "region, pool, ran_on, context_breakpoint",
            "side,reason,customer,product,model_served,pool",
        ),
    ] = None,
    form: Format = "table",
    output: Output = None,
) -> None:
    """Usage that no price, cost, contract or capacity in force could be found for."""
    from workers import reports

    _run(
        period,
        as_of,
        form,
        output,
        lambda c, s, p, w: reports.margin_report(c, s, p, w, by=()).unrated_by(by),
    )


@app.command()
def now(
    form: Annotated[str, typer.Option("--format", metavar="table|json", help="What to write.")] = "table",
) -> None:
    """The page for the person on call: what is current, what holds it back, what is full, rejected, open."""
    import logging

    from metering.delivery import now_page
    from metering.errors import BadInput
    from metering.settings import settings
    from workers.now import now_report

    if form not in ("table", "json"):
        raise BadInput(f"--format '{form}': this page comes as table or json")
    # the page says itself when Kafka cannot be reached
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    page = now_report(settings())
    if form == "json":
        typer.echo(now_page.to_json(page), nl=False)
    else:
        now_page.show(page, sys.stdout)


def mount(root: typer.Typer) -> None:
    """Mount `report` and `export` on the root command."""
    root.add_typer(app, name="report")
    root.command("export")(export)


def export(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder that does not exist yet, or is empty.")
    ],
    period: PeriodOption = None,
    as_of: Annotated[
        int | None,
        typer.Option(
            "--as-of", metavar="WATERMARK", help="[default: one that is pinned now]", show_default=False
        ),
    ] = None,
) -> None:
    """Write margin, capacity, usage and unrated as CSV and Parquet, with a manifest of what they stand on.

    Without --as-of a watermark is pinned first. Two exports of a period at one watermark are the same bytes.
    """
    from metering.settings import settings
    from workers.exporting import export_period

    done = export_period(settings(), folder, read_period(period), as_of)
    _say(f"{done.provenance.caption()}")
    if done.exported.already_there:
        _say(f"{done.exported.folder} holds these very files already; nothing was written")
    else:
        _say(f"wrote {len(done.exported.files)} files")
    for name in done.exported.files:
        typer.echo(str(done.exported.folder / name))


def _run(
    period: str | None,
    as_of: int | None,
    form: str,
    output: Path | None,
    make: Callable[[Connection, Settings, Period, int | None], Report],
    bars: tuple[str, ...] = (),
) -> None:
    from metering.settings import settings
    from metering.store.postgres import reading
    from workers.loop import database_errors

    check_format(form, output)
    span = read_period(period)
    with database_errors(), reading(settings()) as connection:
        report = make(connection, settings(), span, as_of)
    write(report, form, output, bars)


def read_period(text: str | None) -> Period:
    """What --period asks for; the current UTC month where it is not given."""
    from datetime import UTC, datetime

    from metering.periods import parse_period

    return parse_period(text if text is not None else f"{datetime.now(UTC):%Y-%m}")


def check_format(form: str, output: Path | None) -> None:
    """Refuse a --format that is none, or that needs an --output."""
    from metering.errors import BadInput

    if form not in FORMATS:
        raise BadInput(f"--format '{form}' is not one of {', '.join(FORMATS)}")
    if form == "parquet" and output is None:
        raise BadInput("--format parquet is not text; say where it goes with --output FILE")


def write(report: Report, form: str, output: Path | None, bars: tuple[str, ...] = ()) -> None:
    """Write a report to stdout or `output`; of data, what it stands on and its notes go to stderr."""
    from metering.delivery import exports, tables

    if form != "table" or output is not None:
        # a table has it as its caption
        _say(f"{report.name} {report.provenance.caption()}")
    if form != "table":
        for note in report.notes:
            _say(tables.printable(note))
    if form == "table" and output is None:
        tables.show(report, sys.stdout, bars)
    elif form == "table" and output is not None:
        exports.save(output, lambda path: _draw(report, path, bars))
    elif output is not None:
        exports.save(output, lambda path: exports.WRITERS[form](report, path))
    else:
        typer.echo(exports.to_text(report, form), nl=False)
    if output is not None:
        _say(f"wrote {output}")


def _draw(report: Report, path: Path, bars: tuple[str, ...]) -> None:
    from metering.delivery import tables

    with path.open("w", encoding="utf-8") as file:
        tables.show(report, file, bars)


def _say(message: str) -> None:
    typer.echo(message, err=True)
