"""Scenarios: books and recorded usage changed as if, so that the reports answer what would have been."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final

import polars as pl

from metering.core.capacity import Capacity, capacity
from metering.errors import BadInput, WrongWorld
from metering.frames.books import Books
from metering.frames.frame import SUM
from metering.frames.usage import POOL_CUSTOMER_USAGE, POOL_USAGE, SUMS, USAGE
from metering.money import MONEY, QUANTUM, decimal_to_quanta, split_largest_remainder
from metering.periods import MINUTE, Period, month_start, next_month_start

#: What usage per minute has in common with usage per quarter hour: a cell.
_CELL: Final = tuple(name for name in POOL_CUSTOMER_USAGE.key if name != "minute")
_QUANTITIES: Final = tuple(SUMS)
_COSTED: Final = ("charge_and_cost", "cost")
#: Shares of a minute's usage are counted in parts of this.
_WHOLE: Final = 2**40
_NOTHING: Final = pl.lit(0, dtype=SUM)
_BOUGHT: Final = (
    "pools",
    "capacity_steps",
    "capacity_fees",
    "burndown",
    "multipliers",
    "set_aside",
    "entitlements",
)


@dataclass(frozen=True)
class Traffic:
    """The same usage twice: per quarter hour and series (USAGE), and of pools per minute (POOL_CUSTOMER_USAGE).

    The minutes of a quarter hour sum to its series that count as cost, cell by cell.
    """

    usage: pl.DataFrame
    minutes: pl.DataFrame

    def pool_usage(self) -> pl.DataFrame:
        """The minutes without their customers: frames.POOL_USAGE."""
        return POOL_USAGE.conform(self.minutes.group_by(POOL_USAGE.key).agg(pl.col(*_QUANTITIES).sum()))


@dataclass(frozen=True)
class Which:
    """Which traffic: of one customer, model served, pool (`-`: meant for none), from an instant on."""

    customer: str | None = None
    model: str | None = None
    pool: str | None = None
    effective_from: datetime | None = None

    def rows(self, at: str) -> pl.Expr:
        """The condition on rows whose instant is `at`."""
        held = pl.lit(value=True)
        for column, value in (("customer", self.customer), ("model_served", self.model)):
            if value is not None:
                held = held & (pl.col(column) == value)
        if self.pool is not None:
            meant = (
                pl.col("pool").fill_null("") == ""
                if self.pool == "-"
                else pl.col("pool").eq_missing(self.pool)
            )
            held = held & meant
        if self.effective_from is not None:
            held = held & (pl.col(at) >= self.effective_from)
        return held


# ---- books ---------------------------------------------------------------------------------------------


def without(books: Books, pool: str, since: datetime) -> Books:
    """The books in which a pool ends at `since`: its steps, fees, what is set aside, entitlements; its bills go."""
    changed: dict[str, Any] = {}
    for name in ("capacity_steps", "capacity_fees", "set_aside", "entitlements"):
        frame: pl.DataFrame = getattr(books, name)
        changed[name] = pl.concat([frame.filter(pl.col("pool") != pool), _until(frame, pool, since)])
    return without_bills(replace(books, **changed), [pool])


def without_bills(books: Books, pools: Sequence[str]) -> Books:
    """The books without what was billed for these pools: what a scenario costs is what its contract says."""
    billed = (pl.col("object_kind") == "pool") & pl.col("object").is_in(list(pools))
    return replace(books, bill_lines=books.bill_lines.filter(~billed.fill_null(value=False)))


def bought(books: Books, other: Books, pool: str) -> Books:
    """The books with a pool as `other` books have it, in place of what they said of it."""
    changed: dict[str, Any] = {}
    for name in _BOUGHT:
        mine: pl.DataFrame = getattr(books, name)
        theirs: pl.DataFrame = getattr(other, name)
        rows = mine if name == "entitlements" else theirs
        changed[name] = pl.concat([mine.filter(pl.col("pool") != pool), rows.filter(pl.col("pool") == pool)])
    return without_bills(replace(books, **changed), [pool])


def resized(
    books: Books, pool: str, since: datetime, *, units: int | None = None, factor: Decimal | None = None
) -> Books:
    """The books in which a pool has `units` in every dimension, or `factor` x its units, from `since` on.

    A factor is rounded up to whole units. Fees per month and for a span grow with the units (of the dimension
    with the most), fees per unit by themselves: the price of a unit stays.
    """
    before = _from(books.capacity_steps, pool, since)
    if factor is not None:
        share = pl.lit(decimal_to_quanta(factor), dtype=SUM)
        one = pl.lit(10**12, dtype=SUM)
        new = ((pl.col("units").cast(SUM) * share + one - 1) // one).cast(pl.Int64)
    else:
        new = pl.lit(units, dtype=pl.Int64)
    after = before.with_columns(new.alias("units"))
    steps = pl.concat(
        [
            books.capacity_steps.filter(pl.col("pool") != pool),
            _until(books.capacity_steps, pool, since),
            after,
        ]
    )
    schedule = _schedule(books, pool)
    fees: list[dict[str, Any]] = []
    for fee in books.capacity_fees.filter(pl.col("pool") == pool).iter_rows(named=True):
        alone = pl.DataFrame([fee], schema=books.capacity_fees.schema)
        was = now = _from(alone, pool, since).to_dicts()
        if fee["per"] in ("month", "span"):
            now = [piece for rest in was for piece in _grown(rest, before, after)]
            was = [piece for rest in was for piece in _grown(rest, before, before)]
        fees += _changed_fee(fee, was, now, _until(alone, pool, since).to_dicts(), schedule, grown=True)
    kept = books.capacity_fees.filter(pl.col("pool") != pool)
    changed = pl.concat([kept, pl.DataFrame(fees, schema=books.capacity_fees.schema)])
    return without_bills(replace(books, capacity_steps=steps, capacity_fees=changed), [pool])


def _schedule(books: Books, pool: str) -> str:
    return str(books.pools.row(by_predicate=pl.col("pool") == pool, named=True)["recognition"])


def _changed_fee(
    fee: Mapping[str, Any],
    old: list[dict[str, Any]],
    new: list[dict[str, Any]],
    past: list[dict[str, Any]],
    schedule: str,
    *,
    grown: bool,
) -> list[dict[str, Any]]:
    """The rows of a fee of which `past` stays, and what came after it, `old`, is now `new`.

    A fee whose recognition spreads it over its span is left whole where nothing changes: its parts would be
    spread otherwise. Where the units of capacity_hours change, it stays whole too, and grows as a whole. What is
    billed in advance is paid: a later change adds what is dearer, billed when it begins, and returns nothing.
    """
    if old == new and fee["per"] in ("month", "span"):
        return [dict(fee)]
    if fee["per"] == "span" and schedule == "as_billed" and all(one["per"] == "span" for one in new):
        if not past:
            return [{**fee, "amount": sum((one["amount"] for one in new), Decimal(0))}]
        more = [{**b, "amount": b["amount"] - a["amount"]} for a, b in zip(old, new, strict=True)]
        return [dict(fee), *(one for one in more if one["amount"] > 0)]
    total = _billed([fee]) if fee["effective_until"] is not None else 0
    if grown and schedule == "capacity_hours" and total and fee["per"] in ("month", "span"):
        share = Fraction(total - _billed(old) + _billed(new), total)
        return [{**fee, "amount": QUANTUM * int(decimal_to_quanta(fee["amount"]) * share)}]
    return past + new


def _billed(fees: Sequence[Mapping[str, Any]]) -> int:
    """What fees per month or for a span bill in all, in quanta."""
    total = 0
    for fee in fees:
        amount, start, until = decimal_to_quanta(fee["amount"]), fee["effective_from"], fee["effective_until"]
        if fee["per"] == "span":
            total += amount
            continue
        while start < until:
            end = next_month_start(start)
            total += (
                amount * int((min(end, until) - start) / MINUTE) // int((end - month_start(start)) / MINUTE)
            )
            start = end
    return total


def _grown(fee: Mapping[str, Any], before: pl.DataFrame, after: pl.DataFrame) -> list[dict[str, Any]]:
    """A fee cut at the steps of its pool, each part in proportion to its new units."""
    here = pl.col("dimension") == fee["dimension"] if fee["dimension"] is not None else pl.lit(value=True)

    def sizes(steps: pl.DataFrame) -> dict[tuple[datetime, datetime | None], int]:
        spans = steps.filter(here).group_by("effective_from", "effective_until").agg(pl.col("units").max())
        return {(start, until): units for start, until, units in spans.iter_rows()}

    old, new = sizes(before), sizes(after)
    whole_start, whole_until = fee["effective_from"], fee["effective_until"]
    pieces: list[dict[str, Any]] = []
    for (start, until), units in sorted(old.items(), key=lambda pair: pair[0][0]):
        begin = max(start, whole_start)
        end = min((edge for edge in (until, whole_until) if edge is not None), default=None)
        if end is not None and begin >= end:
            continue
        amount = decimal_to_quanta(fee["amount"])
        if fee["per"] == "span":
            amount = (
                amount
                * int((end - begin) / timedelta(minutes=1))
                // int((whole_until - whole_start) / timedelta(minutes=1))
            )
        if units:
            amount = amount * new[(start, until)] // units
        pieces.append({**fee, "effective_from": begin, "effective_until": end, "amount": QUANTUM * amount})
    return pieces


def delayed(books: Books, pool: str, days: int) -> Books:
    """The books in which a pool begins `days` later: what it has before that is lost, and so are its fees then."""
    since = books.pools.row(by_predicate=pl.col("pool") == pool, named=True)["term_from"] + timedelta(
        days=days
    )
    changed: dict[str, Any] = {}
    for name in ("capacity_steps", "capacity_fees", "set_aside", "entitlements"):
        frame: pl.DataFrame = getattr(books, name)
        late = _from(frame, pool, since)
        changed[name] = pl.concat([frame.filter(pl.col("pool") != pool), late.select(frame.columns)])
    return without_bills(replace(books, **changed), [pool])


def with_fee(
    books: Books, pool: str, fee: str, since: datetime, *, amount: Decimal, per: str | None = None
) -> Books:
    """The books in which a fee of a pool is another from `since` on; `per` None: as it is.

    The amount of a fee for a span is that of its whole span; from `since` on its part of the time counts.
    """
    schedule = _schedule(books, pool)
    rows = (pl.col("pool") == pool) & (pl.col("fee") == fee)
    fees: list[dict[str, Any]] = []
    for held in books.capacity_fees.filter(rows).iter_rows(named=True):
        one = pl.DataFrame([held], schema=books.capacity_fees.schema)
        other = one.with_columns(
            pl.lit(amount).cast(MONEY).alias("amount"), pl.lit(per or held["per"]).alias("per")
        )
        old, new = _from(one, pool, since).to_dicts(), _from(other, pool, since).to_dicts()
        past = _until(one, pool, since).to_dicts()
        fees += _changed_fee(held, old, new, past, schedule, grown=False)
    changed = [books.capacity_fees.filter(~rows), pl.DataFrame(fees, schema=books.capacity_fees.schema)]
    return without_bills(replace(books, capacity_fees=pl.concat(changed)), [pool])


def _until(frame: pl.DataFrame, pool: str, since: datetime) -> pl.DataFrame:
    """The rows of a pool cut at an instant: what lies before. A fee for a span keeps the part of its amount."""
    held = frame.filter((pl.col("pool") == pool) & (pl.col("effective_from") < since))
    end = pl.when(pl.col("effective_until") <= since).then(pl.col("effective_until")).otherwise(pl.lit(since))
    return _cut(held, pl.col("effective_from"), end.cast(frame.schema["effective_until"]))


def _from(frame: pl.DataFrame, pool: str, since: datetime) -> pl.DataFrame:
    """The rows of a pool cut at an instant: what lies from there on."""
    ends = pl.col("effective_until")
    held = frame.filter((pl.col("pool") == pool) & (ends.is_null() | (ends > since)))
    start = pl.max_horizontal("effective_from", pl.lit(since).cast(frame.schema["effective_from"]))
    return _cut(held, start, ends)


def _cut(rows: pl.DataFrame, start: pl.Expr, until: pl.Expr) -> pl.DataFrame:
    if "per" in rows.columns and (rows["per"] == "span").any():
        pieces = []
        for fee in rows.with_columns(start.alias("_start"), until.alias("_until")).iter_rows(named=True):
            begin, end = fee.pop("_start"), fee.pop("_until")
            if fee["per"] == "span":
                whole = int((fee["effective_until"] - fee["effective_from"]) / timedelta(minutes=1))
                left = int((begin - fee["effective_from"]) / timedelta(minutes=1))
                right = int((end - fee["effective_from"]) / timedelta(minutes=1))
                quanta = decimal_to_quanta(fee["amount"])
                fee["amount"] = QUANTUM * (quanta * right // whole - quanta * left // whole)
            pieces.append({**fee, "effective_from": begin, "effective_until": end})
        return pl.DataFrame(pieces, schema=rows.schema)
    return rows.with_columns(start.alias("effective_from"), until.alias("effective_until")).select(
        rows.columns
    )


# ---- traffic -------------------------------------------------------------------------------------------


def scaled(traffic: Traffic, which: Which, factor: Decimal) -> Traffic:
    """Every quantity of the chosen traffic x factor, rounded down per minute, and per row where it has no minutes.

    Charges follow: the rows of a quarter hour that only charge are scaled as they are.
    """
    share = pl.lit(decimal_to_quanta(factor), dtype=SUM)
    one = pl.lit(10**12, dtype=SUM)

    def grown(name: str) -> pl.Expr:
        quantity = pl.col(name)
        return (quantity.sign() * (quantity.abs() * share // one)).cast(SUM)

    chosen = which.rows("minute")
    touched = traffic.minutes.filter(chosen)
    new = touched.with_columns(grown(name).alias(name) for name in _QUANTITIES)
    cells = _by_cell(new)
    loose = which.rows("quarter_start") & ~_in_cells()
    usage = pl.concat(
        [
            traffic.usage.filter(~which.rows("quarter_start")),
            traffic.usage.filter(loose).with_columns(grown(name).alias(name) for name in _QUANTITIES),
            _shared(traffic.usage.filter(which.rows("quarter_start") & _in_cells()), cells),
        ]
    )
    return conformed(usage, pl.concat([traffic.minutes.filter(~chosen), new]))


def moved(traffic: Traffic, which: Which, share: Decimal, into: Mapping[str, str]) -> Traffic:
    """A share of the chosen traffic, rounded down per minute, runs as another model, or is meant for another pool.

    into: some of model_served, provider, pool. What comes to a pool counts as overflow until `settled` finds room
    in it. Usage that was meant for no pool has no minutes: it is laid evenly over those of its quarter hour.
    """
    traffic = _with_minutes(traffic, which) if "pool" in into else traffic
    part = pl.lit(decimal_to_quanta(share), dtype=SUM)
    one = pl.lit(10**12, dtype=SUM)
    to = dict(into) | ({"ran_on": "overflow"} if "pool" in into else {})
    chosen = which.rows("minute")
    if "pool" in into:
        chosen = chosen & (pl.col("pool") != into["pool"])
    rows = traffic.minutes.filter(chosen)
    gone = rows.with_columns((pl.col(name) * part // one).cast(SUM).alias(name) for name in _QUANTITIES)
    traffic = carried(traffic, gone, to)
    if "pool" in into:
        return traffic
    # without minutes: what ran on demand and was meant for no pool
    loose = which.rows("quarter_start") & ~_in_cells() & pl.col("counts_for").is_in(list(_COSTED))
    stays = traffic.usage.filter(~loose)
    leaves = traffic.usage.filter(loose)
    went = leaves.with_columns((pl.col(name) * part // one).cast(SUM).alias(name) for name in _QUANTITIES)
    rest = leaves.with_columns(
        (pl.col(name) - pl.col(name) * part // one).cast(SUM).alias(name) for name in _QUANTITIES
    )
    went = went.with_columns(pl.lit(value).alias(name) for name, value in into.items())
    return conformed(pl.concat([stays, rest, went.select(stays.columns)]), traffic.minutes)


@dataclass(frozen=True)
class Settled:
    """traffic: after pools took in or gave off what they could. stuck: pools whose excess has nowhere else to run."""

    traffic: Traffic
    stuck: tuple[str, ...]


def settled(
    traffic: Traffic,
    before: Capacity,
    books: Books,
    period: Period,
    arrived: Sequence[str],
    pools: Sequence[str],
) -> Settled:
    """Let the pools serve what fits in each minute: overflow moves in, burn above what is available moves out.

    before: the capacity of the recorded usage. books: of the scenario. pools: those that the scenario touches.

        in    where a pool has more room (available - burn) than it had, or traffic came to it: of its overflow,
              the largest share with which every dimension still has room; where it only burns less, no more than
              what gave way
        out   of what ran in the pool, the smallest share with which every dimension is within available +
              the overrun that was recorded in that minute: a request lands its whole burn on the minute in which
              it ended, and that is no reason to think that it would have been turned away

    Shares are rounded down to the token in favour of the limit. What moves out runs on overflow, or on demand
    where no capacity is in force; at the provider that it has if that has a cost book for the model, else at
    the first provider that has one. Without any it stays: overrun. `arrived`: pools to which traffic was moved.
    """
    stuck: set[str] = set()
    by = ["pool", "dimension", "minute"]
    of = pl.col("pool").is_in(list(pools))
    rows = traffic.minutes.filter(of & pl.col("minute").is_between(period.start, period.until, closed="left"))
    within = replace(traffic, minutes=rows)
    state = capacity(within.pool_usage(), books, period).utilization.filter(of)
    was = before.utilization.select(
        *by,
        pl.col("available").alias("_was"),
        (pl.col("available") - pl.col("burn")).alias("_room"),
        pl.col("overrun").alias("_overrun"),
    )
    state = (
        state.select(*by, "available", pl.col("burn").alias("_burn"), pl.col("spill").alias("_spill"))
        .join(was, on=by, how="left", validate="1:1")
        .with_columns(pl.col("_was", "_room", "_overrun").fill_null(0))
    )
    whole = pl.lit(_WHOLE, dtype=SUM)
    limit = pl.col("available") + pl.col("_overrun")
    kept = pl.when(pl.col("_burn") > limit).then(part_of(limit, pl.col("_burn"))).otherwise(whole)
    room = pl.col("available") - pl.col("_burn")
    grown = (pl.col("available") > pl.col("_was")) | pl.col("pool").is_in(list(arrived))
    nothing_free = pl.lit(0, dtype=SUM)
    # where only the burn became less, no more moves in than it gave way
    free = pl.max_horizontal(
        pl.when(grown).then(room).otherwise(pl.min_horizontal(room, room - pl.col("_room"))), nothing_free
    )
    fits = pl.when(pl.col("_spill") > free).then(part_of(free, pl.col("_spill"))).otherwise(whole)
    more = (room > pl.col("_room")) | pl.col("pool").is_in(list(arrived))
    shares = state.group_by("pool", "minute").agg(
        kept.min().alias("_kept"), fits.min().alias("_fits"), more.any().alias("_more")
    )
    # nothing contracted: nothing runs there
    nothing = rows.select("pool", "minute").unique().join(shares, on=["pool", "minute"], how="anti")
    shares = pl.concat(
        [
            shares.with_columns(pl.lit("overflow").alias("_to")),
            nothing.select(
                "pool",
                "minute",
                pl.lit(0, dtype=SUM).alias("_kept"),
                pl.lit(0, dtype=SUM).alias("_fits"),
                pl.lit(value=False).alias("_more"),
                pl.lit("on_demand").alias("_to"),
            ),
        ]
    )
    touched = rows.join(shares, on=["pool", "minute"], validate="m:1")
    comes = touched.filter((pl.col("ran_on") == "overflow") & pl.col("_more") & (pl.col("_fits") > 0))
    comes = comes.with_columns((pl.col(name) * pl.col("_fits") // whole).alias(name) for name in _QUANTITIES)
    goes = touched.filter((pl.col("ran_on") == "pool") & (pl.col("_kept") < whole)).with_columns(
        (pl.col(name) - pl.col(name) * pl.col("_kept") // whole).alias(name) for name in _QUANTITIES
    )
    goes, held = elsewhere(goes, books)
    stuck.update(held["pool"].unique())
    loose = touched.filter((pl.col("ran_on") == "overflow") & (pl.col("_to") == "on_demand"))
    traffic = carried(traffic, comes.select(rows.columns), {"ran_on": "pool"})
    for to in ("overflow", "on_demand"):
        for provider in sorted(goes["_provider"].unique()):
            some = goes.filter((pl.col("_to") == to) & (pl.col("_provider") == provider))
            traffic = carried(traffic, some.select(rows.columns), {"ran_on": to, "provider": provider})
    traffic = carried(traffic, loose.select(rows.columns), {"ran_on": "on_demand"})
    return Settled(traffic, tuple(sorted(stuck)))


def part_of(part: pl.Expr, whole: pl.Expr) -> pl.Expr:
    """part / whole in 2**-40, rounded down, by long division in two limbs of 20 bits (part <= whole <= 2**86)."""
    limb = pl.lit(2**20, dtype=SUM)
    safe = pl.max_horizontal(whole, pl.lit(1, dtype=SUM))
    first = part * limb
    second = first % safe * limb
    return first // safe * limb + second // safe


def elsewhere(goes: pl.DataFrame, books: Books) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Where what leaves a pool runs: (with `_provider`, without any provider that sells the model on demand)."""
    sold = books.models.filter(pl.col("cost_book").is_not_null()).select(
        pl.col("model").alias("model_served"), pl.col("provider").alias("_provider")
    )
    first = sold.group_by("model_served").agg(pl.col("_provider").min())
    own = sold.with_columns(pl.col("_provider").alias("provider"), pl.lit(value=True).alias("_own"))
    found = (
        goes.join(first, on="model_served", how="left", validate="m:1")
        .join(own.drop("_provider"), on=["model_served", "provider"], how="left", validate="m:1")
        .with_columns(
            pl.when(pl.col("_own").fill_null(value=False))
            .then("provider")
            .otherwise("_provider")
            .alias("_provider")
        )
        .drop("_own")
    )
    there = pl.col("_provider").is_not_null()
    return found.filter(there), found.filter(~there)


