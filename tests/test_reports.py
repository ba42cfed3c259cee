"""Reports: what is laid out from a period of literal usage, down to the characters that a person reads."""

import io
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from metering.core.margin import margin
from metering.delivery import columns, tables
from metering.delivery.report import Column, Provenance, choose_by, duration, instant
from metering.errors import BadInput
from metering.frames.books import Books
from metering.periods import parse_period
from metering.results.capacity import CAPACITY_SUMMARY
from metering.results.margin import MARGIN_BY, margin_frame
from metering.results.rates import UNRATED
from tests.core.example_books import books, bought, burndown, pool_usage, prices, usage
from workers import reports
from workers.reports import MarginReport

DOCS = [Path(__file__).parent.parent / "docs" / name for name in ("reports.md", "capacity.md")]
#: Not on a day's edge: the last quarter hour that ends before it is 20:45.
COMPLETE = datetime(2026, 11, 21, 20, 52, 30, tzinfo=UTC)

#: acme burns 140 in the first minute of a pool of 100 a minute that costs $30 in November; 60 of its requests'
#: tokens spilled. Nobody knows mystery-co, and nobody priced `preview`.
USAGE = """
quarter_start    | customer   | product | provider | pool  | ran_on    | requests | uncached_input_tokens | accelerator_ms
2026-11-21 10:00 | acme       | large   | own      | block | pool      | 10       | 1_000_000             | 140
2026-11-21 10:15 | acme       | large   | cirrus   | block | overflow  | 2        | 100_000               | 60
2026-11-21 10:30 | acme       | preview | own      | block | pool      | 1        | 7                     | 10
2026-11-21 11:00 | mystery-co | large   | cirrus   | -     | on_demand | 3        | 500_000               | 0
2026-11-21 20:45 | acme       | large   | own      | block | pool      | 99       | 9_000_000             | 90
"""


def example_books() -> Books:
    """Input at $3 to customers and $5 on demand; a pool of 100 a minute for $30 a month."""
    return books(
        price_books=prices("item | meter | unit_price\n large | uncached_input_tokens | 3"),
        cost_books=prices("book | item | meter | unit_price\n on-demand | large | uncached_input_tokens | 5"),
        **bought("unit_burn_per_minute | fee_per_month\n 100 | 30"),
        burndown=burndown("meter | weight\n accelerator_ms | 1"),
    )


def made(
    period: str = "2026-11-21", complete: datetime | None = COMPLETE, watermark_id: int | None = 7
) -> MarginReport:
    """The margin report of USAGE, without a database."""
    asked = parse_period(period)
    cut = asked.cut_at(complete)
    rows = usage(USAGE)
    computed = margin(rows, pool_usage(rows), example_books(), cut, "USD")
    provenance = Provenance(asked, cut, watermark_id, 1, complete, "0.1.0")
    return MarginReport(provenance, example_books(), "USD", computed)


def shown(
    report: reports.Report, width: int, monkeypatch: pytest.MonkeyPatch, bars: tuple[str, ...] = ()
) -> str:
    """What is printed where there is no terminal and COLUMNS is `width`, without trailing blanks."""
    monkeypatch.setenv("COLUMNS", str(width))
    file = io.StringIO()
    tables.show(report, file, bars)
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert max(map(len, lines)) <= width
    return "\n".join(line for line in lines if line)


# ---- margin ----------------------------------------------------------------------------------------------


def test_margin_as_a_person_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        shown(made().by(), 120, monkeypatch)
        == """\
Margin by customer
2026-11-21 · cut at 2026-11-21T20:45Z: 20 h 45 min of 1 d are complete · as of watermark 7, catalog revision 1
                           revenue  pool cost  on-demand cost  cost  margin      margin       floor          charge
 customer         kind         USD        USD             USD   USD     USD  of revenue  of revenue  breach  unrated
 ───────────────────────────────────────────────────────────────────────────────────────────────────────────────────
 mystery-co       unknown     0.00       0.00            2.50  2.50   -2.50           -           -  no      yes
 acme             paying      3.30      <0.01            0.50  0.50    2.80      84.8 %      20.0 %  no      yes
 (idle capacity)  -           0.00       0.86            0.00  0.86   -0.86           -           -  no      no
 total                        3.30       0.86            3.00  3.86   -0.56     -17.1 %                      yes
7 more in files or on a wider terminal: name, segment, requests, total_input_tokens, total_output_tokens, charge, fee
unrated, not in these figures: charge no_price 7 tokens (acme); charge unknown_customer 500,000 tokens (mystery-co); see
`metering report unrated`"""
    )


