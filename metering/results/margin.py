"""Declared frames of margin: lines and their breakdowns, cells, deciles, the bridge."""

from collections.abc import Sequence
from typing import Final

import polars as pl

from metering.frames.frame import SUM, Frame
from metering.meters import METERS
from metering.money import MONEY, RATIO
from metering.results.rates import Columns

#: What a margin line is about. Null: not said (idle has no customer, a fee no product).
LINE_KEY: Final[Columns] = {
    "day": pl.Date,  # UTC day of the service
    "line": pl.String,  # usage | fee | top_up | commitment | credit | idle | undelivered | carved_out
    "customer": pl.String,
    "kind": pl.String,  # of the customer then: paying, trial, ...; `unknown`: not in the catalog
    "segment": pl.String,
    "contract": pl.String,  # in force then, or the one that the amount is of
    "plan": pl.String,  # of the contract then
    "product": pl.String,
    "tier_sold": pl.String,
    "provider": pl.String,
    "model_served": pl.String,
    "pool": pl.String,
}
_AMOUNTS: Final[Columns] = {
    "requests": SUM,  # events served, every attempt
    "billable_requests": SUM,  # events that the customer pays for
    **dict.fromkeys(METERS, SUM),  # served, every attempt
    "gross": MONEY,  # at the prices in force
    "discount": MONEY,  # line, contract and fixed discounts, and what a maximum capped
    "charge": MONEY,  # net charges: gross - discount
    "fee": MONEY,
    "top_up": MONEY,  # to the minimum of the contract's period
    "overage_premium": MONEY,  # what overage costs above the contract's own prices
    "shortfall": MONEY,
    "breakage": MONEY,
    "promotional_credit": MONEY,  # given: it reduces revenue
    "revenue": MONEY,  # charge + fee + top_up + overage_premium + shortfall + breakage - promotional_credit
    "cost_pool": MONEY,  # share of pools' recognised cost; on an idle line, what stood idle
    "cost_on_demand": MONEY,
    "cost": MONEY,  # usage basis: cost_pool + cost_on_demand
    "idle_share": MONEY,  # idle carried; negative where it was taken away, on the pool's own idle line
    "cost_loaded": MONEY,  # cost + idle_share
    "cause_shift": MONEY,  # spill premium received; negative where it was given away
    "cost_by_cause": MONEY,  # cost + cause_shift
    "on_demand_price": MONEY,  # what the same usage costs on demand; null where a part has no price
    "saving_against_on_demand": MONEY,  # on_demand_price - cost; null where either is not known
    "fx_effect": MONEY,  # margin at month_average - margin at contract rates; null where there is none
    "revenue_fx_effect": MONEY,  # the part of it that is revenue's
    "charge_unrated": pl.Boolean,  # part of the charge or fee is unrated: the amount is what is known
    "cost_unrated": pl.Boolean,
    "estimated": pl.Boolean,  # pool cost that no bill covers yet, or an exchange rate of an earlier month
}
_AMOUNTS_NULL: Final = frozenset(
    {"on_demand_price", "saving_against_on_demand", "fx_effect", "revenue_fx_effect"}
)
_AMOUNT_LAWS: Final = {
    "charge = gross - discount": pl.col("charge") == pl.col("gross") - pl.col("discount"),
    "revenue = charge + fee + top_up + overage_premium + shortfall + breakage - promotional_credit": (
        pl.col("revenue")
        == pl.col("charge")
        + pl.col("fee")
        + pl.col("top_up")
        + pl.col("overage_premium")
        + pl.col("shortfall")
        + pl.col("breakage")
        - pl.col("promotional_credit")
    ),
    "cost = cost_pool + cost_on_demand": pl.col("cost") == pl.col("cost_pool") + pl.col("cost_on_demand"),
    "cost_loaded = cost + idle_share": pl.col("cost_loaded") == pl.col("cost") + pl.col("idle_share"),
    "cost_by_cause = cost + cause_shift": pl.col("cost_by_cause") == pl.col("cost") + pl.col("cause_shift"),
}
#: The finest margin lines, all in one currency. Lines of two periods that do not overlap simply add up.
MARGIN_LINES: Final = Frame(
    "MARGIN_LINES",
    {**LINE_KEY, **_AMOUNTS, "currency": pl.String},
    key=tuple(LINE_KEY),
    nullable=(frozenset(LINE_KEY) - {"day", "line"}) | _AMOUNTS_NULL,
    laws=_AMOUNT_LAWS,
)
#: Margin lines by project, as core.margin makes them where it is given usage by project.
PROJECT_LINES: Final = Frame(
    "PROJECT_LINES",
    {**LINE_KEY, "project": pl.String, **_AMOUNTS, "currency": pl.String},  # '': not said; null: of no usage
    key=(*LINE_KEY, "project"),
    nullable=MARGIN_LINES.nullable | {"project"},
    laws=_AMOUNT_LAWS,
)
#: By what margin lines may be summed; lines by project by that too.
MARGIN_BY: Final = tuple(LINE_KEY)
#: What a period's margin is made of (core.cells): sums of one thing at one place, in the currency agreed. The
#: amounts are counts of money.QUANTUM; gross differs from amount where a charge was discounted.
CELLS: Final = Frame(
    "CELLS",
    {
        "of": pl.String,  # charge | cost | unused | carried (idle) | fee | ... (other revenue, by its name)
        "customer": pl.String,  # null: capacity that nobody used
        "provider": pl.String,  # of a cost
        "item": pl.String,  # the product sold; of a cost the model served; of a fee its name
        "tier": pl.String,
        "region": pl.String,
        "context_breakpoint": pl.Int32,
        "meter": pl.String,  # of unused capacity the dimension
        "place": pl.String,  # of a cost: the pool that served it, or on_demand; of unused or idle capacity the pool
        "currency": pl.String,
        "quantity": SUM,  # of the meter; of unused capacity burn
        "gross": SUM,
        "amount": SUM,
    },
    key=(
        *("of", "customer", "provider", "item", "tier", "region", "context_breakpoint", "meter", "place"),
        "currency",
    ),
    nullable=frozenset(
        {"customer", "provider", "item", "tier", "region", "context_breakpoint", "meter", "place"}
    ),
)
#: How much each customer used in a period, every attempt.
USED_BY: Final = Frame("USED_BY", {"customer": pl.String, "tokens": SUM, "requests": SUM}, key=("customer",))
#: The customers of a plan in tenths by what they cost (core.deciles); fewer than ten: each by itself.
PLAN_DECILES: Final = Frame(
    "PLAN_DECILES",
    {
        "plan": pl.String,
        "decile": pl.Int64,  # 1: those who cost most
        "customer": pl.String,  # null where the row is of several
        "customers": pl.Int64,
        "least_cost": MONEY,  # of a customer of the row
        "most_cost": MONEY,
        "revenue": MONEY,
        "cost": MONEY,
        "cost_share_ratio": RATIO,  # of the plan's cost
        "margin": MONEY,
        "margin_ratio": RATIO,
        "losing": pl.Int64,  # customers whose own margin is negative
        "losing_ratio": RATIO,
        "charge_unrated": pl.Boolean,
        "cost_unrated": pl.Boolean,
        "estimated": pl.Boolean,
        "currency": pl.String,
    },
    key=("plan", "decile"),
    nullable=frozenset({"customer", "cost_share_ratio", "margin_ratio"}),
    laws={
        "margin = revenue - cost": pl.col("margin") == pl.col("revenue") - pl.col("cost"),
        "0 <= losing <= customers": pl.col("losing").is_between(0, pl.col("customers")),
        "least_cost <= most_cost": pl.col("least_cost") <= pl.col("most_cost"),
    },
)
#: The parts of a change of margin: of a customer (null: capacity that nobody used) and term.
BRIDGE: Final = Frame(
    "BRIDGE",
    {
        "customer": pl.String,
        "place": pl.Int64,  # of the term, in the order of replacement
        "term": pl.String,
        "revenue": MONEY,
        "cost": MONEY,
        "margin": MONEY,
        "currency": pl.String,
    },
    key=("customer", "place"),
    nullable=frozenset({"customer"}),
    laws={"margin = revenue - cost": pl.col("margin") == pl.col("revenue") - pl.col("cost")},
)


