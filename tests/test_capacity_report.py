"""The capacity report as a person sees it: notes, one pool, what was set aside, and the picture of a week."""
# ruff: noqa: E501  # tables are as wide as they need to be

import io
import re
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import polars as pl
import pytest

from metering.core.capacity import capacity
from metering.delivery import pictures, tables
from metering.delivery.pictures import Cell, Picture
from metering.delivery.report import Provenance
from metering.delivery.tables import fit
from metering.errors import BadInput
from metering.frames.books import Books
from metering.frames.supply import CAPACITY_FEES, SET_ASIDE
from metering.frames.usage import POOL_CUSTOMER_USAGE, POOL_USAGE, SUMS
from metering.periods import parse_period
from tests.core import example_books as a
from tests.text_tables import check, read
from workers.capacity_reports import CapacityReport, chosen_by, known_pool

#: Two pools of 100 a minute, and 20 of the first set aside for research. `silent` never says overflow.
USAGE = """
minute           | customer | pool     | ran_on   | model_served | accelerator_ms
2026-11-16 00:00 | acme     | block    | pool     | large        | 60
2026-11-16 00:00 | globex   | block    | pool     | small        | 20
2026-11-16 00:00 | globex   | block    | overflow | small        | 10
2026-11-16 02:30 | acme     | block    | pool     | large        | 40
2026-11-16 00:05 | labs     | research | pool     | large        | 15
2026-11-16 05:00 | acme     | silent   | pool     | large        | 150
"""


def example() -> Books:
    bought = a.bought(
        "pool | unit_burn_per_minute | units | fee_per_month\n block | 20 | 5 | 28.8\n silent | 20 | 5 | 57.6"
    )
    bought["pools"] = bought["pools"].with_columns(
        pl.when(pl.col("pool") == "block").then(30).otherwise(60).cast(pl.Int64).alias("window_seconds")
    )
    weights = "pool | model | meter | weight\n" + "\n".join(
        f" {pool} | {model} | accelerator_ms | 1"
        for pool in ("block", "silent")
        for model in ("large", "small")
    )
    aside = "pool | dimension | kind | name | effective_from | units\n block | all | carve_out | research | 2026-01-01 | 1"
    return a.books(**bought, burndown=a.burndown(weights), set_aside=read(aside, SET_ASIDE))


def made(pool: str | None = None, books: Books | None = None, period: str = "2026-11-16") -> CapacityReport:
    books = books or example()
    by_customer = read(
        USAGE,
        POOL_CUSTOMER_USAGE,
        provider="own",
        tier_served="standard",
        region="us-west",
        context_breakpoint=0,
        requests=1,
    )
    key = [name for name in POOL_USAGE.columns if name not in SUMS]
    usage = POOL_USAGE.conform(by_customer.group_by(key).agg(pl.col(*SUMS).sum()))
    span = parse_period(period)
    provenance = Provenance(span, span, 7, 1, datetime(2026, 12, 2, tzinfo=UTC), "0.1.0")
    of_pool = by_customer.filter(pl.col("pool") == pool) if pool else by_customer
    return CapacityReport(provenance, books, "USD", capacity(usage, books, span), pool, usage, of_pool)


def test_pools_what_was_set_aside_and_what_no_event_says() -> None:
    report = made().by()
    check(
        report.rows,
        """
        pool     | carve_out_of | contracted | carved_out | burn | served | overrun | spill | modelled_spill | recognised_cost | carved_out_cost
        block    | -            | 144_000    | 28_800     | 120  | 120    | 0       | 10    | -              | 0.96            | 0.192
        research | block        | 28_800     | 0          | 15   | 15     | 0       | 0     | -              | -               | -
        silent   | -            | 144_000    | 0          | 150  | 100    | 50      | 0     | 50             | 1.92            | 0
        """,
    )
    assert report.total["recognised_cost"].item() == Decimal("2.88")
    silent, short = report.notes
    assert silent.startswith("silent: burn exceeded what was available, and no event says that it overflowed")
    assert short.startswith("block: the supplier counts by 30 s, these figures by the minute")


def test_one_pool_is_picked_out_after_its_shares_were_computed() -> None:
    of_all, of_one = made().by("customer").rows, made("block").by("customer").rows
    assert of_all.filter(pl.col("pool") == "block").equals(of_one)
    check(
        of_one,
        """
        customer | burn | burn_ratio | spill | peak_minute      | peak_demand | peak_ratio
        acme     | 100  | 0.833333   | 0     | 2026-11-16 00:00 | 60          | 0.666667
        globex   | 20   | 0.166667   | 10    | 2026-11-16 00:00 | 30          | 0.333333
        """,
    )
    assert made("research").by("model").rows.select("pool", "model_served", "burn").rows() == [
        ("research", "large", Decimal(15))
    ]
    assert made("silent").by("hour_of_week").rows.height == 168
    assert made("research").by().notes == ()
    assert made("research").by().total.is_empty()


