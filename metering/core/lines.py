"""Lines: the counts and flows of a part meet in margin lines, added up in numbers rather than text."""

from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from metering.core.costs import QUANTA_MAX, Part, said
from metering.core.effective import in_force
from metering.core.exchange import translate
from metering.core.flows import UNPRICED
from metering.core.projects import by_project
from metering.core.series import identify, numbered
from metering.core.sums import sums_at
from metering.errors import BadInput
from metering.frames.books import Books
from metering.frames.frame import SUM
from metering.frames.usage import DIMENSIONS
from metering.meters import METERS
from metering.money import from_quanta, refuse_beyond
from metering.results.margin import LINE_KEY

#: What flows into a line; the rest of its amounts are sums of these.
TAKEN: Final = ("discount", "promotional_credit")
_REVENUE: Final = ("gross", "fee", "top_up", "overage_premium", "shortfall", "breakage", *TAKEN)
KNOWN_AMOUNTS: Final = (*_REVENUE, "cost_pool", "cost_on_demand")
#: What an amount does to the margin.
_SIGN: Final = {name: 1 if name in _REVENUE and name not in TAKEN else -1 for name in KNOWN_AMOUNTS}
MOVED: Final = ("idle_share", "cause_shift")
FLOWN: Final = (*KNOWN_AMOUNTS, *MOVED, "on_demand_price")
FLAGS: Final = ("charge_unrated", "cost_unrated", "estimated")
COUNTS: Final = ("requests", "billable_requests", *METERS)
#: What a flow says of itself where it names no series.
OF: Final = ("customer", "pool", "contract", "product")
_SPAN: Final = ("effective_from", "effective_until")
_FLOW_KEY: Final = ("slice_start", "line", "series_id", *OF, "currency")


def lines_of(
    part: Part,
    flows: pl.DataFrame,
    books: Books,
    found: pl.DataFrame,
    reporting_currency: str,
    shares: pl.DataFrame | None,
) -> pl.DataFrame:
    """The lines of a part, all but in the order of results.LINE_KEY.

    flows: core.flows.FLOW with `_unmoved`; found: core.exchange.rates of its days and currencies; shares: of
    core.projects, None: lines are not told by project.
    """
    project = [] if shares is None else ["project"]
    used = part.sliced
    if shares is not None:
        counted_for = part.known.series.select("series_id", "counts_for")
        used = shares.rename({"slice_start": "quarter_start"}).join(
            counted_for, on="series_id", validate="m:1"
        )
    served = pl.col("counts_for").is_in(["charge_and_cost", "cost"])
    billable = pl.col("counts_for").is_in(["charge_and_cost", "charge"])
    zero = pl.lit(0, dtype=SUM)
    counts = used.select(
        *project,
        pl.col("quarter_start").alias("slice_start"),
        pl.lit("usage").alias("line"),
        "series_id",
        *(pl.lit(None, dtype=pl.String).alias(name) for name in OF),
        pl.lit(reporting_currency).alias("currency"),
        pl.when(billable).then(pl.col("requests")).otherwise(zero).alias("billable_requests"),
        *(pl.when(served).then(pl.col(name)).otherwise(zero).alias(name) for name in ("requests", *METERS)),
    )
    known = pl.col("reason").is_null() & ~pl.col("_unmoved")
    flows = flows.with_columns(
        pl.when(known & pl.col("into").is_in(FLOWN))
        .then(pl.col("currency"))
        .otherwise(pl.lit(reporting_currency))
        .alias("currency"),
        known.alias("_known"),
    )
    if shares is not None:
        flows = by_project(flows, shares, [*_FLOW_KEY, "side", "into", "_known", "estimated"])
    series = part.known.series
    names = [name for name in LINE_KEY if name in DIMENSIONS]
    told = identify(series.select("series_id", *names).rename({"series_id": "of_series"}), names)
    ids = told.rows.select(pl.col("of_series").alias("series_id"), pl.col("series_id").alias("line_id"))
    met = pl.concat([each.select(*_FLOW_KEY, *project) for each in (counts, flows)])
    keys, place = _numbered(met, ids, project)
    of_series = {name: told.series[name].gather(keys["line_id"]) for name in names}
    rows = keys.with_columns(
        *(pl.coalesce(name, text) if name in OF else text.alias(name) for name, text in of_series.items()),
        pl.col("slice_start").dt.date().alias("day"),
    )
    sums = _summed(counts, flows, place, keys.height)
    # in the order of the keys the lines are all but sorted
    quanta = agreed(said(rows, books), books).sort("_line").with_columns(sums)
    if quanta["slice_start"].n_unique() > quanta["day"].n_unique():
        quanta = quanta.group_by(*LINE_KEY, *project, "currency").agg(
            pl.col(*COUNTS, *FLOWN).sum(), pl.col(*FLAGS, "_unpriced").any()
        )
    return totals(_in_one_currency(quanta, found, reporting_currency))