@pytest.mark.parametrize(
    ("by", "first_columns"),
    [
        ("segment", ["unknown", "startup", "(idle capacity)"]),
        ("kind", ["unknown", "paying", "(idle capacity)"]),
        ("product", ["preview", "large", "(fees, idle)"]),
        ("line", ["usage", "idle"]),
        ("customer,line", ["mystery-co", "acme", "(idle capacity)"]),
    ],
)
def test_idle_capacity_stands_last_and_says_so(
    by: str, first_columns: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(made().by(by), 160, monkeypatch)
    body = text[text.rindex("───") :].splitlines()[1:]
    told = [line.strip().split("  ")[0] for line in body]
    assert told[: told.index("total")] == first_columns


def test_days_keep_their_order_with_idle_capacity_at_the_end_of_each() -> None:
    report = made("2026-11-20..2026-11-22").by("day,customer")
    assert report.shown is not None
    assert [(row[0].day, row[1]) for row in report.shown.select("day", "customer").rows()] == [
        (20, None), (21, "acme"), (21, "mystery-co"), (21, None),
    ]  # fmt: skip
    assert report.shown.sort(report.shown.columns).equals(report.rows.sort(report.rows.columns))


def test_margin_by_day_ties_to_the_whole_to_the_last_digit() -> None:
    whole = made("2026-11").by("line").total
    by_day = made("2026-11").by("day,customer,product").rows
    for column in (
        "requests",
        "total_input_tokens",
        "charge",
        "cost_pool",
        "cost_on_demand",
        "cost",
        "margin",
    ):
        assert by_day[column].sum() == whole[column].item()
    assert by_day["day"].to_list() == sorted(by_day["day"].to_list())
    # 20 days and 20 h 45 min of a fee of $30 in a month of 30 days, idle but for 110 of 124,500 of the last
    assert whole["cost_pool"].item() == (Decimal(30) * (20 * 96 + 83) / (30 * 96)).quantize(Decimal("1E-12"))


def test_the_summary_is_what_alerts_judge() -> None:
    row = made().summary.filter(pl.col("customer") == "acme").row(0, named=True)
    assert (row["revenue"], row["cost_on_demand"], row["breach"]) == (Decimal("3.3"), Decimal("0.5"), False)
    assert row["floor_ratio"] == Decimal("0.2")


def test_usage_counts_every_attempt_once() -> None:
    report = made().usage()
    assert report.rows.select(
        "customer", "product", "requests", "billable_requests", "total_input_tokens"
    ).rows() == [
        ("acme", "large", 12, 12, 1_100_000),
        ("acme", "preview", 1, 1, 7),
        ("mystery-co", "large", 3, 3, 500_000),
    ]
    assert report.total["accelerator_ms"].item() == 210


# ---- capacity --------------------------------------------------------------------------------------------


def test_capacity_as_a_person_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = ("served_of_available_ratio",)
    assert (
        shown(made("2026-11-21T10:00..2026-11-21T10:30").capacity.by(), 124, monkeypatch, bars)
        == """\
Capacity by pool, dimension
2026-11-21T10:00..2026-11-21T10:30 · complete · as of watermark 7, catalog revision 1
        contracted      served        idle     overrun       spill          used              at limit  cost  idle cost
 pool   burn units  burn units  burn units  burn units  burn units  of available               minutes   USD        USD
 ──────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
 block       3,000         100       2,900          40          60         3.3 %  ▍░░░░░░░░░         1  0.02       0.02
 total                                                                                                  0.02       0.02
21 more in files or on a wider terminal: dimension, unit, minutes, undelivered, carved_out, available, burn,
served_of_contracted_ratio, mean_ratio, p50_ratio, p95_ratio, p99_ratio, max_ratio, minutes_at_limit_5m,
minutes_at_limit_15m, longest_run_at_limit_minutes, pool_minutes_at_limit, undelivered_cost, carved_out_cost, served_cost,
estimated"""
    )


@pytest.mark.parametrize("window", ["pool", "day", "hour", "minute"])
def test_capacity_windows_add_up(window: str) -> None:
    rows = made().capacity.by(window).rows
    sums = rows.select(
        pl.col("contracted", "served", "idle", "overrun", "spill", "minutes_at_limit").sum()
    ).row(0)
    assert sums == (Decimal(124_500), Decimal(110), Decimal(124_390), Decimal(40), Decimal(60), 1)
    assert rows["minutes"].sum() == 1_245
    if window != "minute":
        costs = rows.select(pl.col("recognised_cost", "served_cost", "idle_cost").sum()).row(0)
        lines = made().computed.lines
        assert costs[0] == costs[1] + costs[2] == lines["cost_pool"].sum()
        assert costs[1] == lines.filter(pl.col("line") == "usage")["cost_pool"].sum()
    else:
        assert rows["recognised_cost"].null_count() == rows.height == 1_245


def test_a_minute_belongs_to_the_hour_that_it_begins_in() -> None:
    rows = made("2026-11-21T10:30..2026-11-21T11:15").capacity.by("hour").rows
    assert rows.select("window_start", "minutes", "served").rows() == [
        (datetime(2026, 11, 21, 10, tzinfo=UTC), 30, Decimal(10)),
        (datetime(2026, 11, 21, 11, tzinfo=UTC), 15, Decimal(0)),
    ]


# ---- unrated ---------------------------------------------------------------------------------------------


def test_unrated_as_a_person_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (
        shown(made(watermark_id=None).unrated_by(), 110, monkeypatch)
        == """\
Unrated by side, reason, customer, product, model_served, pool
2026-11-21 · cut at 2026-11-21T20:45Z: 20 h 45 min of 1 d are complete · live, catalog revision 1
                                                                                                quantity
 side    reason            customer    product  model served  pool   meter                  of the meter
 ───────────────────────────────────────────────────────────────────────────────────────────────────────
 charge  no_price          acme        preview  large         block  uncached_input_tokens             7
 charge  unknown_customer  mystery-co  large    large         -      uncached_input_tokens       500,000"""
    )


def test_nothing_unrated_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = made("2026-11-21T10:00..2026-11-21T10:15")
    assert shown(quiet.unrated_by(), 100, monkeypatch).splitlines()[2:] == [
        "(everything in the complete part of the period could be priced and costed)"
    ]
    assert quiet.by().notes == ()


# ---- what a report stands on -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("period", "complete", "extent"),
    [
        ("2026-11-21", "2026-11-22T00:00", "complete"),
        ("2026-11-21", "2026-11-21T23:59", "cut at 2026-11-21T23:45Z: 23 h 45 min of 1 d are complete"),
        ("2026-11", "2026-11-22T16:52", "cut at 2026-11-22T16:45Z: 21 d 16 h 45 min of 30 d are complete"),
        ("2026-11-21", "2026-11-21T00:15", "cut at 2026-11-21T00:15Z: 15 min of 1 d are complete"),
        (
            "2026-11-21",
            "2026-11-21T00:14",
            "nothing of it is complete yet: input is complete until 2026-11-21T00:14Z",
        ),
        (
            "2027-01",
            "2026-11-21T00:14",
            "nothing of it is complete yet: input is complete until 2026-11-21T00:14Z",
        ),
        ("2026-11-21", None, "nothing of it is complete yet: at least one partition was never read"),
    ],
)
def test_the_cut_and_its_reason(period: str, complete: str | None, extent: str) -> None:
    until = None if complete is None else datetime.fromisoformat(complete).replace(tzinfo=UTC)
    assert made(period, until).provenance.extent().startswith(extent)