def test_an_unknown_pool_is_refused_with_those_that_there_are() -> None:
    assert known_pool(None, example()) is None
    assert known_pool("research", example()) == ["research"]
    says = "--pool 'blok': no such pool; there are block, silent; set aside from them: research"
    with pytest.raises(BadInput, match=re.escape(says)):
        known_pool("blok", example())
    with pytest.raises(BadInput, match="no such pool; the catalog has none"):
        known_pool("block", Books(1))


@pytest.mark.parametrize(
    ("by", "says"),
    [
        ("day,month", "two windows, day and month"),
        ("model,day", "both, model and day"),
        ("week", "'week' is not"),
    ],
)
def test_rows_are_about_one_thing(by: str, says: str) -> None:
    with pytest.raises(BadInput, match=re.escape(says)):
        chosen_by(by)
    assert [chosen_by(one) for one in (None, "pool", "pool,15m")] == ["pool", "pool", "15m"]


def test_a_pool_paid_for_in_two_currencies_has_no_cost_here_and_says_so() -> None:
    books = example()
    euros = read(
        "pool | fee | dimension | effective_from | amount | per | currency\n block | power | - | 2026-01-01 | 3 | month | EUR",
        CAPACITY_FEES,
    )
    books = replace(books, capacity_fees=pl.concat([books.capacity_fees, euros]))
    report = made(books=books).by()
    check(
        report.rows,
        "pool | recognised_cost | currency\n block | - | -\n research | - | -\n silent | 1.92 | USD",
    )
    assert (
        "block: paid for in EUR and USD, which cannot be added; its cost: `metering report closure`"
        in report.notes
    )
    # 1.92 is not what all of it cost
    assert report.total.is_empty()


def test_a_narrow_table_shows_what_idle_capacity_cost_before_how_much_burn_it_was() -> None:
    left_out = fit(made().by(), 70, bars=("served_of_available_ratio",)).left_out
    assert "idle" in left_out
    assert not {"recognised_cost", "idle_cost"} & set(left_out)


def drawn(report: CapacityReport, *, terminal: bool, encoding: str = "utf-8") -> str:
    """The picture of a report without colours; on a terminal of `encoding`, or elsewhere."""

    class Screen(io.TextIOWrapper):
        def isatty(self) -> bool:
            return terminal

    raw = io.BytesIO()
    file = Screen(raw, encoding=encoding)
    pictures.show(report.by("hour", picture=True).pictures, file)
    file.flush()
    plain = re.sub(r"\x1b\[[0-9;]*m", "", raw.getvalue().decode(encoding))
    return "\n".join(line.rstrip() for line in plain.splitlines())


WEEK = """
silent, all
used of available by hour of week, UTC
     00    03    06    09    12    15    18    21
Mon  ...........!....................................
Tue
Wed
Thu
Fri
Sat
Sun
     . less   : 5 %   + 25 %   # 50 %   @ 75 % and more   ! minutes at the limit
from 2026-11-16T00:00Z, 30m each
mean ________________________________________________
peak __________@_____________________________________
     _ nothing   @ at the limit or above
"""


def test_a_picture_of_the_week_in_ascii_where_there_is_no_terminal_or_no_utf8(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    plain = drawn(made("silent"), terminal=False)
    assert plain == WEEK.rstrip("\n")
    assert drawn(made("silent"), terminal=True, encoding="ascii") == plain
    rich = drawn(made("silent"), terminal=True)
    assert "Mon  ··········" in rich
    assert "█" in rich


def test_pictures_are_drawn_for_one_pool_or_on_demand() -> None:
    assert made().by(picture=None).pictures == ()
    assert [one.title for one in made("block").by(picture=None).pictures] == ["block, all"]
    assert [one.title for one in made().by(picture=True).pictures] == [
        "block, all",
        "research, all",
        "silent, all",
    ]
    assert made("block").by("model").pictures == ()
    file = io.StringIO()
    tables.show(made("block").by(picture=True), file)
    assert "Mon  " in file.getvalue()


def test_every_shade_has_its_edge() -> None:
    shares = [None, "0", "0.049999", "0.05", "0.25", "0.5", "0.75", "1", "1.2"]
    cells = [Cell(None if s is None else Decimal(s), Decimal(s or 0), at_limit=s == "1.2") for s in shares]
    picture = Picture("p, all", [*cells, *cells[:1] * 159], cells, datetime(2026, 11, 16, tzinfo=UTC), "1h")
    file = io.StringIO()
    pictures.show([picture], file)
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert lines[4] == "Mon    ....::++##@@@@@!"
    assert lines[13] == "mean  ___.-+@@"