def _numbered(
    met: pl.DataFrame, ids: pl.DataFrame, project: Sequence[str]
) -> tuple[pl.DataFrame, npt.NDArray[np.int64]]:
    """The lines that rows (_FLOW_KEY) belong to, `_line` from 0 on by slice and line, and the place of each row.

    ids: of a series_id its line_id, what a line tells of it. Rows of a series, nearly all, are told apart by
    numbers; only others by their text.
    """
    named = ["slice_start", "line", "currency", *project]
    of_series = met.select(
        pl.col("series_id").is_not_null() & pl.all_horizontal(pl.col(OF).is_null())
    ).to_series()
    mine, others = met.filter(of_series), met.filter(~of_series)
    line_ids = np.zeros(int(ids["series_id"].max() or 0) + 1, np.int64)  # type: ignore[arg-type]  # integers
    line_ids[ids["series_id"].to_numpy()] = ids["line_id"].to_numpy()
    alike = identify(mine.select(*named, pl.lit(0).alias("_of")), named)
    width = int(ids["line_id"].max() or 0) + 1  # type: ignore[arg-type]  # integers
    codes = alike.rows["series_id"].cast(pl.Int64).to_numpy() * width
    different, number = numbered(pl.Series(codes + line_ids[mine["series_id"].to_numpy()]))
    usage = alike.series.select(pl.col(named).gather(different // width)).with_columns(
        (different % width).cast(pl.UInt32).alias("line_id"),
        *(pl.lit(None, dtype=pl.String).alias(name) for name in OF),
    )
    others = others.join(ids, on="series_id", how="left", validate="m:1", maintain_order="left")
    key = ["slice_start", "line", "line_id", *OF, "currency", *project]
    rest = identify(others.select(*key, pl.lit(0).alias("_of")), key)
    keys = pl.concat([rest.series.select(key), usage.select(key)])
    order = keys.select(pl.arg_sort_by("slice_start", "line", maintain_order=True)).to_series()
    rank = np.empty(keys.height, np.int64)
    rank[order.to_numpy()] = np.arange(keys.height)
    place = np.empty(met.height, np.int64)
    held = of_series.to_numpy()
    place[held] = rank[number.to_numpy() + rest.series.height]
    place[~held] = rank[rest.rows["series_id"].to_numpy()]
    return keys[order].with_row_index("_line"), place


def _summed(
    counts: pl.DataFrame, flows: pl.DataFrame, place: npt.NDArray[np.int64], lines: int
) -> list[pl.Series]:
    """Counts, amounts and flags of the lines; place: the line of each row of the counts, then of the flows."""
    of_counts, of_flows = place[: counts.height], place[counts.height :]

    def flag(name: str, holds: pl.Expr) -> pl.Series:
        held = np.zeros(lines, np.bool_)
        held[of_flows[flows.select(holds.fill_null(value=False)).to_series().to_numpy()]] = True
        return pl.Series(name, held)

    def flown(into: str) -> pl.Series:
        here = flows.select(pl.col("_known") & (pl.col("into") == into).fill_null(value=False)).to_series()
        if not here.any():
            return pl.zeros(lines, dtype=SUM, eager=True).alias(into)
        return sums_at(of_flows[here.to_numpy()], flows["quanta"].filter(here).fill_null(0), lines).alias(
            into
        )

    return [
        *(sums_at(of_counts, counts[name], lines).alias(name) for name in COUNTS),
        *(flown(into) for into in FLOWN),
        flag("charge_unrated", ~pl.col("_known") & pl.col("side").is_in(["charge", "fee"])),
        flag("cost_unrated", ~pl.col("_known") & (pl.col("side") == "cost")),
        flag("estimated", pl.col("estimated")),
        flag("_unpriced", pl.col("into") == UNPRICED),
    ]


def agreed(rows: pl.DataFrame, books: Books) -> pl.DataFrame:
    """Give rows with slice_start, customer and contract (null: that in force for the customer) contract and plan.

    A contract that has ended keeps its last plan: what it still owes is of that plan.
    """
    who = rows.select("slice_start", "customer").unique().filter(pl.col("customer").is_not_null())
    bound = books.contracts.select("customer", *_SPAN, pl.col("contract").alias("_contract"))
    who = in_force(who, bound, at="slice_start", by=["customer"])
    rows = rows.join(who, on=["slice_start", "customer"], how="left", validate="m:1")
    rows = rows.with_columns(pl.coalesce("contract", "_contract").alias("contract")).drop("_contract")
    planned = books.contract_terms.filter(pl.col("plan").is_not_null())
    if planned.is_empty():
        return rows.with_columns(pl.lit(None, dtype=pl.String).alias("plan"))
    terms = books.contract_terms.filter(pl.col("contract").is_in(planned["contract"].implode()))
    which = rows.select("slice_start", "contract").unique().drop_nulls("contract").sort("slice_start")
    plans = which.join_asof(
        terms.select("contract", "effective_from", "plan").sort("effective_from"),
        left_on="slice_start",
        right_on="effective_from",
        by="contract",
        strategy="backward",
        check_sortedness=False,
    ).select("slice_start", "contract", "plan")
    return rows.join(plans, on=["slice_start", "contract"], how="left", validate="m:1")


def _in_one_currency(quanta: pl.DataFrame, found: pl.DataFrame, into: str) -> pl.DataFrame:
    """Lines per currency -> lines in one, each amount translated once, with fx_effect in quanta."""
    effects = ("fx_effect", "revenue_fx_effect")
    projects = "project" in quanta.columns
    quanta = quanta.with_columns(pl.lit(0, dtype=SUM).alias(name) for name in effects)
    abroad = quanta.filter(pl.col("currency") != into)
    if abroad.is_empty():
        # the lines of a day may still have been cut by currency alone
        return quanta.with_columns(pl.lit(into).alias("currency"))
    found = found.rename({"contract": "at_contract"})
    abroad = abroad.join(found, on=["day", "currency"], how="left", validate="m:1")
    for name in FLOWN:
        refuse_beyond(abroad, name, QUANTA_MAX, "it cannot be translated exactly; void the events behind it")
    about = abroad.select(
        pl.max_horizontal(pl.col(name).abs() for name in FLOWN).cast(pl.Float64)
        * pl.max_horizontal("month_average", "at_contract").cast(pl.Float64).alias("about")
    ).max()
    if (about.item() or 0) > QUANTA_MAX * 1e12:
        raise BadInput(
            f"an amount is beyond {QUANTA_MAX} once translated into {into}; correct the exchange rate"
        )
    average, contract = pl.col("month_average"), pl.col("at_contract")
    moved = pl.any_horizontal(pl.col(name) != 0 for name in KNOWN_AMOUNTS)
    if projects:
        # a line is translated once: of its projects each gets what it adds to the line so far
        abroad = abroad.sort("project", nulls_last=False).with_columns(
            pl.col(name).cum_sum().over(*LINE_KEY, "currency").alias(f"_with_{name}") for name in FLOWN
        )

    def told(name: str, rate: pl.Expr) -> pl.Expr:
        if not projects:
            return translate(pl.col(name), rate)
        until = pl.col(f"_with_{name}")
        return translate(until, rate) - translate(until - pl.col(name), rate)

    def effect(names: Sequence[str]) -> pl.Expr:
        apart = [(told(name, average) - told(name, contract)) * _SIGN[name] for name in names]
        whole = pl.sum_horizontal(apart, ignore_nulls=False)
        return pl.when(moved).then(whole).otherwise(pl.lit(0, dtype=SUM))

    abroad = abroad.with_columns(
        effect(KNOWN_AMOUNTS).alias("fx_effect"),
        effect(_REVENUE).alias("revenue_fx_effect"),
        *(told(name, average).alias(name) for name in FLOWN),
        (pl.col("estimated") | pl.col("rate_estimated")).alias("estimated"),
    ).with_columns(pl.col("fx_effect").is_null().alias("_no_contract_rate"))
    both = pl.concat([quanta.filter(pl.col("currency") == into), abroad], how="diagonal")
    return (
        both.group_by(*LINE_KEY, *(["project"] if projects else []))
        .agg(
            pl.col(*COUNTS, *FLOWN, *effects).sum(),
            pl.col(*FLAGS, "_unpriced").any(),
            pl.col("_no_contract_rate").any().fill_null(value=False),
        )
        .with_columns(
            *(pl.when(~pl.col("_no_contract_rate")).then(pl.col(name)).alias(name) for name in effects),
            pl.lit(into).alias("currency"),
        )
    )


def totals(quanta: pl.DataFrame) -> pl.DataFrame:
    """Known amounts in quanta -> MONEY, with those that are sums of them. `_unpriced`: no on_demand_price."""
    price = pl.when(~pl.col("_unpriced")).then(pl.col("on_demand_price"))
    quanta = (
        quanta.with_columns(
            (pl.col("gross") - pl.col("discount")).alias("charge"),
            pl.sum_horizontal(pl.col(name) * _SIGN[name] for name in _REVENUE).alias("revenue"),
            (pl.col("cost_pool") + pl.col("cost_on_demand")).alias("cost"),
            price.alias("on_demand_price"),
        )
        .with_columns(
            (pl.col("cost") + pl.col("idle_share")).alias("cost_loaded"),
            (pl.col("cost") + pl.col("cause_shift")).alias("cost_by_cause"),
            pl.when(~pl.col("cost_unrated"))
            .then(pl.col("on_demand_price") - pl.col("cost"))
            .alias("saving_against_on_demand"),
        )
        .drop("_unpriced")
    )
    met = quanta.select(pl.col(_MONEY_COLUMNS).abs().max().fill_null(0))
    for name in _MONEY_COLUMNS:
        if met[name].item() > QUANTA_MAX:
            refuse_beyond(
                quanta, name, QUANTA_MAX, "no report can carry it; void the events or correct the price"
            )

    return quanta.with_columns(from_quanta(pl.col(name)).alias(name) for name in _MONEY_COLUMNS)


_MONEY_COLUMNS: Final = (
    *(*FLOWN, "charge", "revenue", "cost", "cost_loaded", "cost_by_cause"),
    *("saving_against_on_demand", "fx_effect", "revenue_fx_effect"),
)
