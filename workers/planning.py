"""Planning the supply: recorded minutes are read, the core sizes pools or replays a scenario, a report is laid out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from typing import Final

import numpy as np
import polars as pl
from sqlalchemy import Connection

from metering.core.capacity import capacity
from metering.core.forecast import WEEK, Forecast, forecast
from metering.core.planning import (
    COST_CURVE,
    Sized,
    break_even,
    demand,
    mix_cost,
    on_demand_unit_cost,
    refused_burn,
    rounded_ratio,
    size_pool,
)
from metering.core.recognition import recognised
from metering.delivery import columns
from metering.delivery.report import Column, Provenance, Report, choose_by, select
from metering.errors import BadInput
from metering.frames.books import Books
from metering.money import MONEY, QUANTUM, RATIO
from metering.periods import Period
from metering.settings import Settings
from metering.store.refusals import read_refused_requests
from metering.store.rollups import read_pool_usage, read_usage
from workers.reports import known

#: Where a long computation says how far it is.
Say = Callable[[str], None]

_HOUR: Final = timedelta(hours=1)
_MILLION: Final = 10**6
_PLAN: Final[Mapping[str, pl.DataType | type[pl.DataType]]] = {
    "pool": pl.String,
    "supplier": pl.String,
    "unit": pl.String,
    "units_today": pl.Int64,
    "minutes": pl.Int64,
    "demand_of_available_ratio": RATIO,
    "above_ratio": RATIO,
    "spill_ratio": RATIO,
    "refused_requests": pl.Int64,
    "c0_per_million": MONEY,
    "on_demand_per_million": MONEY,
    "break_even_ratio": RATIO,
    "served_of_contracted_ratio": RATIO,
    "cost_today": MONEY,
    "units_best": pl.Int64,
    "cost_best": MONEY,
    "saving": MONEY,
    "above_best_ratio": RATIO,
    "spill_best_ratio": RATIO,
    "runway_date": pl.Date,
    "order_by_date": pl.Date,
    "forecast": pl.String,
    "lower_bound": pl.Boolean,
    "currency": pl.String,
}


def capacity_plan(
    connection: Connection,
    settings: Settings,
    period: Period,
    as_of: int | None,
    *,
    pool: str | None = None,
    unit_price: Decimal | None = None,
    alpha: Decimal | None = None,
    say: Say = lambda _: None,
) -> "CapacityPlan":
    """Size every pool (or one) on the minutes of the period up to its cut, and say when it will be full.

    `connection` is one snapshot; nothing is written. An unknown pool, or a unit price without saying of which
    pool where there are several, raises BadInput.
    """
    provenance, books = known(connection, settings, period, as_of)
    cut = provenance.cut
    pools = sorted(books.pools["pool"])
    if pool is not None:
        refuse_unknown(pool, pools, "--pool", "pool")
        pools = [pool]
    if unit_price is not None and len(pools) > 1:
        raise BadInput(f"--unit-price is of one pool's units; say which with --pool ({', '.join(pools)})")
    say("reading recorded minutes")
    of = pl.col("pool").is_in(pools)
    usage = read_usage(connection, cut.start, cut.until, as_of, pools)
    used = capacity(read_pool_usage(connection, cut.start, cut.until, as_of), books, cut)
    refused = read_refused_requests(connection, cut.start, cut.until, as_of)
    burned, unknown = refused_burn(refused.filter(of), books)
    wanted = demand(used.utilization.filter(of), burned)
    mix = mix_cost(usage, books, cut)
    cost = recognised(books, cut)
    share = settings.full_probability_max if alpha is None else alpha
    sized: dict[str, Planned] = {}
    for number, name in enumerate(pools, start=1):
        say(f"sizing pool {number} of {len(pools)}: {name}")
        made = size_pool(
            name, wanted, mix, cost, books, cut, unit_price=unit_price, sizes_max=settings.plan_sizes_max
        )
        rows = wanted.filter(pl.col("pool") == name)
        sized[name] = Planned(
            made,
            rows,
            used_share(used.utilization, name),
            runway(rows, books, name, cut, share, settings.runway_days_max),
        )
    counts = dict(refused.filter(of).group_by("pool").len().iter_rows())
    return CapacityPlan(provenance, books, sized, counts, dict(unknown.iter_rows()), share)


def refuse_unknown(name: str, known_names: list[str], where: str, what: str) -> None:
    """BadInput for a name that is not there, with those that are."""
    if name not in known_names:
        raise BadInput(
            f"{where} '{name}': there is no such {what}; there are {', '.join(known_names) or 'none'}"
        )


@dataclass(frozen=True)
class Runway:
    """When a pool will be full. `full_on` None: not within the days looked at. `ended`: its contract ends first."""

    made: Forecast | None
    weeks: Fraction
    full_on: date | None = None
    ended: bool = False


def runway(rows: pl.DataFrame, books: Books, pool: str, cut: Period, alpha: Decimal, days_max: int) -> Runway:
    """The first date with an hour in which P(busiest minute's demand > available) > alpha, in any dimension.

    What is available then follows the steps and carve-outs of the contract; undelivered capacity is not
    foreseen. Learned from the whole hours of the period; too few weeks: no forecast, and no date.
    """
    found: list[tuple[date, bool]] = []
    made: Forecast | None = None
    weeks = Fraction(0)
    start = cut.until.replace(minute=0)
    for (dimension,), of in rows.group_by("dimension", maintain_order=True):
        hourly = (
            of.filter(pl.col("minute") < start)
            .group_by(pl.col("minute").dt.truncate("1h").alias("hour"))
            .agg((pl.col("demand").max() // pl.col("denominator").first()).cast(pl.Float64).alias("peak"))
        )
        # before the first demand nothing was recorded: that is no pattern to learn
        first = hourly.filter(pl.col("peak") > 0)["hour"].min()
        if not isinstance(first, datetime):
            continue
        grid = pl.DataFrame({"hour": pl.datetime_range(first, start, "1h", closed="left", eager=True)})
        peaks = grid.join(hourly, on="hour", how="left").sort("hour")["peak"].fill_null(0)
        weeks = Fraction(len(peaks), WEEK)
        one = forecast(np.asarray(peaks.to_numpy(), dtype=np.float64), start)
        if one is None:
            continue
        made = one
        for hour, available in enumerate(_available(books, pool, str(dimension), start, days_max)):
            if one.exceeds(hour, available or 0.0) > float(alpha):
                found.append(((start + hour * _HOUR).date(), available is None))
                break
    if not found:
        return Runway(made, weeks)
    full_on, ended = min(found)
    return Runway(made, weeks, full_on, ended)


def _available(
    books: Books, pool: str, dimension: str, start: datetime, days_max: int
) -> Iterator[float | None]:
    """Burn units a minute in every hour to come, None where no step is in force."""
    here = (pl.col("pool") == pool) & (pl.col("dimension") == dimension)
    steps = books.capacity_steps.filter(here).to_dicts()
    aside = books.set_aside.filter(here & (pl.col("kind") == "carve_out")).to_dicts()

    def held(rows: list[dict[str, object]], at: datetime) -> list[dict[str, object]]:
        return [
            row
            for row in rows
            if row["effective_from"] <= at and (row["effective_until"] is None or at < row["effective_until"])  # type: ignore[operator]
        ]

    for hour in range(days_max * 24):
        at = start + hour * _HOUR
        step = held(steps, at)
        if not step:
            yield None
            continue
        units = int(str(step[0]["units"])) - sum(int(str(row["units"])) for row in held(aside, at))
        yield float(units * int(str(step[0]["unit_burn_per_minute"])))


def past_order(pool: str, order_by: date | None, known_until: date) -> Iterator[str]:
    """A sentence where the day to order by lies before the day until which usage is known."""
    if order_by is not None and order_by < known_until:
        yield (
            f"{pool}: the day to order by, {order_by}, is past: ordered on {known_until}, units come "
            f"{(known_until - order_by).days} days after the pool is full; until then it spills"
        )


@dataclass(frozen=True)
class Planned:
    """What is known of one pool: its size and curve (None: no units in force), its demand, its runway."""

    sized: Sized | None
    demand: pl.DataFrame
    used: Fraction | None  # served / contracted of the dimension that was fullest; None: nothing contracted
    runway: Runway


def used_share(utilization: pl.DataFrame, pool: str) -> Fraction | None:
    """served / contracted over the minutes, of the dimension with the most; None where nothing is contracted."""
    sums = (
        utilization.filter(pl.col("pool") == pool)
        .group_by("dimension")
        .agg(pl.col("served").sum(), pl.col("contracted").sum())
    )
    shares = [Fraction(served, contracted) for _, served, contracted in sums.iter_rows() if contracted]
    return max(shares, default=None)


@dataclass(frozen=True)
class CapacityPlan:
    """The pools of a period, sized."""

    provenance: Provenance
    books: Books
    pools: dict[str, Planned]
    refused: dict[str, int]
    unknown: dict[str, int]
    alpha: Decimal

    def by(self, text: str | None = None) -> Report:
        """One row per pool, or the cost curve: one per pool and size."""
        words = choose_by(text, ("pool", "size"), ("pool",), "the plan")
        if len(words) > 1:
            raise BadInput("--by names pool and size; give one of them")
        if words == ("pool",):
            return self._report("plan", "Sizes of the pools", columns.PLAN, self._rows)
        title = "Cost of the recorded demand at every size"
        return self._report("cost_curve", title, columns.COST_CURVE, self._curves)

    @cached_property
    def _rows(self) -> pl.DataFrame:
        rows = [self._row(pool, made, made.sized) for pool, made in self.pools.items() if made.sized]
        return pl.DataFrame(rows, schema=dict(_PLAN))

    @property
    def _curves(self) -> pl.DataFrame:
        curves = [made.sized.curve for made in self.pools.values() if made.sized]
        return pl.concat([COST_CURVE.empty(), *curves])

    def _row(self, pool: str, made: Planned, sized: Sized) -> dict[str, object]:
        terms = self.books.pools.row(by_predicate=pl.col("pool") == pool, named=True)
        today, best = sized.row("today"), sized.row("best")
        tightest = max(
            made.demand.group_by("dimension")
            .agg(pl.col("demand").sum(), pl.col("available").sum())
            .iter_rows(),
            key=lambda row: Fraction(row[1], max(1, row[2])),
        )
        one = next(iter(sorted(sized.c0)), None) if len(sized.c0) == 1 else None
        denominator = made.demand["denominator"][0]
        on_demand = None if one is None else on_demand_unit_cost(sized.sizing, one)
        even = break_even(sized.sizing)
        cost_today, cost_best = today.get("cost"), best.get("cost")
        both = isinstance(cost_today, Decimal) and isinstance(cost_best, Decimal)
        return {
            "pool": pool,
            "supplier": terms["supplier"],
            "unit": terms["unit"],
            "units_today": sized.sizing.today,
            "minutes": today.get("minutes"),
            "demand_of_available_ratio": rounded_ratio(Fraction(tightest[1], tightest[2]))
            if tightest[2]
            else None,
            "above_ratio": today.get("above_ratio"),
            "spill_ratio": today.get("spill_ratio"),
            "refused_requests": self.refused.get(pool, 0),
            "c0_per_million": None if one is None else _per_million(sized.c0[one], denominator),
            "on_demand_per_million": None if on_demand is None else _per_million(on_demand, denominator),
            "break_even_ratio": None if even is None else rounded_ratio(even),
            "served_of_contracted_ratio": None if made.used is None else rounded_ratio(made.used),
            "cost_today": cost_today,
            "units_best": best.get("units"),
            "cost_best": cost_best,
            "saving": cost_today - cost_best if both else None,  # type: ignore[operator]
            "above_best_ratio": best.get("above_ratio"),
            "spill_best_ratio": best.get("spill_ratio"),
            "runway_date": made.runway.full_on,
            "order_by_date": self._order_by(pool, made.runway),
            "forecast": made.runway.made.method if made.runway.made else None,
            "lower_bound": not self.refused.get(pool) or bool(self.unknown.get(pool)),
            "currency": sized.sizing.currency,
        }

    def _order_by(self, pool: str, found: Runway) -> date | None:
        """The last day on which an order arrives before the pool is full; None where it is not, or nobody knows."""
        days = self.books.pools.row(by_predicate=pl.col("pool") == pool, named=True)["lead_time_days"]
        if found.full_on is None or days is None:
            return None
        return found.full_on - timedelta(days=days)

    def _report(self, name: str, title: str, catalogue: Sequence[Column], rows: pl.DataFrame) -> Report:
        currencies = rows["currency"].unique().to_list()
        laid_out = select(catalogue, rows.columns)
        if len(currencies) == 1:
            laid_out = columns.in_currency(laid_out, currencies[0])
        return Report(
            name=name,
            title=title,
            columns=laid_out,
            rows=rows,
            total=rows.clear(),
            provenance=self.provenance,
            notes=tuple(self._notes()),
            empty="no pool has units in force at the end of the complete part of the period",
        )

    def _notes(self) -> Iterator[str]:
        for pool, made in self.pools.items():
            if made.sized is None:
                yield f"{pool}: no units in force at the end of the period; nothing to size"
                continue
            even = break_even(made.sized.sizing)
            if made.sized.missing is not None:
                yield f"{pool}: {made.sized.missing}: no break-even and no best size, only what would spill"
            elif even is None:
                yield f"{pool}: what it served burned nothing: no break-even and no best size, only what would spill"
            elif even > 1:
                yield (
                    f"{pool}: break-even at {float(even):.0%} of its capacity, above 100 %: full or not, it costs "
                    "more than on demand. The contract buys availability and latency, not savings"
                )
            if not self.refused.get(pool):
                yield f"{pool}: no refusal names it, so demand is a lower bound: who was turned away left no trace"
            elif self.unknown.get(pool):
                yield (
                    f"{pool}: {self.unknown[pool]:,} refused requests name no model or no estimate that can be "
                    "weighed; demand is a lower bound"
                )
            if made.sized.estimated:
                yield f"{pool}: no bill covers all of the period yet; its cost is what the contract says"
            yield f"{pool}: {self._runway_said(made.runway)}"
            yield from past_order(pool, self._order_by(pool, made.runway), self.provenance.cut.until.date())

    def _runway_said(self, found: Runway) -> str:
        made = found.made
        if made is None:
            return (
                f"{float(found.weeks):.1f} weeks of the period are recorded; a forecast needs 3 whole ones, two to "
                "learn from and one to be tested on: no runway"
            )
        tested = (
            f"{made.weeks} weeks, forecast by {made.method.replace('_', ' ')}, off by {made.error_ratio:.1%} of the "
            f"mean one week ahead (the same hour a week before: {made.naive_error_ratio:.1%})"
        )
        if found.ended:
            return f"its contract ends on {found.full_on} before it is full; {tested}"
        if found.full_on is None:
            return f"not full within the days looked at; {tested}"
        return (
            f"full from {found.full_on}: the first day with P(demand > available) > {self.alpha} in an hour; "
            f"{tested}"
        )


def _per_million(quanta: Fraction, denominator: int) -> Decimal:
    """Quanta per numerator as money per million burn units: shown, never multiplied."""
    return QUANTUM * round(quanta * denominator * _MILLION)
