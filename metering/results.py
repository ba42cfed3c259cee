"""Declared frames of what the core computes: rated lines, fees, capacity by the minute, cost, margin."""

from collections.abc import Mapping, Sequence
from typing import Final

import polars as pl

from metering.frames import INSTANT, SUM, Frame
from metering.meters import METERS
from metering.money import MONEY, RATIO

_Columns = Mapping[str, pl.DataType | type[pl.DataType]]

#: What `rate` looks a price up by. `quarter_start` is the instant whose price applies: the quarter hour of
#: the usage, or the start of a longer slice of time in which no book changes.
RATE_KEY: Final[_Columns] = {
    "quarter_start": INSTANT,
    "book": pl.String,
    "item": pl.String,  # price book: the product sold; cost book: the model served
    "tier": pl.String,  # price book: the tier sold; cost book: the tier served
    "region": pl.String,
    "context_breakpoint": pl.Int32,
    "meter": pl.String,
    "quantity": SUM,  # units of the meter; negative in compensating entries
}
#: amount = quantity x unit_price, exactly. unit_price is in currency per one unit.
RATED: Final = Frame("RATED", {**RATE_KEY, "unit_price": MONEY, "amount": MONEY, "currency": pl.String})
#: Lines without a price: `reason` says what is missing. `book` is null where none could be named.
UNPRICED: Final = Frame("UNPRICED", {**RATE_KEY, "reason": pl.String}, nullable=frozenset({"book"}))

#: Fees earned, per slice of time (a UTC day, or less where a book changes within it).
FEES_EARNED: Final = Frame(
    "FEES_EARNED",
    {
        "customer": pl.String,
        "contract": pl.String,
        "fee": pl.String,
        "slice_start": INSTANT,
        "amount": MONEY,
        "currency": pl.String,
    },
    key=("customer", "contract", "fee", "slice_start", "currency"),
)

#: Usage meant for a pool that no weight applies to. reason: unknown_pool (no capacity in force then) or
#: no_weight (the burndown table in force does not name the model, or not this token meter).
UNBURNED: Final = Frame(
    "UNBURNED",
    {
        "minute": INSTANT,
        "pool": pl.String,
        "ran_on": pl.String,
        "model_served": pl.String,
        "tier_served": pl.String,
        "region": pl.String,
        "context_breakpoint": pl.Int32,
        "meter": pl.String,
        "quantity": SUM,  # units of the meter
        "reason": pl.String,
    },
    key=("minute", "pool", "ran_on", "model_served", "tier_served", "region", "context_breakpoint", "meter"),
)

