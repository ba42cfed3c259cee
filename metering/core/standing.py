"""Where customers stand: what they committed to and drew, what credit they have left, what is not billed yet."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import polars as pl

from metering.core.commitments import ELIGIBLE, TRANCHES, continued, counts_toward, draw_down, pace
from metering.core.contract_periods import contract_periods, terms_of_contracts
from metering.core.drawing import FOR_EVER, grant_tranches, part_of_ratio
from metering.core.effective import in_force, slices
from metering.core.fees import fees_earned
from metering.core.revenue import Charged
from metering.frames.books import Books
from metering.frames.frame import INSTANT, SUM, Frame
from metering.money import MONEY, RATIO, from_quanta, to_quanta
from metering.periods import DAY, QUARTER, Period

#: One row per tranche of a customer's commitment and per amount that rolled over from one, per entitlement, and
#: per contract that has neither. Amounts are in `measure`: a currency, units of meters, or units of a pool (on
#: average over the minutes of the period).
CONTRACT_STANDING: Final = Frame(
    "CONTRACT_STANDING",
    {
        "customer": pl.String,
        "kind": pl.String,  # of the customer: paying, trial, ...
        "contract": pl.String,
        "plan": pl.String,
        "what": pl.String,  # commitment | rolled_over | entitlement | terms
        "name": pl.String,  # of the commitment; of an entitlement the pool and dimension
        "effective_from": INSTANT,
        "effective_until": INSTANT,
        "state": pl.String,  # ended | open | ahead
        "measure": pl.String,
        "paid": pl.String,  # ahead | in_arrears
        "shortfall_rule": pl.String,
        "committed": MONEY,
        "drawn": MONEY,
        "remaining": MONEY,  # not drawn yet; 0 once it ended
        "rolled_over": MONEY,  # unmet at its end, and carried on
        "overage": MONEY,  # eligible in its span that nothing drew
        "shortfall": MONEY,  # unmet at its end; 0 before
        "pace_ratio": RATIO,  # drawn / (committed x elapsed share of the span); of an entitlement used of it
        "run_rate_per_day": MONEY,  # of what counts toward it, over the days before the cut
        "projected": MONEY,  # drawn at its end, if the run rate goes on
        "shortfall_projected": MONEY,  # unmet at its end, then
        "shortfall_fee": MONEY,  # what that costs: x shortfall_ratio; null in units, and where nothing is due
        "days_left": pl.Int64,  # whole days from the cut to the end
    },
    key=("customer", "contract", "what", "name", "effective_from"),
    nullable=frozenset(
        {
            *("plan", "name", "effective_until", "measure", "paid", "shortfall_rule", "committed", "drawn"),
            *("remaining", "rolled_over", "overage", "shortfall", "pace_ratio", "run_rate_per_day"),
            *("projected", "shortfall_projected", "shortfall_fee", "days_left"),
        }
    ),
)
#: One row per contract and currency: what is left, and what is not billed yet.
BALANCES: Final = Frame(
    "BALANCES",
    {
        "customer": pl.String,
        "kind": pl.String,
        "contract": pl.String,
        "currency": pl.String,
        "period_start": INSTANT,  # of the contract's open period
        "period_until": INSTANT,
        "committed_left": MONEY,  # of commitments in money in force: not drawn yet
        "prepaid_left": MONEY,
        "promotional_left": MONEY,
        "fees": MONEY,  # earned so far in the open period
        "unbilled": MONEY,  # amount due of the open period so far, fees included
        "expiring": MONEY,  # of what is left: ends within the days asked for
        "expires_at": INSTANT,  # the first of it
        "expected_lost": MONEY,  # of it, if the run rate goes on
    },
    key=("customer", "contract", "currency"),
    nullable=frozenset({"period_start", "period_until", "expires_at"}),
)
_ITEM: Final = ["holder", "commitment", "effective_from", "rolled"]
_ZERO: Final = pl.lit(0, dtype=SUM)
_UNITS: Final = pl.lit(10**12, dtype=SUM)


@dataclass(frozen=True)
class _Ahead:
    """tranches: commitments.DRAWDOWN at their ends, if the run rate goes on; rates: it, per commitment and day."""

    tranches: pl.DataFrame
    rates: pl.DataFrame


def contract_standing(
    charged: Charged, used: pl.DataFrame, books: Books, since: datetime, until: datetime, run_rate_days: int
) -> pl.DataFrame:
    """How far every contract that is in force in [since, until) is fulfilled at `until`: CONTRACT_STANDING.

    charged: of spans that begin at least run_rate_days before `until` where their contract does. used:
    results.CAPACITY_CUSTOMERS of [since, until), what of entitlements was used. Tranches that ended by `since`
    are left out. Projected: all that counts toward a commitment goes on as in the last run_rate_days, or as many
    as it has (commitments.continued).
    """
    rows = pl.concat(
        [_tranches(charged, until, run_rate_days), _entitlements(used, books, until)], how="diagonal"
    )
    rows = rows.filter(pl.col("effective_until").fill_null(FOR_EVER) > pl.lit(since, dtype=INSTANT))
    contracts = _contracts(books, since, until)
    silent = contracts.join(rows, on="contract", how="anti").with_columns(
        pl.lit("terms").alias("what"), _days_left(until)
    )
    said = contracts.select("contract", "plan")
    rows = rows.join(said, on="contract", how="left", validate="m:1")
    rows = pl.concat([rows, silent], how="diagonal")
    return CONTRACT_STANDING.conform(_completed(_with_kind(rows, books, until), CONTRACT_STANDING, until))


def balances(
    charged: Charged, books: Books, until: datetime, run_rate_days: int, soon_days: int
) -> pl.DataFrame:
    """What every contract in force just before `until` has left, and what of its open period is not billed: BALANCES.

    charged: of the whole open period of every contract. unbilled = net + top-up - drawdown - promotional -
    prepaid credits + overage premium + shortfall + fees, of the open period up to `until`. expected_lost: of what
    ends within soon_days what would be left then, if all that can draw it goes on as in the last run_rate_days.
    """
    opened = open_periods(books, until)
    here = charged.lines.join(
        opened.select("contract", "period_start"), on="contract", validate="m:1"
    ).filter(pl.col("quarter_start") >= pl.col("period_start"))
    due = pl.col("net") + pl.col("top_up") + pl.col("overage_premium") + pl.col("shortfall")
    taken = pl.col("drawdown") + pl.col("promotional_credit") + pl.col("prepaid_credit")
    pieces = [
        here.select("contract", "currency", (due - taken).alias("unbilled")),
        _open_fees(books, opened, until),
        _left(charged, until),
        expiring(charged, books, until, run_rate_days, soon_days),
    ]
    amounts = [
        "committed_left",
        "prepaid_left",
        "promotional_left",
        "fees",
        "unbilled",
        "expiring",
        "expected_lost",
    ]
    rows = (
        pl.concat([pl.DataFrame(schema=dict.fromkeys(amounts, SUM)), *pieces], how="diagonal")
        .group_by("contract", "currency")
        .agg(pl.col(amounts).sum(), pl.col("expires_at").min())
        .with_columns((pl.col("unbilled") + pl.col("fees")).alias("unbilled"))
        .join(
            opened.select("contract", "customer", "period_start", "period_until"),
            on="contract",
            validate="m:1",
        )
        .with_columns(from_quanta(pl.col(name)).alias(name) for name in amounts)
    )
    return BALANCES.conform(_with_kind(rows, books, until))


def _with_kind(rows: pl.DataFrame, books: Books, until: datetime) -> pl.DataFrame:
    """Rows with the kind of their customer at the last quarter hour before `until`."""
    known = books.customers.select("customer", "effective_from", "effective_until", "kind")
    who = rows.select("customer").unique().with_columns(pl.lit(until - QUARTER, dtype=INSTANT).alias("_at"))
    kinds = in_force(who, known, at="_at", by=["customer"]).select(
        "customer", pl.col("kind").fill_null("unknown")
    )
    return rows.join(kinds, on="customer", how="left", validate="m:1")


def _completed(rows: pl.DataFrame, frame: Frame, until: datetime) -> pl.DataFrame:
    at = pl.lit(until, dtype=INSTANT)
    state = (
        pl.when(pl.col("effective_from") >= at)
        .then(pl.lit("ahead"))
        .when(pl.col("effective_until") <= at)
        .then(pl.lit("ended"))
        .otherwise(pl.lit("open"))
    )
    return rows.with_columns(state.alias("state")).select(
        pl.col(name) if name in (*rows.columns, "state") else pl.lit(None, dtype=dtype).alias(name)
        for name, dtype in frame.columns.items()
    )


def _days_left(until: datetime) -> pl.Expr:
    left = (pl.col("effective_until") - pl.lit(until, dtype=INSTANT)).dt.total_days()
    return (
        pl.when(left.is_not_null()).then(pl.max_horizontal(left, pl.lit(0))).cast(pl.Int64).alias("days_left")
    )


def _contracts(books: Books, since: datetime, until: datetime) -> pl.DataFrame:
    """Contracts in force in [since, until): customer, contract, plan and span."""
    end = pl.col("effective_until").fill_null(pl.lit(FOR_EVER, dtype=INSTANT))
    return (
        terms_of_contracts(books)
        .filter(
            (pl.col("effective_from") < pl.lit(until, dtype=INSTANT)) & (end > pl.lit(since, dtype=INSTANT))
        )
        .sort("contract", "effective_from")
        .group_by("contract", maintain_order=True)
        .agg(
            pl.col("customer", "plan").last(),
            pl.col("effective_from").min(),
            pl.col("effective_until").last(),
        )
    )


def _tranches(charged: Charged, until: datetime, run_rate_days: int) -> pl.DataFrame:
    ahead = _projected(charged.terms, charged.eligible, until, run_rate_days)
    about = charged.terms.select("holder", "commitment", "contract").unique()
    then = ahead.tranches.join(about, on=["holder", "commitment"], validate="m:1").select(
        *("contract", "commitment", "effective_from", "rolled"),
        pl.col("effective_until").alias("_until"),
        pl.col("committed").alias("_committed"),
        pl.col("drawdown").alias("projected"),
        pl.col("shortfall").alias("shortfall_projected"),
    )
    said = charged.terms.group_by("contract", "commitment").agg(
        pl.col("customer", "currency", "meters", "paid", "shortfall_rule", "ratio").first()
    )
    by = ["contract", "commitment"]
    now = charged.drawdown.select(
        *(*by, "effective_from", "rolled", "committed", "drawdown", "rolled_over"),
        *("shortfall", "remaining", "overage"),
    )
    rates = ahead.rates.join(about, on=["holder", "commitment"], validate="1:1").drop("holder")
    # what will roll over by the projection alone has not done so yet
    rows = (
        then.join(now, on=[*by, "effective_from", "rolled"], how="left", validate="1:1")
        .join(said, on=by, validate="m:1")
        .join(rates, on=by, how="left", validate="m:1")
        .with_columns(
            pl.col("drawdown", "rolled_over", "shortfall", "overage").fill_null(_ZERO),
            pl.coalesce("remaining", "_committed").alias("remaining"),
            pl.col("_committed").alias("committed"),
            pl.col("_until").alias("effective_until"),
        )
    )
    at = pl.lit(until, dtype=INSTANT)
    span = (pl.col("effective_until") - pl.col("effective_from")).dt.total_minutes().cast(SUM)
    elapsed = (
        (pl.min_horizontal(at, "effective_until") - pl.col("effective_from")).dt.total_minutes().cast(SUM)
    )
    fee = part_of_ratio(pl.col("shortfall_projected"), pl.col("ratio"))
    lapses = (pl.col("paid") == "in_arrears") & (pl.col("shortfall_rule") == "forfeit")
    money = pl.col("meters").is_null()
    told = (
        "committed",
        "drawn",
        "remaining",
        "rolled_over",
        "overage",
        "shortfall",
        "run_rate_per_day",
        "projected",
    )
    return (
        rows.with_columns(
            pl.when("rolled").then(pl.lit("rolled_over")).otherwise(pl.lit("commitment")).alias("what"),
            pl.col("commitment").alias("name"),
            pl.coalesce("meters", "currency").alias("measure"),
            pl.col("drawdown").alias("drawn"),
            pl.when(elapsed > 0)
            .then(pace(pl.col("drawdown"), pl.col("committed"), elapsed, span))
            .alias("pace_ratio"),
            pl.when(money & ~lapses).then(fee).alias("shortfall_fee"),
            _days_left(until),
        )
        .with_columns(
            from_quanta(pl.col(name) * pl.when(money).then(pl.lit(1, dtype=SUM)).otherwise(_UNITS)).alias(
                name
            )
            for name in (*told, "shortfall_projected")
        )
        .with_columns(from_quanta(pl.col("shortfall_fee")))
        .drop("currency", "meters", "ratio", "rolled", "commitment", "drawdown", "_until", "_committed")
    )


def _projected(terms: pl.DataFrame, eligible: pl.DataFrame, until: datetime, run_rate_days: int) -> _Ahead:
    """Tranches at their ends, if all that counts toward them goes on as lately."""
    tranches = TRANCHES.conform(terms.select(*TRANCHES.columns))
    rates = _rates(tranches, eligible, until, run_rate_days)
    ends = [end for end in (tranches["effective_until"].max(), tranches["roll_over_until"].max()) if end]
    last = max([until, *(end for end in ends if isinstance(end, datetime))])
    edges = {
        *tranches["effective_from"],
        *tranches["effective_until"],
        *tranches["roll_over_until"].drop_nulls(),
    }
    future = _going_on(eligible, until, last, run_rate_days, edges)
    so_far = eligible.filter(pl.col("slice_start") < pl.lit(until, dtype=INSTANT))
    return _Ahead(draw_down(tranches, pl.concat([so_far, future]), last).tranches, rates)


def days_known(eligible: pl.DataFrame, until: datetime, days_max: int) -> pl.DataFrame:
    """By holder the days before the cut that its run rate is of: no more than something was eligible in."""
    since = (pl.lit(until, dtype=INSTANT) - pl.col("slice_start").min()).dt.total_minutes()
    days = pl.min_horizontal(pl.max_horizontal((since + 1439) // 1440, pl.lit(1)), pl.lit(days_max))
    seen = (pl.col("amount") != 0) & (pl.col("slice_start") < pl.lit(until, dtype=INSTANT))
    return eligible.filter(seen).group_by("holder").agg(days.cast(pl.Int64).alias("days"))


def _rates(
    tranches: pl.DataFrame, eligible: pl.DataFrame, until: datetime, run_rate_days: int
) -> pl.DataFrame:
    days = days_known(eligible, until, run_rate_days)
    lately = pl.col("slice_start") >= pl.lit(until, dtype=INSTANT) - pl.duration(days=pl.col("days"))
    of = tranches.group_by("holder", "commitment").agg(pl.col("draws").first())
    return (
        eligible.join(days, on="holder", validate="m:1")
        .filter(lately & (pl.col("slice_start") < pl.lit(until, dtype=INSTANT)))
        .join(of, on="holder")
        .filter(counts_toward(pl.col("draws"), pl.col("account")))
        .group_by("holder", "commitment")
        .agg((pl.col("amount").sum() // pl.col("days").first().cast(SUM)).alias("run_rate_per_day"))
    )


def _going_on(
    eligible: pl.DataFrame, until: datetime, last: datetime, run_rate_days: int, edges: Iterable[datetime]
) -> pl.DataFrame:
    """ELIGIBLE of [until, last) at each holder's run rate, by day; parts of an account together."""
    if last <= until:
        return ELIGIBLE.empty()
    cut = slices(Period("ahead", until, last), edges)
    days = days_known(eligible, until, run_rate_days)
    whole = (
        eligible.group_by("holder", "slice_start", "account")
        .agg(pl.col("amount").sum())
        .with_columns(pl.lit(0, dtype=pl.UInt32).alias("part"))
        .join(days, on="holder", validate="m:1")
    )
    runs = [
        continued(group.select(*ELIGIBLE.columns), until, int(str(known)), cut)
        for (known,), group in whole.group_by("days", maintain_order=True)
    ]
    return ELIGIBLE.conform(pl.concat([ELIGIBLE.empty(), *runs]))


