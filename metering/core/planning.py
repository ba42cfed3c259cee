"""Planning: what a pool would have cost at every size that it can be bought in, replayed on recorded minutes."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from itertools import accumulate
from math import lcm
from typing import Final

import polars as pl

from metering.core.burn import denominators, weigh, weights_in
from metering.core.effective import edges, slices, with_slice
from metering.core.exchange import rates, translate
from metering.core.rating import on_demand_prices
from metering.core.series import identify
from metering.errors import BadInput
from metering.frames.books import Books
from metering.frames.frame import INSTANT, SUM, Frame
from metering.frames.usage import DIMENSIONS, SUMS
from metering.meters import CONTEXT_BREAKPOINTS, METERS
from metering.money import MONEY, QUANTUM, RATIO, decimal_to_quanta, to_quanta
from metering.periods import MINUTE, Period, next_month_start

#: What was asked of a pool in every contracted minute, as numerators over `denominator`.
DEMAND: Final = Frame(
    "DEMAND",
    {
        "pool": pl.String,
        "dimension": pl.String,
        "minute": INSTANT,
        "denominator": pl.Int64,
        "available": SUM,
        "carved_out": SUM,
        "served": SUM,
        "burn": SUM,
        "spill": SUM,
        "refused": SUM,  # of requests turned away because the pool was full
        "demand": SUM,  # burn + spill + refused
    },
    key=("pool", "dimension", "minute"),
    laws={
        "demand = burn + spill + refused": pl.col("demand") == pl.sum_horizontal("burn", "spill", "refused")
    },
)
#: On-demand cost of what the pool served, by the dimension that its tokens burn.
MIX_COST: Final = Frame(
    "MIX_COST",
    {
        "pool": pl.String,
        "dimension": pl.String,
        "cost": SUM,  # count of money.QUANTUM; null: a part of it has no price, or no exchange rate
        "missing": pl.String,  # what has none
    },
    key=("pool", "dimension"),
    nullable=frozenset({"cost", "missing"}),
)
#: One row per size. Costs are of the replayed minutes, in `currency`.
COST_CURVE: Final = Frame(
    "COST_CURVE",
    {
        "pool": pl.String,
        "units": pl.Int64,  # of the dimension with the most units; the others in today's proportion
        "capacity_cost": MONEY,
        "on_demand_cost": MONEY,  # of what exceeds the size; null without an on-demand price
        "cost": MONEY,
        "minutes": pl.Int64,
        "minutes_above": pl.Int64,  # in which demand exceeds the size in any dimension
        "above_ratio": RATIO,  # of the minutes
        "spill_ratio": RATIO,  # of the demand, at its on-demand cost (without one: mean over dimensions)
        "today": pl.Boolean,
        "best": pl.Boolean,
        "currency": pl.String,
    },
    key=("pool", "units"),
    nullable=frozenset({"on_demand_cost", "cost"}),
    laws={
        "cost = capacity + on demand": pl.col("cost").is_null()
        | (pl.col("cost") == pl.col("capacity_cost") + pl.col("on_demand_cost"))
    },
)


def refused_burn(refused: pl.DataFrame, books: Books) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Burn that requests would have had which were turned away because their pool was full: (burned, unknown).

    refused: frames.REFUSED_REQUESTS, one row per request. Estimated input tokens weigh as uncached input,
    estimated output tokens as output, in the context of the estimated input, at the tier sold. burned: pool,
    dimension, minute, refused (numerators). unknown: pool, requests whose model or estimates are missing, or
    that no weight applies to.
    """
    tokens = pl.sum_horizontal(pl.col("estimated_input_tokens", "estimated_output_tokens").cast(pl.Int64))
    said = pl.col("model").is_not_null() & (tokens > 0)
    rows = refused.filter(said).select(
        pl.col("occurred_at").dt.truncate("1m").alias("minute"),
        "pool",
        pl.col("model").alias("model_served"),
        pl.col("tier_sold").fill_null("standard").alias("tier_served"),
        pl.col("region").fill_null(""),
        pl.lit(0).alias("context_breakpoint"),
        *(pl.lit(0, dtype=SUM).alias(meter) for meter in METERS),
        pl.col("estimated_input_tokens").fill_null(0).alias("_input"),
        pl.col("estimated_output_tokens").fill_null(0).alias("_output"),
        pl.lit(1, dtype=SUM).alias("_requests"),
    )
    above = pl.lit(0, dtype=pl.Int32)
    for edge in CONTEXT_BREAKPOINTS:
        above = pl.when(pl.col("_input") > edge).then(pl.lit(edge, dtype=pl.Int32)).otherwise(above)
    rows = rows.with_columns(
        above.alias("context_breakpoint"),
        pl.col("_input").cast(SUM).alias("uncached_input_tokens"),
        pl.col("_output").cast(SUM).alias("output_tokens"),
    ).drop("_input", "_output")
    dims = ["pool", "model_served", "context_breakpoint", "region", "tier_served"]
    known = identify(rows, dims)
    burndown, multipliers = weights_in(books)
    summed = known.rows.group_by("minute", "series_id").agg(pl.col(*METERS, "_requests").sum())
    weighed, unweighed = weigh(summed.drop("_requests"), known.series, burndown, multipliers, at="minute")
    lost = summed.join(unweighed, on=["minute", "series_id"], how="semi").select(
        "series_id", pl.col("_requests").alias("requests")
    )
    unknown = pl.concat(
        [
            lost.join(known.series.select("series_id", "pool"), on="series_id").select("pool", "requests"),
            refused.filter(~said.fill_null(value=False)).select(
                "pool", pl.lit(1, dtype=SUM).alias("requests")
            ),
        ]
    )
    burned = (
        weighed.join(known.series.select("series_id", "pool"), on="series_id", validate="m:1")
        .group_by("pool", "dimension", "minute")
        .agg(pl.col("burn").sum().alias("refused"))
    )
    return burned, unknown.group_by("pool").agg(pl.col("requests").sum()).sort("pool")


