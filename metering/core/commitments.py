"""Commitments: what was promised by tranche, drawn down by what counts toward it; the rest is shortfall.

One set of functions for both sides: what we committed to suppliers, and what customers commit to us.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

import polars as pl

from metering.frames.frame import INSTANT, SUM, Frame
from metering.money import ratio
from metering.periods import DAY

#: What was committed. Amounts are integers of one measure per holder: counts of money.QUANTUM, or units.
#: The tranches of one commitment do not overlap.
TRANCHES: Final = Frame(
    "TRANCHES",
    {
        "holder": pl.String,  # whose eligible amounts draw it down
        "commitment": pl.String,
        "effective_from": INSTANT,
        "effective_until": INSTANT,
        "committed": SUM,
        "draws": pl.List(pl.String),  # the accounts that count toward it; empty: every account
        "shortfall_rule": pl.String,  # true_up | roll_over | forfeit
        "roll_over_max": SUM,  # the most of this tranche's unmet amount that rolls over; null: all of it
        "roll_over_until": INSTANT,  # when that expires; null: the end of the commitment's last tranche
    },
    key=("holder", "commitment", "effective_from"),
    nullable=frozenset({"roll_over_max", "roll_over_until"}),
    laws={
        "ends after it starts": pl.col("effective_until") > pl.col("effective_from"),
        "committed is not negative": pl.col("committed") >= 0,
    },
)
#: What counts toward commitments, by slice of time; no slice spans the edge of a tranche.
ELIGIBLE: Final = Frame(
    "ELIGIBLE",
    {
        "holder": pl.String,
        "slice_start": INSTANT,
        "account": pl.String,  # what a tranche says that it draws: a kind of cost, a product
        "part": pl.UInt32,  # of the account, in the order in which they draw; 0 where it has but one
        "amount": SUM,
    },
    key=("holder", "slice_start", "account", "part"),
)
#: What became of every tranche, and of what rolled over from one (`rolled`: effective_from is then the end of
#: the tranche that it comes from). committed = drawdown + rolled_over + shortfall + remaining.
DRAWDOWN: Final = Frame(
    "DRAWDOWN",
    {
        "holder": pl.String,
        "commitment": pl.String,
        "effective_from": INSTANT,
        "effective_until": INSTANT,
        "rolled": pl.Boolean,
        "committed": SUM,
        "drawdown": SUM,
        "rolled_over": SUM,  # unmet at its end, and carried on
        "shortfall": SUM,  # unmet at its end, and due (true_up, expired) or lost (forfeit)
        "remaining": SUM,  # not drawn yet; its end is not reached
        "overage": SUM,  # eligible within its span that nothing drew; told once, of the tranche that ends last
    },
    key=("holder", "commitment", "effective_from", "rolled"),
    laws={
        "committed = drawdown + rolled_over + shortfall + remaining": pl.col("committed")
        == pl.col("drawdown") + pl.col("rolled_over") + pl.col("shortfall") + pl.col("remaining")
    },
)
#: What each slice drew. The crossing slice is split: its rest is drawn by the next commitment, or overage.
DRAWN: Final = Frame(
    "DRAWN",
    {
        "holder": pl.String,
        "commitment": pl.String,
        "effective_from": INSTANT,
        "rolled": pl.Boolean,
        "slice_start": INSTANT,
        "account": pl.String,
        "part": pl.UInt32,
        "amount": SUM,
    },
    key=("holder", "commitment", "effective_from", "rolled", "slice_start", "account", "part"),
)

_ITEM: Final = ["holder", "commitment", "effective_from", "rolled"]
_LINE: Final = ["holder", "slice_start", "account", "part"]


@dataclass(frozen=True)
class Drawdown:
    """tranches: DRAWDOWN. drawn: DRAWN. overage: ELIGIBLE, what nothing drew, within some tranche or not."""

    tranches: pl.DataFrame
    drawn: pl.DataFrame
    overage: pl.DataFrame


def draw_down(tranches: pl.DataFrame, eligible: pl.DataFrame, until: datetime) -> Drawdown:
    """Draw the tranches (TRANCHES) down by the eligible amounts (ELIGIBLE) of slices before `until`.

    The drawdown of a span is the difference of two cumulatives D(t) = min(eligible before t, committed).
    Several that are in force draw earliest end first, then earliest start, then by id. What is unmet at the
    end of a tranche: true_up, it is shortfall; roll_over, up to roll_over_max may still be drawn until
    roll_over_until by what nothing that ends earlier takes, and is shortfall then; forfeit, it is shortfall
    that was paid ahead. A tranche whose end lies after `until` has no shortfall yet.
    """
    items = _items(tranches)
    left = eligible.filter(pl.col("slice_start") < until).with_row_index("_line")
    settled: list[pl.DataFrame] = []
    drawn: list[pl.DataFrame] = []
    for turn in range(int(items["turn"].max() or 0)):  # type: ignore[arg-type]  # an integer
        now = items.filter(pl.col("turn") == turn + 1).drop("turn")
        now = _with_what_rolled(now, settled)
        took = _draw(now, left)
        sums = took.group_by(_ITEM).agg(pl.col("took").sum().alias("drawdown"))
        settled.append(_settle(now.join(sums, on=_ITEM, how="left", validate="1:1"), until))
        drawn.append(took.select(*_ITEM, "slice_start", "account", "part", pl.col("took").alias("amount")))
        left = _less(left, took)
    done = pl.concat([pl.DataFrame(schema=_SETTLED), *settled])
    overage = left.filter(pl.col("amount") != 0)
    over = overage_by_tranche(overage, tranches).group_by(_ITEM).agg(pl.col("amount").sum().alias("overage"))
    rows = done.join(over, on=_ITEM, how="left", validate="1:1").with_columns(
        pl.col("overage").fill_null(pl.lit(0, dtype=SUM))
    )
    rows = rows.filter(~pl.col("rolled") | (pl.col("committed") != 0))
    moved = pl.concat([DRAWN.empty(), *drawn]).filter(pl.col("amount") != 0)
    return Drawdown(DRAWDOWN.conform(rows), DRAWN.conform(moved), ELIGIBLE.conform(overage))


_SETTLED: Final = {name: dtype for name, dtype in DRAWDOWN.columns.items() if name != "overage"}


def _items(tranches: pl.DataFrame) -> pl.DataFrame:
    """Tranches, and a place for what may roll over from each, in the turn in which they draw per holder."""
    given = tranches.with_columns(
        pl.lit(value=False).alias("rolled"),
        pl.lit(None, dtype=INSTANT).alias("from_tranche"),
        pl.col("effective_until").max().over("holder", "commitment").alias("_last"),
    )
    expiry = pl.coalesce("roll_over_until", "_last")
    rolled = given.filter(
        (pl.col("shortfall_rule") == "roll_over") & (expiry > pl.col("effective_until"))
    ).with_columns(
        pl.lit(value=True).alias("rolled"),
        pl.col("effective_from").alias("from_tranche"),
        pl.col("effective_until").alias("effective_from"),
        expiry.alias("effective_until"),
        pl.lit(None, dtype=SUM).alias("committed"),
    )
    rolling = (expiry > pl.col("effective_until")) & (pl.col("shortfall_rule") == "roll_over")
    most = pl.when(rolling).then(pl.col("roll_over_max")).otherwise(pl.lit(0, dtype=SUM))
    items = pl.concat([given.with_columns(most.alias("roll_over_max")), rolled]).with_columns(
        pl.when("rolled").then(pl.lit(0, dtype=SUM)).otherwise(pl.col("roll_over_max")).alias("roll_over_max")
    )
    order = ["holder", "effective_until", "effective_from", "commitment", "rolled"]
    return items.sort(order).with_columns(pl.int_range(1, pl.len() + 1).over("holder").alias("turn"))


def _with_what_rolled(now: pl.DataFrame, settled: list[pl.DataFrame]) -> pl.DataFrame:
    """The committed amount of what rolled over is what its tranche, which had its turn before, left unmet."""
    if not now["rolled"].any():
        return now
    done = pl.concat(settled).filter(~pl.col("rolled"))
    left = done.select(
        "holder", "commitment", pl.col("effective_from").alias("from_tranche"), pl.col("rolled_over")
    )
    found = now.join(left, on=["holder", "commitment", "from_tranche"], how="left", validate="m:1")
    return found.with_columns(
        pl.coalesce("committed", "rolled_over", pl.lit(0, dtype=SUM)).alias("committed")
    ).drop("rolled_over")


def _draw(now: pl.DataFrame, left: pl.DataFrame) -> pl.DataFrame:
    """What each item takes of each slice: differences of D(t), the accounts of a slice by name, then part."""
    item = now.select(*_ITEM, "effective_until", "committed", "draws")
    found = (
        left.join(item, on="holder", validate="m:1")
        .filter(
            (pl.col("slice_start") >= pl.col("effective_from"))
            & (pl.col("slice_start") < pl.col("effective_until"))
            & counts_toward(pl.col("draws"), pl.col("account"))
        )
        .sort(_LINE)
    )
    upto = pl.min_horizontal(pl.col("amount").cum_sum().over("holder"), pl.col("committed"))
    return found.with_columns(upto.alias("upto")).with_columns(
        (pl.col("upto") - pl.col("upto").shift(1).over("holder").fill_null(pl.lit(0, dtype=SUM))).alias(
            "took"
        )
    )


def _settle(now: pl.DataFrame, until: datetime) -> pl.DataFrame:
    zero = pl.lit(0, dtype=SUM)
    drawdown = pl.col("drawdown").fill_null(zero)
    unmet = pl.col("committed") - drawdown
    ended = pl.col("effective_until") <= pl.lit(until, dtype=INSTANT)
    most = pl.min_horizontal(unmet, pl.col("roll_over_max").fill_null(unmet))
    rolls = pl.when(ended).then(most).otherwise(zero)
    return now.with_columns(
        drawdown.alias("drawdown"),
        rolls.alias("rolled_over"),
        pl.when(ended).then(unmet - rolls).otherwise(zero).alias("shortfall"),
        pl.when(ended).then(zero).otherwise(unmet).alias("remaining"),
    ).select(list(_SETTLED))


def _less(left: pl.DataFrame, took: pl.DataFrame) -> pl.DataFrame:
    rest = left.join(took.select("_line", "took"), on="_line", how="left", validate="1:1")
    return rest.with_columns(pl.col("amount") - pl.col("took").fill_null(pl.lit(0, dtype=SUM))).drop("took")


def counts_toward(draws: pl.Expr, account: pl.Expr) -> pl.Expr:
    """Whether an account is one that a tranche draws: TRANCHES.draws names it, or none."""
    return (draws.list.len() == 0) | draws.list.contains(account)


def overage_by_tranche(overage: pl.DataFrame, tranches: pl.DataFrame) -> pl.DataFrame:
    """Overage (ELIGIBLE) with the tranche in force that ends last, of those that its account counts toward.

    Columns of ELIGIBLE, with commitment, effective_from and rolled (never). What lies within no tranche is left
    out.
    """
    of = tranches.select("holder", "commitment", "effective_from", "effective_until", "draws")
    held = (
        overage.join(of, on="holder")
        .filter(
            (pl.col("slice_start") >= pl.col("effective_from"))
            & (pl.col("slice_start") < pl.col("effective_until"))
            & counts_toward(pl.col("draws"), pl.col("account"))
        )
        .sort(*_LINE, "effective_until", "effective_from", "commitment")
        .group_by(_LINE, maintain_order=True)
        .last()
    )
    return held.with_columns(pl.lit(value=False).alias("rolled"))


def pace(drawn: pl.Expr, committed: pl.Expr, elapsed: pl.Expr, term: pl.Expr) -> pl.Expr:
    """drawn / (committed x elapsed / term), elapsed and term in minutes; null at elapsed 0 or nothing committed.

    Computed as drawn / floor(committed x elapsed / term): a ratio to be shown.
    """
    return ratio(drawn, committed * elapsed // term)


def continued(eligible: pl.DataFrame, at: datetime, days: int, cut: pl.DataFrame) -> pl.DataFrame:
    """Eligible amounts of the slices of `cut`, which begin at `at`, if all goes on as in the `days` before.

    F(t) = floor(amount of those days x time since `at` / their length), so that the slices add up. ELIGIBLE;
    nothing where nothing was eligible lately.
    """
    recent = (
        eligible.filter(pl.col("slice_start").is_between(at - days * DAY, at, closed="left"))
        .group_by("holder", "account", "part")
        .agg(pl.col("amount").sum().alias("recent"))
    )
    minutes = pl.lit(days * 1440, dtype=SUM)

    def before(instant: str) -> pl.Expr:
        since = (pl.col(instant) - pl.lit(at, dtype=INSTANT)).dt.total_minutes().cast(SUM)
        return pl.col("recent") * since // minutes

    return ELIGIBLE.conform(
        recent.join(cut, how="cross").with_columns(
            (before("slice_until") - before("slice_start")).alias("amount")
        )
    )