_CAPACITY: Final[_Columns] = {
    "contracted": SUM,  # units x burn per unit and minute
    "undelivered": SUM,  # contracted, not made available
    "carved_out": SUM,  # set aside for a named purpose
    "available": SUM,  # contracted - undelivered - carved_out
    "burn": SUM,  # of ran_on = pool
    "served": SUM,  # min(burn, available) of each minute
    "idle": SUM,  # available - served
    "overrun": SUM,  # burn - served: what landed on a minute above what it had
    "spill": SUM,  # pool-weighted burn of ran_on = overflow
}
_CAPACITY_LAWS: Final = {
    "contracted = undelivered + carved_out + served + idle": pl.col("contracted")
    == pl.col("undelivered") + pl.col("carved_out") + pl.col("served") + pl.col("idle"),
    "available = contracted - undelivered - carved_out": pl.col("available")
    == pl.col("contracted") - pl.col("undelivered") - pl.col("carved_out"),
    "burn = served + overrun": pl.col("burn") == pl.col("served") + pl.col("overrun"),
    "nothing is negative": pl.min_horizontal([pl.col(name) for name in _CAPACITY]) >= 0,
}
#: Every minute of the capacity in force, used or not. Quantities are numerators: / denominator = burn units.
UTILIZATION: Final = Frame(
    "UTILIZATION",
    {
        "pool": pl.String,
        "dimension": pl.String,
        "minute": INSTANT,
        "denominator": pl.Int64,
        **_CAPACITY,
        "utilization_ratio": RATIO,  # burn / available, above 1 in an overrun; null where available is 0
    },
    key=("pool", "dimension", "minute"),
    nullable=frozenset({"utilization_ratio"}),
    laws={
        **_CAPACITY_LAWS,
        "served = min(burn, available)": pl.col("served") == pl.min_horizontal("burn", "available"),
    },
)
_SHARE: Final[_Columns] = {
    "mean_ratio": RATIO,  # mean of the minutes' utilization_ratio
    "p50_ratio": RATIO,  # nearest rank on all minutes: the value at place ceil(p x minutes)
    "p95_ratio": RATIO,
    "p99_ratio": RATIO,
    "max_ratio": RATIO,
    "served_of_contracted_ratio": RATIO,  # of the sums: what finance asks
    "served_of_available_ratio": RATIO,  # of the sums: what operations asks
}
#: One row per pool and dimension. Sums are numerators over `denominator`.
CAPACITY_SUMMARY: Final = Frame(
    "CAPACITY_SUMMARY",
    {
        "pool": pl.String,
        "dimension": pl.String,
        "minutes": pl.Int64,  # minutes of the period in which capacity was contracted
        "denominator": pl.Int64,
        **_CAPACITY,
        "modelled_spill": SUM,  # overrun of a pool whose events never say overflow; null where there is none
        **_SHARE,
        "tightest": pl.Boolean,  # of the pool's dimensions the one with the least room: it is the pool's figure
        "minutes_at_limit": pl.Int64,  # burn >= available (and not both 0)
        "minutes_at_limit_5m": pl.Int64,  # minutes of clock 5-minute windows whose sums are at the limit
        "minutes_at_limit_15m": pl.Int64,  # the same over quarter hours
        "longest_run_at_limit_minutes": pl.Int64,
        "pool_minutes_at_limit": pl.Int64,  # minutes in which any dimension of the pool was at its limit
    },
    key=("pool", "dimension"),
    nullable=frozenset({*_SHARE, "modelled_spill"}),
    laws=_CAPACITY_LAWS,
)

#: What each model burned of each pool and dimension, or carve-out. Sums are numerators over `denominator`.
CAPACITY_MODELS: Final = Frame(
    "CAPACITY_MODELS",
    {
        "pool": pl.String,
        "dimension": pl.String,
        "model_served": pl.String,
        "requests": SUM,  # meant for the pool, those that overflowed included
        "denominator": pl.Int64,
        "burn": SUM,
        "burn_ratio": RATIO,  # of the burn of the pool and dimension
        "spill": SUM,
        "spill_ratio": RATIO,
    },
    key=("pool", "dimension", "model_served"),
    nullable=frozenset({"burn_ratio", "spill_ratio"}),
)
#: What each customer took of each pool and dimension, or carve-out, and of what it is entitled to. Demand is
#: burn + spill. Sums are numerators over `denominator`.
CAPACITY_CUSTOMERS: Final = Frame(
    "CAPACITY_CUSTOMERS",
    {
        "pool": pl.String,
        "dimension": pl.String,
        "customer": pl.String,
        "denominator": pl.Int64,
        "burn": SUM,
        "burn_ratio": RATIO,  # of the burn of the pool and dimension
        "spill": SUM,
        "peak_minute": INSTANT,  # of the pool's highest demand, the first of equals; null without demand
        "peak_demand": SUM,  # the customer's in that minute
        "peak_ratio": RATIO,  # of the pool's demand in that minute
        "own_peak_minute": INSTANT,
        "own_peak_demand": SUM,
        "entitlement": SUM,  # over all minutes; null: entitled to nothing
        "entitlement_used": SUM,  # sum over minutes of min(burn, entitlement)
        "entitlement_used_ratio": RATIO,
    },
    key=("pool", "dimension", "customer"),
    nullable=frozenset(
        {"burn_ratio", "peak_minute", "peak_ratio", "own_peak_minute", "entitlement", "entitlement_used"}
        | {"entitlement_used_ratio"}
    ),
    laws={
        "no more is used than entitled to": pl.col("entitlement").is_null()
        | (pl.col("entitlement_used") <= pl.col("entitlement"))
    },
)