def margin_frame(by: Sequence[str]) -> Frame:
    """The declaration of a margin table by some of MARGIN_BY and project: keys, who the customer is, amounts, margin.

    margin = revenue - cost, margin_loaded = revenue - cost_loaded. margin_ratio = margin / revenue, null where
    revenue <= 0. breach: margin < floor x revenue, or revenue <= 0 with cost > 0, both on the floor's basis, of
    paying customers with a floor; null where the rows are not whole customers, so that the question has no answer.
    breach_by_fx: a breach that would be none at the contract exchange rates.
    """
    who: Columns = {"name": pl.String, "kind": pl.String, "segment": pl.String} if "customer" in by else {}
    judged: Columns = (
        {"floor_ratio": MONEY, "floor_basis": pl.String, "breach": pl.Boolean, "breach_by_fx": pl.Boolean}
        if "customer" in by
        else {}
    )
    columns: Columns = {
        **{name: PROJECT_LINES.columns[name] for name in by},
        **{name: dtype for name, dtype in who.items() if name not in by},
        **_AMOUNTS,
        "margin": MONEY,
        "margin_ratio": RATIO,
        "margin_loaded": MONEY,
        **judged,
        "currency": pl.String,
    }
    return Frame(
        "MARGIN",
        columns,
        key=tuple(by),
        nullable=(frozenset({*by, *who, *judged, "margin_ratio"}) - {"day", "line"}) | _AMOUNTS_NULL,
        laws={
            **_AMOUNT_LAWS,
            "margin = revenue - cost": pl.col("margin") == pl.col("revenue") - pl.col("cost"),
            "margin_loaded = revenue - cost_loaded": pl.col("margin_loaded")
            == pl.col("revenue") - pl.col("cost_loaded"),
        },
    )