def test_a_period_beyond_what_is_complete_is_an_empty_table(monkeypatch: pytest.MonkeyPatch) -> None:
    beyond = made("2027-01")
    for report in (
        beyond.by(),
        beyond.by("day,product"),
        beyond.usage(),
        beyond.capacity.by(),
        beyond.capacity.by("hour"),
    ):
        assert (report.rows.height, report.total.height) == (0, 0)
    assert shown(beyond.by(), 200, monkeypatch).splitlines()[2] == (
        "(no usage, fees or capacity in the complete part of the period)"
    )


@pytest.mark.parametrize(
    ("by", "message"),
    [
        (
            "customer,color",
            "--by 'color' is not what margin can be grouped by; give any of day, line, customer",
        ),
        ("", "--by '' is not what"),
        ("day,day", "--by names 'day' twice"),
    ],
)
def test_an_unknown_by_is_named(by: str, message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        made().by(by)


def test_two_windows_are_refused() -> None:
    with pytest.raises(BadInput, match="two windows, day and hour"):
        made().capacity.by("day,hour")
    assert choose_by(None, ("a",), ("a",), "x") == ("a",)


# ---- cells -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        ("0", "0.00"), ("1234567.891", "1,234,567.89"), ("-3.005", "-3.00"), ("3.015", "3.02"), ("0.005", "<0.01"),
        ("-0.000000000001", ">-0.01"), ("0.0051", "0.01"), ("0.000000000000", "0.00"),
    ],
)  # fmt: skip
def test_money_is_shown_to_the_cent_and_never_as_a_false_zero(amount: str, text: str) -> None:
    assert tables.money(Decimal(amount)) == text