# ---- limits ----------------------------------------------------------------------------------------------

#: One window of one limit and holder. `used`, `refused` are numerators over `denominator`. A window is binding where
#: it had a refusal or used >= quantity. A change of the limit ends its windows.
LIMIT_WINDOWS: Final = Frame(
    "LIMIT_WINDOWS",
    {
        "customer": pl.String,
        "contract": pl.String,
        "plan": pl.String,  # null: the contract's own limit
        "limit": pl.String,
        "holder": pl.String,  # customer | project | seat
        "held_by": pl.String,  # its name
        "window": pl.String,  # minute | anchored | fixed
        "window_minutes": pl.Int64,
        "window_start": INSTANT,
        "window_until": INSTANT,  # also where the limit ended or changed
        "open": pl.Boolean,  # input of it may still come
        "quantity": pl.Int64,
        "denominator": pl.Int64,
        "used": SUM,
        "headroom_ratio": RATIO,  # 1 - used / quantity, negative above it
        "binding": pl.Boolean,
        "binding_from": INSTANT,  # the first minute that had a refusal, or reached the quantity
        "refused_requests": pl.Int64,
        "refused_tokens": SUM,  # as estimated by who refused them
        "refused_unestimated": pl.Int64,  # requests without an estimate: the tokens are a lower bound
        "refused": SUM,
    },
    key=("customer", "contract", "limit", "held_by", "window_start"),
    nullable=frozenset({"plan", "binding_from"}),
    laws={
        "binding": pl.col("binding")
        == (
            (pl.col("refused_requests") > 0) | (pl.col("used") >= pl.col("quantity") * pl.col("denominator"))
        ),
        "binding from a minute on": pl.col("binding") == pl.col("binding_from").is_not_null(),
        "a window has a length": pl.col("window_until") > pl.col("window_start"),
    },
)
#: What the rows of a summary of limits may be about, and the columns that tell them apart.
LIMITS_BY: Final[Mapping[str, tuple[str, ...]]] = {
    "limit": ("plan", "contract", "limit", "holder", "window", "window_minutes"),
    "plan": ("plan",),
    "customer": ("customer",),
    "holder": ("customer", "contract", "limit", "holder", "held_by", "window", "window_minutes"),
}


def limit_frame(by: Sequence[str]) -> Frame:
    """The declaration of a summary of windows of limits by some of their columns (of LIMITS_BY)."""
    return Frame(
        "LIMITS_SUMMED",
        {
            **{name: LIMIT_WINDOWS.columns[name] for name in by},
            "holders": pl.Int64,  # that used something or were refused
            "holders_binding": pl.Int64,
            "windows": pl.Int64,
            "windows_binding": pl.Int64,
            "binding_ratio": RATIO,  # of the windows
            "p50_ratio": RATIO,  # used / quantity of the windows, nearest rank
            "p95_ratio": RATIO,
            "max_ratio": RATIO,
            "least_headroom_ratio": RATIO,
            "refused_requests": pl.Int64,
            "refused_unestimated": pl.Int64,
            "refused_tokens": SUM,
        },
        key=tuple(by),
        nullable=frozenset({"plan", "contract"}),
    )