def demand(utilization: pl.DataFrame, refused: pl.DataFrame) -> pl.DataFrame:
    """Demand of every contracted minute (DEMAND): burn + spill + what was refused as `pool_full`.

    utilization: results.UTILIZATION. refused: the first result of `refused_burn`. Without refusals every
    figure of demand is a lower bound: whoever was turned away left no other trace.
    """
    rows = utilization.join(refused, on=["pool", "dimension", "minute"], how="left", validate="1:1")
    return DEMAND.conform(
        rows.with_columns(pl.col("refused").fill_null(0)).with_columns(
            pl.sum_horizontal("burn", "spill", "refused").cast(SUM).alias("demand")
        )
    )


def mix_cost(usage: pl.DataFrame, books: Books, period: Period) -> pl.DataFrame:
    """What the tokens that each pool served would have cost on demand (MIX_COST), in the pool's currency.

    usage: frames.USAGE of at least the period. Counted is usage with a cost that ran in the pool, at the pool's
    on_demand_book or the model's cost book, translated at the month_average of its day. A line belongs to
    the dimensions that weigh its meter (in equal parts where several do, or none does; the last one takes
    what does not divide).
    """
    held = pl.col("pool").is_in(books.pools["pool"].implode())
    usage = usage.filter(
        held
        & (pl.col("ran_on") == "pool")
        & pl.col("counts_for").is_in(["charge_and_cost", "cost"])
        & pl.col("quarter_start").is_between(period.start, period.until, closed="left")
    )
    cut = slices(period, edges([books.cost_books]))
    dims = [
        name for name in DIMENSIONS if name in ("provider", "model_served", "tier_served", "region", "pool")
    ]
    sliced = (
        with_slice(usage, cut, at="quarter_start")
        .group_by(
            "slice_start", *dims, "context_breakpoint", "counts_for", "product", "tier_sold", "customer"
        )
        .agg(pl.col(*SUMS).sum())
        .rename({"slice_start": "quarter_start"})
        .join(books.pools.select("pool", "on_demand_book"), on="pool", how="left", validate="m:1")
        .with_columns(pl.lit("pool").alias("ran_on"))
    )
    rated, unrated = on_demand_prices(sliced, books)
    money = (
        rated.with_columns(
            pl.col("quarter_start").dt.date().alias("day"), to_quanta(pl.col("amount")).alias("_q")
        )
        .group_by("day", "pool", "model_served", "meter", "currency")
        .agg(pl.col("_q").sum())
        .join(books.pools.select("pool", pl.col("currency").alias("_into")), on="pool", validate="m:1")
    )
    changed: list[pl.DataFrame] = []
    for into in sorted(books.pools["currency"].unique()):
        of = money.filter(pl.col("_into") == into)
        known = rates(of.select("day", "currency"), books.exchange_rates, into)
        of = of.join(known, on=["day", "currency"], how="left", validate="m:1")
        changed.append(of.with_columns(translate(pl.col("_q"), pl.col("month_average")).alias("_q")))
    money = pl.concat(
        [
            money.clear().with_columns(pl.lit(None, dtype=SUM).alias("month_average")),
            *(of.select(*money.columns, "month_average") for of in changed),
        ]
    )
    weighs = (
        books.burndown.filter(pl.col("weight") > 0)
        .select("pool", "dimension", pl.col("model").alias("model_served"), "meter")
        .unique()
    )
    every = books.capacity_steps.select("pool", "dimension").unique()
    by = ["pool", "model_served", "meter"]
    said = money.select(by).unique()
    dimensions = pl.concat(
        [
            said.join(weighs, on=by).select(*by, "dimension"),
            said.join(weighs, on=by, how="anti").join(every, on="pool").select(*by, "dimension"),
        ]
    ).with_columns(
        pl.len().over(by).cast(SUM).alias("_parts"),
        pl.col("dimension").rank("ordinal").over(by).cast(SUM).alias("_place"),
    )
    total, count = pl.col("_q"), pl.col("_parts")
    part = total // count + pl.when(pl.col("_place") == count).then(total % count).otherwise(0)
    cost = (
        money.group_by(by)
        .agg(pl.col("_q").sum(), pl.col("month_average").is_null().any().alias("_no_rate"))
        .join(dimensions, on=by)
        .group_by("pool", "dimension")
        .agg(part.sum().alias("cost"), pl.col("_no_rate").any())
    )
    gaps = unrated.group_by("pool").agg(
        pl.concat_str(pl.col("model_served"), pl.lit(" "), pl.col("meter")).min().alias("_gap")
    )
    found = (
        every.join(cost, on=["pool", "dimension"], how="left", validate="1:1")
        .join(gaps, on="pool", how="left", validate="m:1")
        .with_columns(
            pl.when(pl.col("_gap").is_not_null())
            .then(pl.lit("no on-demand price of ") + pl.col("_gap"))
            .when(pl.col("_no_rate").any().over("pool").fill_null(value=False))
            .then(pl.lit("no exchange rate for its on-demand price"))
            .when(pl.col("cost").is_null().all().over("pool"))
            .then(pl.lit("it served nothing"))
            .alias("missing")
        )
    )
    known_cost = pl.when(pl.col("missing").is_null()).then(pl.col("cost").fill_null(0))
    return MIX_COST.conform(found.with_columns(known_cost.cast(SUM).alias("cost")))