def _in_cells() -> pl.Expr:
    return pl.col("pool").is_not_null() & pl.col("counts_for").is_in(list(_COSTED))


def _by_cell(minutes: pl.DataFrame) -> pl.DataFrame:
    return minutes.group_by(pl.col("minute").dt.truncate("15m").alias("quarter_start"), *_CELL).agg(
        pl.col(*_QUANTITIES).sum()
    )


def carried(traffic: Traffic, gone: pl.DataFrame, to: Mapping[str, str]) -> Traffic:
    """Move quantities (rows of the minutes, none larger than theirs) to the cells that `to` makes of their own.

    Per quarter hour and cell each quantity is split over the series by what they have, largest remainder
    first: nothing is lost, nothing becomes negative.
    """
    gone = gone.filter(pl.any_horizontal(pl.col(name) != 0 for name in _QUANTITIES))
    if not gone.height:
        return traffic
    went = gone.with_columns(pl.lit(value).alias(name) for name, value in to.items())
    taken = gone.with_columns((_NOTHING - pl.col(name)).alias(name) for name in _QUANTITIES)
    minutes = pl.concat([traffic.minutes, taken, went.select(gone.columns)])
    cells = _by_cell(gone)
    of = traffic.usage.filter(_in_cells()).join(
        cells.select("quarter_start", *_CELL), on=["quarter_start", *_CELL], how="semi"
    )
    parts = _shared(of, cells)
    left = parts.with_columns((_NOTHING - pl.col(name)).alias(name) for name in _QUANTITIES)
    came = parts.with_columns(pl.lit(value).alias(name) for name, value in to.items())
    return conformed(pl.concat([traffic.usage, left, came.select(parts.columns)]), minutes)