#: What a binding window may use more under a larger limit: numerators over `denominator`, between two bounds.
RAISED: Final = Frame(
    "RAISED",
    {
        "customer": pl.String,
        "contract": pl.String,
        "plan": pl.String,
        "limit": pl.String,
        "held_by": pl.String,
        "window_start": INSTANT,
        "window_until": INSTANT,
        "binding_from": INSTANT,
        "quantity": pl.Int64,
        "quantity_after": pl.Int64,
        "denominator": pl.Int64,
        "used": SUM,
        "refused": SUM,
        "extra_low": SUM,  # min(refused, quantity_after - quantity)
        "extra_high": SUM,  # quantity_after - quantity
    },
    key=("customer", "contract", "limit", "held_by", "window_start"),
    nullable=frozenset({"plan"}),
    laws={"bounds": (pl.col("extra_low") >= 0) & (pl.col("extra_low") <= pl.col("extra_high"))},
)
#: What was used of a limit's products and what it burned of a pool, over one span: burn per use.
LIMIT_BURN: Final = Frame(
    "LIMIT_BURN",
    {
        "plan": pl.String,  # null: a contract's own limit
        "contract": pl.String,  # null: of a plan, all its contracts together
        "limit": pl.String,
        "pool": pl.String,
        "dimension": pl.String,
        "use": SUM,  # of the products, wherever they ran: numerator over use_denominator
        "use_denominator": pl.Int64,
        "burn": SUM,  # meant for the pool, overflow included: numerator over denominator
        "denominator": pl.Int64,
    },
    key=("plan", "contract", "limit", "pool", "dimension"),
    nullable=frozenset({"plan", "contract"}),
)
#: The limits of a plan (or of a contract), all holders together, against a pool. Burn is a numerator over
#: `denominator`, of one window. `limit` null: all limits with windows of this length.
EXPOSURE: Final = Frame(
    "EXPOSURE",
    {
        "pool": pl.String,
        "dimension": pl.String,
        "window_minutes": pl.Int64,
        "plan": pl.String,
        "contract": pl.String,
        "limit": pl.String,
        "holders": pl.Int64,
        "denominator": pl.Int64,
        "exposure": SUM,  # sum of limits x burn / use; null: nothing was used that would tell
        "available": SUM,  # of the pool in a window, on average
        "exposure_ratio": RATIO,  # oversubscription by nominal sum
        "peak_start": INSTANT,  # of the window's length that burned most, by the limits' holders together
        "peak": SUM,
        "peak_ratio": RATIO,  # oversubscription at the observed coincident peak
    },
    key=("pool", "dimension", "window_minutes", "plan", "contract", "limit"),
    nullable=frozenset(
        {"plan", "contract", "limit", "exposure", "exposure_ratio", "peak_start", "peak", "peak_ratio"}
    ),
)

#: Recognised cost per pool, dimension and quarter hour, in the currency of the bill. `estimated`: no bill
#: covers the quarter hour yet. Negative where credits exceed what was charged.
RECOGNISED: Final = Frame(
    "RECOGNISED",
    {
        "pool": pl.String,
        "dimension": pl.String,
        "quarter_start": INSTANT,
        "currency": pl.String,
        "cost": SUM,  # count of money.QUANTUM
        "estimated": pl.Boolean,
    },
    key=("pool", "dimension", "quarter_start", "currency"),
)
#: Where every unit of cost went, in the currency it is billed in. Sums over any rows:
#: usage basis = cost_pool + cost_on_demand; loaded basis = that + idle_share; by cause = usage + cause_shift.
#: idle_share moves idle from its pool's own line to those who carry it, cause_shift the spill premium from
#: those who spilled to those who took more than they were entitled to: each sums to 0 over a pool.
COSTS: Final = Frame(
    "COSTS",
    {
        "day": pl.Date,
        "line": pl.String,  # usage | idle | undelivered | carved_out
        "supplier": pl.String,  # of the pool; on demand: the provider; null: unknown
        "currency": pl.String,
        "customer": pl.String,  # null: nobody's
        "kind": pl.String,
        "segment": pl.String,
        "product": pl.String,
        "tier_sold": pl.String,
        "provider": pl.String,
        "model_served": pl.String,
        "pool": pl.String,
        "ran_on": pl.String,
        "cost_pool": MONEY,
        "cost_on_demand": MONEY,  # overflow included
        "idle_share": MONEY,
        "cause_shift": MONEY,
        "on_demand_price": MONEY,  # what the same usage costs on demand; null where no price exists
        "estimated": pl.Boolean,
    },
    key=(
        *("day", "line", "supplier", "currency", "customer", "kind", "segment", "product", "tier_sold"),
        *("provider", "model_served", "pool", "ran_on"),
    ),
    nullable=frozenset(
        {"supplier", "customer", "kind", "segment", "product", "tier_sold", "provider", "model_served"}
        | {"pool", "ran_on", "on_demand_price"}
    ),
)