@pytest.mark.parametrize(
    ("share", "drawn"),
    [("0", "░" * 10), ("0.5", "█████░░░░░"), ("0.651", "██████▌░░░"), ("1", "█" * 10), ("25.08", "█" * 10)],
)
def test_bars(share: str, drawn: str) -> None:
    assert tables.bar(Decimal(share)).plain == drawn


def test_a_loss_is_red_and_a_name_cannot_steer_the_terminal() -> None:
    assert tables.cell(Column("margin", "money", "margin"), Decimal("-1")).style == "red"
    assert tables.cell(Column("cost", "money", "cost"), Decimal("-1")).style == ""
    assert tables.cell(Column("customer", "text", "customer"), "a\x1b[31m[red]b").plain == "a\\x1b[31m[red]b"


def test_columns_of_one_group_go_together_and_days_are_short() -> None:
    """Before without after would mislead; a column of midnights is a column of days."""
    days = pl.Series([datetime(2026, 11, day, tzinfo=UTC) for day in (1, 2)]).cast(pl.Datetime("us", "UTC"))
    rows = pl.DataFrame({"at": days, "spill": [1, 2], "spill_after": [3, 4]})
    report = reports.Report(
        name="pairs",
        title="Pairs",
        columns=(
            Column("at", "instant", "at", "UTC"),
            Column("spill", "count", "spill", "", 1, "spill"),
            Column("spill_after", "count", "after", "", 1, "spill"),
        ),
        rows=rows,
        total=rows.clear(),
        provenance=made().by().provenance,
    )
    whole = tables.fit(report, None)
    assert whole.width == len(" 2026-11-01  spill  after ")
    assert tables.fit(report, whole.width).left_out == ()
    assert tables.fit(report, whole.width - 1).left_out == ("spill", "spill_after")


def test_instants_and_durations() -> None:
    assert instant(datetime(2026, 11, 1, 6, 15, tzinfo=UTC)) == "2026-11-01T06:15Z"
    assert instant(datetime(2026, 11, 1, 6, 15, 1, 5, tzinfo=UTC)) == "2026-11-01T06:15:01.000005Z"
    assert [duration(timedelta(minutes=minutes)) for minutes in (0, 59, 60, 1441)] == [
        "0 min",
        "59 min",
        "1 h",
        "1 d 1 min",
    ]


# ---- the words of the documentation ----------------------------------------------------------------------


def documented(heading: str) -> list[str]:
    """First cells of the table under a heading of docs/reports.md or docs/capacity.md, without backticks."""
    parts = [
        part.split("\n## ", 1)[0]
        for path in DOCS
        for part in path.read_text(encoding="utf-8").split(f"\n## {heading}\n", 1)[1:]
    ]
    assert parts, f"no heading {heading}"
    return [
        name
        for line in "\n".join(parts).splitlines()
        if line.startswith("| `")
        for name in re.findall(r"`(\w+)`", line.split("|")[1])
    ]


@pytest.mark.parametrize(
    ("heading", "found"),
    [
        ("Margin", lambda: columns.MARGIN),
        ("Capacity", lambda: columns.CAPACITY),
        ("By model", lambda: columns.CAPACITY_MODELS),
        ("By customer", lambda: columns.CAPACITY_CUSTOMERS),
        ("Unrated", lambda: columns.UNRATED),
        ("Usage", lambda: columns.USAGE),
        ("Plans", lambda: columns.PLANS),
    ],
)
def test_every_column_is_documented(heading: str, found: object) -> None:
    shared = documented("What a row is about") + documented("Sums of usage") + documented("Unrated")[:2]
    shared += documented("Capacity")[:3]
    names = [column.name for column in found()]  # type: ignore[operator]
    missing = [name for name in names if name not in shared + documented(heading)]
    assert not missing, f"docs, {heading}: {missing}"


def test_every_column_of_the_core_is_laid_out() -> None:
    assert set(margin_frame([*MARGIN_BY]).columns) <= {column.name for column in columns.MARGIN}
    assert set(UNRATED.columns) <= {column.name for column in columns.UNRATED}
    assert set(CAPACITY_SUMMARY.columns) - {"denominator"} <= {column.name for column in columns.CAPACITY}


def test_every_reason_has_its_remedy() -> None:
    core = Path(reports.__file__).parent.parent / "metering" / "core"
    words = set(re.findall(r'"((?:unknown|no)_[a-z_]+)"', "".join(p.read_text() for p in core.glob("*.py"))))
    words -= {"no_book"}
    missing = words - set(documented("Reasons"))
    assert words, "the core names its reasons"
    assert not missing, f"docs/reports.md, Reasons: {missing}"