def _entitlements(used: pl.DataFrame, books: Books, until: datetime) -> pl.DataFrame:
    """Entitlements in units of their pool, and what of them was used: on average over the minutes of the period."""
    by = ["customer", "pool", "dimension"]
    said = (
        books.entitlements.filter(pl.col("effective_from") < pl.lit(until, dtype=INSTANT))
        .sort("effective_from")
        .group_by(by, maintain_order=True)
        .agg(pl.col("contract", "units", "effective_from", "effective_until").last())
        .join(
            books.pools.select("pool", pl.col("unit").alias("measure")), on="pool", how="left", validate="m:1"
        )
    )
    rows = used.filter(pl.col("entitlement") > 0).join(said, on=by, validate="1:1")

    def units(burn: pl.Expr) -> pl.Expr:
        return from_quanta(to_quanta(pl.col("units")) * burn // pl.col("entitlement"))

    taken = pl.col("entitlement_used")
    return rows.select(
        "customer",
        "contract",
        pl.lit("entitlement").alias("what"),
        (pl.col("pool") + " " + pl.col("dimension")).alias("name"),
        "effective_from",
        "effective_until",
        pl.col("measure").fill_null("units"),
        pl.col("units").alias("committed"),
        units(taken).alias("drawn"),
        (pl.col("units") - units(taken)).alias("remaining"),
        units(pl.col("burn") - taken).alias("overage"),
        pl.col("entitlement_used_ratio").alias("pace_ratio"),
        _days_left(until),
    )


def open_periods(books: Books, until: datetime) -> pl.DataFrame:
    """The period of every contract that holds the last quarter hour before `until`."""
    last = until - QUARTER
    spans = (
        books.contracts.select("contract")
        .unique()
        .with_columns(
            pl.lit(last, dtype=INSTANT).alias("effective_from"),
            pl.lit(until, dtype=INSTANT).alias("effective_until"),
        )
    )
    return contract_periods(books, spans, until)


def _open_fees(books: Books, opened: pl.DataFrame, until: datetime) -> pl.DataFrame:
    first = opened["period_start"].min()
    if not isinstance(first, datetime):
        return pl.DataFrame(schema={"contract": pl.String, "currency": pl.String, "fees": SUM})
    mine = books.fees.join(opened, on="contract", how="semi")
    cut = slices(Period("open", first, until), opened["period_start"].unique())
    return (
        fees_earned(mine, books.contract_terms, cut)
        .join(opened.select("contract", "period_start"), on="contract", validate="m:1")
        .filter(pl.col("slice_start") >= pl.col("period_start"))
        .select("contract", "currency", to_quanta(pl.col("amount")).alias("fees"))
    )


def in_force_at(until: datetime) -> pl.Expr:
    at = pl.lit(until, dtype=INSTANT)
    return (pl.col("effective_from") < at) & (pl.col("effective_until").fill_null(FOR_EVER) > at)


def _left(charged: Charged, until: datetime) -> pl.DataFrame:
    """What is left of commitments in money and of grants."""
    here = in_force_at(until)
    tranches = charged.drawdown.filter(here & pl.col("meters").is_null()).select(
        "contract", "currency", pl.col("remaining").alias("committed_left")
    )
    grants = charged.credits.filter(here)
    return pl.concat(
        [
            tranches,
            *(
                grants.filter(pl.col("kind") == kind).select(
                    "contract", "currency", pl.col("left").alias(f"{kind}_left")
                )
                for kind in ("promotional", "prepaid")
            ),
        ],
        how="diagonal",
    )


def expiring(
    charged: Charged, books: Books, until: datetime, run_rate_days: int, soon_days: int
) -> pl.DataFrame:
    """What ends within soon_days of what was paid ahead or granted, and what would be left of it then.

    One row per tranche and grant: contract, currency, name, expiring, expected_lost (quanta), expires_at.
    """
    horizon = until + soon_days * DAY
    soon = in_force_at(until) & (pl.col("effective_until") <= pl.lit(horizon, dtype=INSTANT))
    tranches = charged.drawdown.filter(
        soon & (pl.col("paid") == "ahead") & pl.col("meters").is_null() & (pl.col("remaining") > 0)
    )
    by = ["contract", "commitment", "effective_from", "rolled"]
    about = charged.terms.select("holder", "commitment", "contract").unique()
    then = (
        _projected(charged.terms, charged.eligible, until, run_rate_days)
        .tranches.join(about, on=["holder", "commitment"], validate="m:1")
        .select(*by, pl.col("shortfall").alias("expected_lost"))
    )
    paid = tranches.join(then, on=by, validate="1:1").select(
        "contract",
        "currency",
        pl.col("commitment").alias("name"),
        pl.col("remaining").alias("expiring"),
        "expected_lost",
        pl.col("effective_until").alias("expires_at"),
    )
    left = charged.credits.filter(in_force_at(until) & (pl.col("left") > 0))
    still = (
        books.credit_grants.drop("amount")
        .join(
            left.select("contract", "credit", from_quanta(pl.col("left")).alias("amount")),
            on=["contract", "credit"],
        )
        .with_columns(pl.lit(until, dtype=INSTANT).alias("effective_from"))
    )
    ends = still["effective_until"].drop_nulls().to_list()
    future = _going_on(charged.creditable, until, horizon, run_rate_days, ends)
    lost = []
    for kind in ("promotional", "prepaid"):
        done = draw_down(grant_tranches(still.filter(pl.col("kind") == kind)), future, horizon)
        future = done.overage
        lost.append(done.tranches.select("holder", pl.col("commitment").alias("credit"), "shortfall"))
    holder = (pl.col("contract") + " / " + pl.col("currency")).alias("holder")
    credits = (
        left.filter(pl.col("effective_until") <= pl.lit(horizon, dtype=INSTANT))
        .with_columns(holder)
        .join(pl.concat(lost), on=["holder", "credit"], validate="1:1")
        .select(
            "contract",
            "currency",
            pl.col("credit").alias("name"),
            pl.col("left").alias("expiring"),
            pl.col("shortfall").alias("expected_lost"),
            pl.col("effective_until").alias("expires_at"),
        )
    )
    return pl.concat([paid, credits])