#: Recognised cost of a pool and dimension per quarter hour: what became of the capacity that it paid for.
POOL_COST: Final = Frame(
    "POOL_COST",
    {
        "pool": pl.String,
        "dimension": pl.String,
        "quarter_start": INSTANT,
        "currency": pl.String,
        "recognised_cost": MONEY,
        "undelivered_cost": MONEY,
        "carved_out_cost": MONEY,
        "served_cost": MONEY,
        "idle_cost": MONEY,
        "estimated": pl.Boolean,
    },
    key=("pool", "dimension", "quarter_start", "currency"),
    laws={
        "recognised = undelivered + carved out + served + idle": pl.col("recognised_cost")
        == pl.col("undelivered_cost")
        + pl.col("carved_out_cost")
        + pl.col("served_cost")
        + pl.col("idle_cost"),
    },
)
#: Served cost per series: parts of a quarter hour's served_cost that sum to it exactly.
SERVED_COST: Final = Frame(
    "SERVED_COST",
    {
        "quarter_start": INSTANT,
        "series_id": pl.UInt32,  # of the table of series beside it
        "pool": pl.String,
        "dimension": pl.String,
        "cost": SUM,  # count of money.QUANTUM
        "currency": pl.String,
        "estimated": pl.Boolean,
    },
)

#: What usage costs a customer at the prices in force, before any discount. One row per series and meter.
GROSS: Final = Frame(
    "GROSS",
    {
        "quarter_start": INSTANT,
        "series_id": pl.UInt32,  # of the table of series beside it
        "customer": pl.String,
        "contract": pl.String,
        "item": pl.String,  # the product
        "meter": pl.String,  # a percentage of other charges: '% ' and its name
        "quantity": SUM,  # of a percentage: 0
        "gross": SUM,  # count of money.QUANTUM
        "currency": pl.String,
        "rule": pl.String,  # of frames.PRICE_RULES; null: a unit price of frames.PRICES
    },
    key=("quarter_start", "series_id", "meter"),
    nullable=frozenset({"rule"}),
)
#: How far a counter had counted when a quarter hour began, and what the quarter hour was charged by a rule.
COUNTED: Final = Frame(
    "COUNTED",
    {
        "contract": pl.String,
        "item": pl.String,
        "meters": pl.String,  # of the counter, sorted, joined by ','
        "quarter_start": INSTANT,
        "rule": pl.String,
        "counter_start": INSTANT,  # when the counter began to count
        "position": SUM,  # units counted before
        "counted": SUM,  # units of the counter in this quarter hour, over all its rules
        "total": SUM,  # units of the counter's span as far as it is known: a volume's tier is that of these
        "quantity": SUM,  # those of them that this rule prices
        "gross": SUM,  # count of money.QUANTUM
    },
    key=("contract", "item", "meters", "quarter_start", "rule"),
)
_TERMS_OF_CHARGES: Final = ("line_discount", "contract_discount", "fixed_discount", "capped")
#: The waterfall of charges, quarter hour by quarter hour: counts of money.QUANTUM, what is taken off positive.
#: Amount due = net + top_up - drawdown - promotional_credit - prepaid_credit + overage_premium + shortfall + fees.
WATERFALL: Final = Frame(
    "WATERFALL",
    {
        "quarter_start": INSTANT,
        "line": pl.String,  # usage | top_up (nothing to spread it over) | commitment | credit
        "series_id": pl.UInt32,  # null: of no series
        "customer": pl.String,
        "contract": pl.String,
        "item": pl.String,  # the product; null: of none
        "currency": pl.String,
        "gross": SUM,
        **dict.fromkeys(_TERMS_OF_CHARGES, SUM),
        "net": SUM,
        "top_up": SUM,  # to the minimum of the contract's period
        "drawdown": SUM,  # of commitments paid ahead
        "promotional_credit": SUM,
        "prepaid_credit": SUM,
        "overage_premium": SUM,  # what overage costs above (below: negative) the contract's own prices
        "shortfall": SUM,  # due of commitments in arrears, at the end of the tranche, or of what rolled over from it
        "breakage": SUM,  # paid ahead and never used: prepaid credit at its expiry, a commitment at its end
    },
    key=("quarter_start", "line", "series_id", "customer", "contract", "item", "currency"),
    nullable=frozenset({"series_id", "item"}),
    laws={
        "net = gross - discounts - capped": pl.col("net")
        == pl.col("gross") - pl.sum_horizontal(*_TERMS_OF_CHARGES),
    },
)