@dataclass(frozen=True)
class Sizing:
    """What the cost curve of a pool is computed from; all burn in numerators over one denominator per dimension.

    `unit_cost` is in quanta per unit and minute, of the units held today; `offer_cost` in quanta of one unit over
    all replayed minutes, of units beyond today's (None: as today's). A size K stands for K units of the dimension
    with the most; the others have K x units / most, rounded up to `units_sold_in`.
    """

    pool: str
    currency: str
    units: Mapping[str, int]  # today, by dimension
    unit_burn: Mapping[str, int]  # burn numerator of one unit in a minute
    units_min: int
    units_sold_in: int
    unit_cost: Fraction
    mix_cost: Mapping[str, int] | None = None  # quanta; None: no on-demand price
    mix_burn: Mapping[str, int] | None = None  # of ran_on = pool: what mix_cost is the cost of
    offer_cost: Fraction | None = None

    @property
    def today(self) -> int:
        """The size that is held now."""
        return max(self.units.values())

    def of(self, size: int, dimension: str) -> int:
        """Units of a dimension at a size."""
        parts = -(-size * self.units[dimension] // self.today)
        return -(-parts // self.units_sold_in) * self.units_sold_in if size != self.today else parts


def on_demand_unit_cost(sizing: Sizing, dimension: str) -> Fraction | None:
    """On-demand cost of the served mix / its burn, in quanta per numerator; None without price or burn."""
    if sizing.mix_cost is None or sizing.mix_burn is None or not sizing.mix_burn[dimension]:
        return None
    return Fraction(sizing.mix_cost[dimension], sizing.mix_burn[dimension])


def break_even(sizing: Sizing) -> Fraction | None:
    """u* = c0 / on-demand unit cost: the utilization at which capacity costs what on demand would.

    c0 = unit_cost / burn of a unit and minute. Over several dimensions: the cost of a minute of capacity / the
    on-demand cost of a minute in which all of it is burned. None where there is no on-demand price.
    """
    worth = Fraction(0)
    for dimension, units in sizing.units.items():
        unit = on_demand_unit_cost(sizing, dimension)
        if unit is not None:
            worth += unit * units * sizing.unit_burn[dimension]
    return sizing.unit_cost * sizing.today / worth if worth else None


def capacity_cost(sizing: Sizing, size: int, minutes: int) -> int:
    """Quanta for `size` units over the replayed minutes: today's units at their price, more at the offer's."""
    if sizing.offer_cost is None or size <= sizing.today:
        return int(sizing.unit_cost * size * minutes)
    return int(sizing.unit_cost * sizing.today * minutes + sizing.offer_cost * (size - sizing.today))


class _Replay:
    """Recorded minutes of one pool, arranged so that a size costs what exceeds it, not all minutes."""

    def __init__(self, rows: pl.DataFrame, sizing: Sizing) -> None:
        self.sizing = sizing
        self.dimensions = sorted(
            name for name, units in sizing.units.items() if units * sizing.unit_burn[name]
        )
        held = {name: sizing.units[name] * sizing.unit_burn[name] for name in self.dimensions}
        #: a size is compared with what a minute needs as size x scale
        self.scale = lcm(*held.values())
        needs = {name: sizing.today * (self.scale // burn) for name, burn in held.items()}
        minutes: dict[datetime, dict[str, tuple[int, int]]] = {}
        for name, at, asked, aside in rows.select("dimension", "minute", "demand", "carved_out").iter_rows():
            if name in held:
                minutes.setdefault(at, {})[name] = (asked, aside)
        self.count = len(minutes)
        #: the size below which there is no room for what is set aside
        self.reserved = 0
        fits = []
        whole = dict.fromkeys(self.dimensions, 0)
        for row in minutes.values():
            need = 0
            for name, (asked, aside) in row.items():
                whole[name] += asked
                need = max(need, (asked + aside) * needs[name])
                self.reserved = max(self.reserved, -(-aside * needs[name] // self.scale))
            fits.append(need)
        unit_value = {name: on_demand_unit_cost(sizing, name) for name in self.dimensions}
        self.priced = any(unit_value.values())
        # without a price demand is worth its share, so that spill still has a measure
        self.value = {
            name: (unit_value[name] or Fraction(0)) if self.priced else Fraction(10**12, max(1, whole[name]))
            for name in self.dimensions
        }
        self.total = sum((self.value[name] * whole[name] for name in self.dimensions), Fraction(0))
        order = sorted(range(self.count), key=fits.__getitem__)
        rows_of = list(minutes.values())
        self.minutes = [rows_of[place] for place in order]
        self.fits = [fits[place] for place in order]
        if len(self.dimensions) == 1:
            name = self.dimensions[0]
            self.sums = list(accumulate((sum(row[name]) for row in reversed(self.minutes)), initial=0))
        else:
            self.worth = [
                int(sum(self.value[name] * asked for name, (asked, _) in row.items())) for row in self.minutes
            ]

    def above(self, size: int) -> tuple[int, Fraction]:
        """Minutes in which demand exceeds the size, and the value of what does not fit, in quanta."""
        first = bisect_right(self.fits, size * self.scale)
        if len(self.dimensions) == 1:
            name = self.dimensions[0]
            count = self.count - first
            level = size * self.sizing.unit_burn[name]
            return count, self.value[name] * (self.sums[count] - count * level)
        held = {name: self.sizing.of(size, name) * self.sizing.unit_burn[name] for name in self.dimensions}
        count, value = 0, 0
        # rounding up to whole purchases only ever makes a dimension larger than its proportion
        for place in range(first, self.count):
            over, of = 0, 1
            for name, (asked, aside) in self.minutes[place].items():
                excess = min(asked, asked + aside - held[name])
                if excess * of > over * asked:
                    over, of = excess, asked
            if over:
                count += 1
                value += self.worth[place] * over // of
        return count, Fraction(value)


def cost_curve(demand_rows: pl.DataFrame, sizing: Sizing, sizes_max: int) -> pl.DataFrame:
    """COST_CURVE of one pool: every size on offer costs its fees and, on demand, what exceeds it.

        cost(K) = capacity_cost(K) + sum over minutes of value x share that does not fit
        value = sum over dimensions of on-demand unit cost x demand
        share = the largest over dimensions of (demand - available at K) / demand, at least 0

    demand_rows: DEMAND of the pool. Carve-outs stay set aside at every size, and everything is taken as
    delivered. For one dimension and one price the minimum is where P(demand > K) = c / p. Sizes are multiples
    of units_sold_in from units_min (and the carve-outs) until nothing exceeds them; of more than `sizes_max`
    every n-th is looked at, then all around the cheapest, on both sides of today's: cost is convex there, so
    the best is the best of all. Of sizes that cost the same the smallest is best. No minutes: no rows.
    """
    if not demand_rows.height:
        return COST_CURVE.empty()
    replay = _Replay(demand_rows, sizing)
    step = sizing.units_sold_in
    low = -(-max(sizing.units_min, replay.reserved) // step) * step
    fits = -(-replay.fits[-1] // replay.scale)
    high = max(low, -(-fits // step) * step, -(-sizing.today // step) * step)
    found: dict[int, tuple[int, int, int, Fraction]] = {}

    def look(size: int) -> int:
        if size not in found:
            count, value = replay.above(size)
            fees = capacity_cost(sizing, size, replay.count)
            found[size] = (fees, int(value), count, value)
        fees, bought, _, _ = found[size]
        return fees + bought if replay.priced else fees

    looks = max(4, sizes_max // 4)
    pivot = sizing.today // step * step
    for start, until in ((low, min(max(low, pivot), high)), (max(low, pivot), high)):
        stride = step * max(1, -(-(until - start) // step // looks))
        while start <= until:
            sizes = sorted({*range(start, until + 1, stride), until})
            best = min(sizes, key=lambda size: (look(size), size))
            if stride == step:
                break
            start, until = max(start, best - stride), min(until, best + stride)
            stride = step * max(1, (until - start) // step // looks)
    look(sizing.today)
    best_size = min(found, key=lambda size: (look(size), size)) if replay.priced else None
    rows = [
        {
            "pool": sizing.pool,
            "units": size,
            "capacity_cost": QUANTUM * fees,
            "on_demand_cost": QUANTUM * bought if replay.priced else None,
            "cost": QUANTUM * (fees + bought) if replay.priced else None,
            "minutes": replay.count,
            "minutes_above": count,
            "above_ratio": rounded_ratio(Fraction(count, replay.count)),
            "spill_ratio": rounded_ratio(value / replay.total if replay.total else Fraction(0)),
            "today": size == sizing.today,
            "best": size == best_size,
            "currency": sizing.currency,
        }
        for size, (fees, bought, count, value) in sorted(found.items())
    ]
    return COST_CURVE.conform(pl.DataFrame(rows, schema=dict(COST_CURVE.columns)))


def rounded_ratio(share: Fraction) -> Decimal:
    """A ratio of 6 places, half-even."""
    return Decimal(round(share * 10**6)).scaleb(-6)


@dataclass(frozen=True)
class Sized:
    """A pool sized: what it is made of and, row by row, its cost curve (COST_CURVE)."""

    sizing: Sizing
    curve: pl.DataFrame
    c0: Mapping[str, Fraction]  # quanta per burn numerator of contracted capacity, by dimension
    estimated: bool
    missing: str | None  # why there is no on-demand price

    def row(self, which: str) -> dict[str, object]:
        """The row of the curve that is `today` or `best`; empty if there is none."""
        rows = self.curve.filter(pl.col(which)).to_dicts()
        return rows[0] if rows else {}


def size_pool(
    pool: str,
    demand_rows: pl.DataFrame,
    mix: pl.DataFrame,
    recognised: pl.DataFrame,
    books: Books,
    period: Period,
    *,
    unit_price: Decimal | None = None,
    sizes_max: int,
) -> Sized | None:
    """Size one pool on the minutes of DEMAND; None where it has no units in force at the end of the period.

    mix: MIX_COST. recognised: results.RECOGNISED of the period. unit_price: of one more unit and month, in the
    pool's currency; None: as those held today, which cost what was recognised since the step in force began,
    a fee or bill in another currency at the month_average of its day (without a rate BadInput).
    """
    of = pl.col("pool") == pool
    demand_rows = demand_rows.filter(of)
    last = period.until - MINUTE
    steps = books.capacity_steps.filter(
        of
        & (pl.col("effective_from") <= last)
        & (pl.col("effective_until").is_null() | (pl.col("effective_until") > last))
    ).join(
        denominators(books.burndown, books.multipliers), on=["pool", "dimension"], how="left", validate="m:1"
    )
    units = {row["dimension"]: row["units"] for row in steps.iter_rows(named=True)}
    if not units or not max(units.values()) or not demand_rows.height:
        return None
    terms = books.pools.row(by_predicate=of, named=True)
    begun = max(period.start, *steps["effective_from"].to_list())
    minutes = int((period.until - begun) / MINUTE)
    paid = recognised.filter(of & (pl.col("quarter_start") >= begun)).with_columns(
        pl.col("quarter_start").dt.date().alias("day")
    )
    known = rates(paid.select("day", "currency"), books.exchange_rates, terms["currency"])
    by_day = (
        paid.group_by("day", "dimension", "currency")
        .agg(pl.col("cost").sum(), pl.col("estimated").any())
        .join(known, on=["day", "currency"], how="left", validate="m:1")
    )
    no_rate = by_day.filter(pl.col("month_average").is_null())
    if no_rate.height:
        row = no_rate.sort("day").row(0, named=True)
        raise BadInput(
            f"pool '{pool}': a fee in {row['currency']} on {row['day']} has no month_average rate into "
            f"{terms['currency']}; add it to the catalog's exchange_rates"
        )
    by_day = by_day.with_columns(translate(pl.col("cost"), pl.col("month_average")).alias("cost"))
    cost_of = dict(by_day.group_by("dimension").agg(pl.col("cost").sum()).iter_rows())
    unit_burn = {
        row["dimension"]: row["unit_burn_per_minute"] * (row["denominator"] or 1)
        for row in steps.iter_rows(named=True)
    }
    today = max(units.values())
    mix = mix.filter(of)
    priced = mix["missing"].null_count() == mix.height and mix.height > 0
    sizing = Sizing(
        pool=pool,
        currency=terms["currency"],
        units=units,
        unit_burn=unit_burn,
        units_min=terms["units_min"],
        units_sold_in=terms["units_sold_in"],
        unit_cost=Fraction(max(0, sum(cost_of.values())), today * minutes),
        mix_cost=dict(mix.select("dimension", "cost").iter_rows()) if priced else None,
        mix_burn=dict(demand_rows.group_by("dimension").agg(pl.col("burn").sum()).iter_rows()),
        offer_cost=None if unit_price is None else _over_months(unit_price, demand_rows["minute"]),
    )
    missing = None if priced else mix["missing"].drop_nulls().first() if mix.height else "it served nothing"
    return Sized(
        sizing=sizing,
        curve=cost_curve(demand_rows, sizing, sizes_max),
        c0={
            name: Fraction(max(0, cost_of.get(name, 0)), count * unit_burn[name] * minutes)
            for name, count in units.items()
            if count and unit_burn[name]
        },
        estimated=bool(by_day["estimated"].any()),
        missing=str(missing) if missing is not None else None,
    )


def _over_months(amount: Decimal, minutes: pl.Series) -> Fraction:
    """Quanta that an amount per calendar month comes to over these minutes (each counted once)."""
    total = Fraction(0)
    counts = minutes.unique().dt.truncate("1mo").value_counts()
    for month, count in counts.iter_rows():
        total += Fraction(decimal_to_quanta(amount) * count, int((next_month_start(month) - month) / MINUTE))
    return total