def _shared(usage: pl.DataFrame, cells: pl.DataFrame) -> pl.DataFrame:
    """The series of each quarter hour and cell with the cell's quantities, split by what the series have."""
    by = ["quarter_start", *_CELL]
    usage = usage.group_by(USAGE.key).agg(pl.col(*_QUANTITIES).sum()).select(*USAGE.columns).sort(USAGE.key)
    rows = usage.with_row_index("_row")
    numbered = cells.with_row_index("_cell")
    held = rows.select("_row", *by, *_QUANTITIES).join(numbered.select(*by, "_cell"), on=by, validate="m:1")
    some = pl.any_horizontal(pl.col(name) != 0 for name in _QUANTITIES)
    nowhere = rows.filter(some).join(held.select("_row"), on="_row", how="anti")
    if nowhere.height:
        raise WrongWorld(
            f"usage by quarter hour has no minutes in {nowhere.sort('_row').row(0, named=True)}; "
            "run `metering verify`, then rebuild the rollups"
        )
    long = held.unpivot(_QUANTITIES, index=["_row", "_cell"], variable_name="_name", value_name="_weight")
    totals = numbered.unpivot(_QUANTITIES, index=["_cell"], variable_name="_name", value_name="_total")
    long = long.join(totals.filter(pl.col("_total") != 0), on=["_cell", "_name"], validate="m:1")
    negative = long.filter((pl.col("_weight") < 0) | (pl.col("_total") < 0))
    if negative.height:
        row = usage.row(int(negative["_row"][0]), named=True)
        raise BadInput(
            f"usage is negative in {row}: a compensating entry outweighs its target; run `metering verify`"
        )
    long = split_largest_remainder(
        long, group=["_cell", "_name"], total="_total", weight="_weight", tie_break=["_row"], into="_part"
    )
    wide = long.group_by("_row").agg(
        pl.col("_part").filter(pl.col("_name") == name).sum().alias(name) for name in _QUANTITIES
    )
    return rows.drop(_QUANTITIES).join(wide, on="_row", validate="1:1").select(*USAGE.columns)