#: What a margin line is about. Null: not said (idle has no customer, a fee no product).
LINE_KEY: Final[_Columns] = {
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
_AMOUNTS: Final[_Columns] = {
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

#: Everything that could not be priced or costed, per UTC day. Usage has a meter and a quantity. An amount
#: that is known, but in another currency than the report's, has its amount and currency: no_exchange_rate.
UNRATED: Final = Frame(
    "UNRATED",
    {
        "day": pl.Date,
        "side": pl.String,  # charge | fee | cost | capacity (the spill of overflow that no weight applies to)
        "reason": pl.String,  # see docs: unknown_customer, no_contract, no_price_book, no_price, ...
        "customer": pl.String,
        "product": pl.String,
        "tier_sold": pl.String,
        "provider": pl.String,
        "model_served": pl.String,
        "tier_served": pl.String,
        "region": pl.String,
        "pool": pl.String,
        "ran_on": pl.String,
        "context_breakpoint": pl.Int32,
        "meter": pl.String,
        "quantity": SUM,
        "amount": MONEY,
        "currency": pl.String,
    },
    key=(
        *("day", "side", "reason", "customer", "product", "tier_sold", "provider", "model_served"),
        *("tier_served", "region", "pool", "ran_on", "context_breakpoint", "meter", "currency"),
    ),
    nullable=frozenset(
        {"customer", "product", "tier_sold", "provider", "model_served", "tier_served", "region", "pool"}
        | {"ran_on", "context_breakpoint", "meter", "quantity", "amount", "currency"}
    ),
    laws={"a quantity or an amount": pl.col("quantity").is_not_null() | pl.col("amount").is_not_null()},
)

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
#: Charges that are a ratio of what the usage cost us (core.cells): sums of one thing sold, and served at one place.
CHARGED_ON_COST: Final = Frame(
    "CHARGED_ON_COST",
    {
        "customer": pl.String,
        "product": pl.String,
        "provider": pl.String,
        "model_served": pl.String,
        "tier_served": pl.String,
        "region": pl.String,
        "context_breakpoint": pl.Int32,
        "meter": pl.String,
        "place": pl.String,  # the pool that served it, or on_demand
        "cost_currency": pl.String,
        "currency": pl.String,  # of the charge
        "quantity": SUM,
        "cost": SUM,  # in its currency, counts of money.QUANTUM as gross and amount
        "gross": SUM,
        "amount": SUM,  # less discounts
    },
    key=(
        *("customer", "product", "provider", "model_served", "tier_served", "region", "context_breakpoint"),
        *("meter", "place", "cost_currency", "currency"),
    ),
)
#: What a unit of a pool's capacity cost at full rate: recognised / contracted (burn numerators).
FULL_RATES: Final = Frame(
    "FULL_RATES",
    {
        "pool": pl.String,
        "dimension": pl.String,
        "currency": pl.String,
        "recognised": SUM,  # count of money.QUANTUM
        "contracted": SUM,
        "denominator": pl.Int64,
    },
    key=("pool", "dimension", "currency"),
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
    who: _Columns = {"name": pl.String, "kind": pl.String, "segment": pl.String} if "customer" in by else {}
    judged: _Columns = (
        {"floor_ratio": MONEY, "floor_basis": pl.String, "breach": pl.Boolean, "breach_by_fx": pl.Boolean}
        if "customer" in by
        else {}
    )
    columns: _Columns = {
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