def _with_minutes(traffic: Traffic, which: Which) -> Traffic:
    """Give the chosen usage that was meant for no pool minutes, as evenly as whole tokens go: pool '' until moved."""
    loose = which.rows("quarter_start") & pl.col("pool").is_null() & pl.col("counts_for").is_in(list(_COSTED))
    rows = traffic.usage.filter(loose)
    if not rows.height:
        return traffic
    named = rows.with_columns(pl.lit("").alias("pool"))
    minute = pl.lit(15, dtype=SUM)
    whole = pl.col(*_QUANTITIES)
    spread = (
        _quarters_by_cell(named)
        .join(pl.DataFrame({"_at": range(15)}), how="cross")
        .with_columns(
            (pl.col("quarter_start") + pl.duration(minutes=pl.col("_at"))).alias("minute"),
            whole // minute + (pl.col("_at").cast(SUM) < whole % minute).cast(SUM),
        )
    )
    minutes = spread.select(*POOL_CUSTOMER_USAGE.columns)
    return Traffic(pl.concat([traffic.usage.filter(~loose), named]), pl.concat([traffic.minutes, minutes]))


def _quarters_by_cell(usage: pl.DataFrame) -> pl.DataFrame:
    return usage.group_by("quarter_start", *_CELL).agg(pl.col(*_QUANTITIES).sum())


def conformed(usage: pl.DataFrame, minutes: pl.DataFrame) -> Traffic:
    """Traffic of rows whose keys may repeat: summed, without what is nothing."""
    some = pl.any_horizontal(pl.col(name) != 0 for name in _QUANTITIES)
    # what was laid out over minutes and did not move is again meant for no pool
    usage = usage.with_columns(
        pl.when(pl.col("pool") == "").then(None).otherwise(pl.col("pool")).alias("pool")
    )
    usage = usage.group_by(USAGE.key).agg(pl.col(*_QUANTITIES).sum()).filter(some)
    minutes = minutes.filter(pl.col("pool") != "")
    minutes = minutes.group_by(POOL_CUSTOMER_USAGE.key).agg(pl.col(*_QUANTITIES).sum()).filter(some)
    return Traffic(USAGE.conform(usage), POOL_CUSTOMER_USAGE.conform(minutes))
