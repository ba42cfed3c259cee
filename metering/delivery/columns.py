"""The columns of every report, in the order of the files; docs/reports.md says what each means."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from metering.delivery.report import Column, Kind
from metering.meters import METERS


def _columns(
    *rows: tuple[str, Kind, str, str, int] | tuple[str, Kind, str, str, int, str],
) -> tuple[Column, ...]:
    return tuple(Column(*row) for row in rows)


#: What the rows of margin, usage and unrated may be about.
_ABOUT: Final = _columns(
    ("day", "day", "day", "UTC", 0),
    ("line", "text", "line", "", 0),
    ("side", "text", "side", "", 0),
    ("reason", "text", "reason", "", 0),
    ("customer", "text", "customer", "", 0),
    ("name", "text", "name", "", 7),
    ("kind", "text", "kind", "", 3),
    ("segment", "text", "segment", "", 8),
    ("product", "text", "product", "", 0),
    ("tier_sold", "text", "tier sold", "", 0),
    ("provider", "text", "provider", "", 0),
    ("model_served", "text", "model served", "", 0),
    ("tier_served", "text", "tier served", "", 0),
    ("region", "text", "region", "", 0),
    ("pool", "text", "pool", "", 0),
    ("project", "text", "project", "", 0),
    ("ran_on", "text", "ran on", "", 0),
    ("context_breakpoint", "count", "above context", "tokens", 0),
    ("meter", "text", "meter", "", 0),
)
_METERS: Final = tuple(
    Column(meter, "quantity", meter.removesuffix("_tokens").removesuffix("_ms").replace("_", " "), unit, 9)
    for meter in METERS
    for unit in ("ms" if meter.endswith("_ms") else "calls" if meter.endswith("_calls") else "tokens",)
)
#: Requests and every meter; the two totals are sums of meters.
USAGE_SUMS: Final = (
    *_columns(
        ("requests", "count", "requests", "attempts", 3),
        ("billable_requests", "count", "billable", "requests", 9),
        ("total_input_tokens", "quantity", "input", "tokens", 5),
        ("total_output_tokens", "quantity", "output", "tokens", 5),
    ),
    *_METERS,
)
#: Amounts; the unit of each is the report's currency.
_AMOUNTS: Final = _columns(
    ("gross", "money", "gross", "charges", 9),
    ("discount", "money", "discounts", "", 6),
    ("charge", "money", "charges", "", 4),
    ("fee", "money", "fees", "", 4),
    ("top_up", "money", "top-ups", "", 6),
    ("overage_premium", "money", "overage", "premium", 6),
    ("shortfall", "money", "shortfall", "", 6),
    ("breakage", "money", "breakage", "", 6),
    ("promotional_credit", "money", "promotional", "credits", 6),
    ("revenue", "money", "revenue", "", 0),
    ("cost_pool", "money", "pool cost", "", 2, "cost"),
    ("cost_on_demand", "money", "on-demand cost", "", 2, "cost"),
    ("cost", "money", "cost", "", 0),
    ("idle_share", "money", "idle carried", "", 5),
    ("cost_loaded", "money", "loaded cost", "", 9),
    ("cause_shift", "money", "spill moved", "", 9),
    ("cost_by_cause", "money", "cost by cause", "", 9),
    ("on_demand_price", "money", "on-demand price", "", 9),
    ("saving_against_on_demand", "money", "saved on", "demand", 9),
    ("fx_effect", "money", "FX effect", "", 9),
    ("revenue_fx_effect", "money", "FX effect", "on revenue", 9),
    ("margin", "money", "margin", "", 0),
    ("margin_ratio", "ratio", "margin", "of revenue", 0),
    ("margin_loaded", "money", "loaded margin", "", 4),
    ("floor_ratio", "ratio", "floor", "of revenue", 1),
    ("floor_basis", "text", "floor", "basis", 9),
    ("breach", "flag", "breach", "", 1),
    ("breach_by_fx", "flag", "breach", "by FX alone", 9),
    ("charge_unrated", "flag", "charge", "unrated", 2),
    ("cost_unrated", "flag", "cost", "unrated", 2),
    ("estimated", "flag", "estimated", "", 9),
    ("currency", "text", "currency", "", 9),
)
_AGREED: Final = _columns(("contract", "text", "contract", "", 0), ("plan", "text", "plan", "", 0))
MARGIN: Final = (*_ABOUT, *_AGREED, *USAGE_SUMS, *_AMOUNTS)
USAGE: Final = (*_ABOUT, *USAGE_SUMS)
UNRATED: Final = (
    *_ABOUT,
    *_columns(
        ("quantity", "quantity", "quantity", "of the meter", 0),
        ("amount", "money", "amount", "", 1),
        ("currency", "text", "currency", "", 1),
    ),
)
CAPACITY: Final = _columns(
    ("pool", "text", "pool", "", 0),
    ("dimension", "text", "dimension", "", 3),
    ("carve_out_of", "text", "set aside", "of pool", 2),
    ("window_start", "instant", "window", "UTC", 0),
    ("hour_of_week", "count", "hour of week", "from Monday", 9),
    ("weekday", "text", "weekday", "UTC", 0),
    ("hour", "count", "hour", "UTC", 0),
    ("supplier", "text", "supplier", "", 9),
    ("unit", "text", "bought in", "", 8),
    ("minutes", "count", "minutes", "contracted", 6),
    ("contracted", "burn", "contracted", "burn units", 2),
    ("undelivered", "burn", "undelivered", "burn units", 7),
    ("carved_out", "burn", "carved out", "burn units", 7),
    ("available", "burn", "available", "burn units", 8),
    ("burn", "burn", "burn", "burn units", 8),
    ("served", "burn", "served", "burn units", 2),
    ("idle", "burn", "idle", "burn units", 2),
    ("overrun", "burn", "overrun", "burn units", 2),
    ("spill", "burn", "spill", "burn units", 2),
    ("modelled_spill", "burn", "modelled spill", "burn units", 3),
    ("served_of_contracted_ratio", "ratio", "used", "of contracted", 6),
    ("served_of_available_ratio", "ratio", "used", "of available", 0),
    ("mean_ratio", "ratio", "mean", "of minutes", 7),
    ("p50_ratio", "ratio", "p50", "of minutes", 4),
    ("p95_ratio", "ratio", "p95", "of minutes", 3),
    ("p99_ratio", "ratio", "p99", "of minutes", 4),
    ("max_ratio", "ratio", "max", "minute", 3),
    ("tightest", "flag", "tightest", "dimension", 9),
    ("minutes_at_limit", "count", "at limit", "minutes", 1),
    ("minutes_at_limit_5m", "count", "at limit", "in 5 min", 5),
    ("minutes_at_limit_15m", "count", "at limit", "in 15 min", 5),
    ("longest_run_at_limit_minutes", "count", "longest run", "minutes", 4),
    ("pool_minutes_at_limit", "count", "pool at limit", "minutes", 8),
    ("recognised_cost", "money", "cost", "", 1),
    ("undelivered_cost", "money", "undelivered", "", 6),
    ("carved_out_cost", "money", "carved out", "", 6),
    ("served_cost", "money", "served cost", "", 3),
    ("idle_cost", "money", "idle cost", "", 1),
    ("currency", "text", "currency", "", 9),
    ("estimated", "flag", "cost", "estimated", 8),
)

PLANS: Final = _columns(
    ("plan", "text", "plan", "", 0),
    ("decile", "count", "decile", "by cost", 0),
    ("customer", "text", "customer", "", 1),
    ("customers", "count", "customers", "", 2),
    ("least_cost", "money", "cost from", "", 4),
    ("most_cost", "money", "cost to", "", 4),
    ("revenue", "money", "revenue", "", 0),
    ("cost", "money", "cost", "", 0),
    ("cost_share_ratio", "ratio", "cost", "of the plan's", 3),
    ("margin", "money", "margin", "", 0),
    ("margin_ratio", "ratio", "margin", "of revenue", 0),
    ("losing", "count", "losing", "customers", 1),
    ("losing_ratio", "ratio", "losing", "of customers", 2),
    ("charge_unrated", "flag", "charge", "unrated", 6),
    ("cost_unrated", "flag", "cost", "unrated", 6),
    ("estimated", "flag", "estimated", "", 9),
    ("currency", "text", "currency", "", 9),
)

QUOTAS: Final = _columns(
    ("quota", "text", "quota", "", 0),
    ("dimension", "text", "dimension", "", 0),
    ("window_start", "instant", "window", "UTC", 0),
    ("hour_of_week", "count", "hour of week", "from Monday", 9),
    ("weekday", "text", "weekday", "UTC", 0),
    ("hour", "count", "hour", "UTC", 0),
    ("provider", "text", "provider", "", 2),
    ("minutes", "count", "minutes", "in force", 6),
    ("contracted", "burn", "allowed", "units", 2),
    ("burn", "burn", "used", "units", 1),
    ("overrun", "burn", "above", "units", 3),
    ("mean_ratio", "ratio", "mean", "of minutes", 1),
    ("p50_ratio", "ratio", "p50", "of minutes", 5),
    ("p95_ratio", "ratio", "p95", "of minutes", 2),
    ("p99_ratio", "ratio", "p99", "of minutes", 2),
    ("max_ratio", "ratio", "max", "minute", 1),
    ("minutes_at_limit", "count", "at limit", "minutes", 0),
    ("longest_run_at_limit_minutes", "count", "longest run", "minutes", 3),
)

RECONCILED: Final = _columns(
    ("time", "text", "time", "", 0),
    ("model", "text", "model", "", 0),
    ("unit", "text", "unit", "", 0),
    ("status", "text", "status", "", 0),
    ("theirs", "quantity", "theirs", "", 0),
    ("ours", "quantity", "ours", "", 0),
    ("difference", "quantity", "difference", "theirs - ours", 1),
    ("capture_ratio", "ratio", "captured", "ours of theirs", 2),
    ("amount_theirs", "money", "their amount", "", 4),
    ("amount_ours", "money", "our cost", "", 4),
    ("amount_difference", "money", "difference", "of amounts", 3),
    ("currency", "text", "currency", "", 4),
    ("reason", "text", "likely reason", "", 0),
)
#: Of what was meant for a pool, by model and by customer.
CAPACITY_MODELS: Final = _columns(
    ("pool", "text", "pool", "", 0),
    ("dimension", "text", "dimension", "", 3),
    ("carve_out_of", "text", "set aside", "of pool", 1),
    ("model_served", "text", "model served", "", 0),
    ("requests", "count", "requests", "attempts", 3),
    ("burn", "burn", "burn", "burn units", 1),
    ("burn_ratio", "ratio", "share", "of burn", 0),
    ("spill", "burn", "spill", "burn units", 1),
    ("spill_ratio", "ratio", "share", "of spill", 2),
)
CAPACITY_CUSTOMERS: Final = _columns(
    ("pool", "text", "pool", "", 0),
    ("dimension", "text", "dimension", "", 3),
    ("carve_out_of", "text", "set aside", "of pool", 1),
    ("customer", "text", "customer", "", 0),
    ("burn", "burn", "burn", "burn units", 1),
    ("burn_ratio", "ratio", "share", "of burn", 0),
    ("spill", "burn", "spill", "burn units", 2),
    ("peak_minute", "instant", "pool's peak", "UTC", 5),
    ("peak_demand", "burn", "in the peak", "burn units", 3),
    ("peak_ratio", "ratio", "share", "of the peak", 0),
    ("own_peak_minute", "instant", "own peak", "UTC", 4),
    ("own_peak_demand", "burn", "in own peak", "burn units", 5),
    ("entitlement", "burn", "entitled to", "burn units", 2),
    ("entitlement_used", "burn", "of it used", "burn units", 4),
    ("entitlement_used_ratio", "ratio", "used", "of entitlement", 1),
)

#: Limits: windows summed by what they are about, every window, and what a pool would burn by them.
_LIMIT_ABOUT: Final = _columns(
    ("customer", "text", "customer", "", 0),
    ("plan", "text", "plan", "", 0),
    ("contract", "text", "contract", "", 3),
    ("limit", "text", "limit", "", 0),
    ("holder", "text", "of each", "", 2),
    ("held_by", "text", "holder", "", 0),
    ("window", "text", "window", "", 6),
    ("window_minutes", "count", "window", "minutes", 2),
)
_REFUSED: Final = _columns(
    ("refused_requests", "count", "refused", "requests", 0),
    ("refused_unestimated", "count", "not estimated", "requests", 9),
    ("refused_tokens", "quantity", "refused", "tokens", 1),
)
LIMITS: Final = (
    *_LIMIT_ABOUT,
    *_columns(
        ("holders", "count", "holders", "", 1),
        ("holders_binding", "count", "binding", "holders", 3),
        ("windows", "count", "windows", "", 2),
        ("windows_binding", "count", "binding", "windows", 0),
        ("binding_ratio", "ratio", "binding", "of windows", 1),
        ("p50_ratio", "ratio", "p50", "used", 5),
        ("p95_ratio", "ratio", "p95", "used", 4),
        ("max_ratio", "ratio", "most", "used", 0),
        ("least_headroom_ratio", "ratio", "least", "headroom", 7),
    ),
    *_REFUSED,
)
LIMIT_WINDOWS: Final = (
    *_LIMIT_ABOUT,
    *_columns(
        ("window_start", "instant", "from", "UTC", 0),
        ("window_until", "instant", "until", "UTC", 3),
        ("open", "flag", "open", "", 4),
        ("quantity", "count", "limit", "weighted", 2),
        ("used", "burn", "used", "weighted", 0),
        ("headroom_ratio", "ratio", "headroom", "of limit", 0),
        ("binding", "flag", "binding", "", 1),
        ("binding_from", "instant", "binding from", "UTC", 5),
    ),
    *_REFUSED,
    *_columns(("refused", "burn", "refused", "weighted", 4)),
)
EXPOSURE: Final = _columns(
    ("pool", "text", "pool", "", 5),
    ("dimension", "text", "dimension", "", 2),
    ("window_minutes", "count", "window", "minutes", 0),
    ("plan", "text", "plan", "", 0),
    ("contract", "text", "contract", "", 3),
    ("limit", "text", "limit", "", 0),
    ("holders", "count", "holders", "", 1),
    ("exposure", "burn", "limits", "burn units", 1),
    ("available", "burn", "available", "burn units", 1),
    ("exposure_ratio", "ratio", "limits", "of available", 0),
    ("peak_start", "instant", "fullest from", "UTC", 4),
    ("peak", "burn", "at the fullest", "burn units", 3),
    ("peak_ratio", "ratio", "at the fullest", "of available", 0),
)

#: Money of suppliers: `currency` (or `measure`) beside it is a column, for a report may hold several.
CLOSURE: Final = _columns(
    ("supplier", "text", "supplier", "", 0),
    ("currency", "text", "currency", "", 0),
    ("place", "count", "place", "", 9),
    ("term", "text", "term", "", 0),
    ("kind", "text", "kind", "of customer", 1),
    ("usage", "money", "usage basis", "as billed", 0),
    ("loaded", "money", "loaded basis", "as billed", 0),
    ("estimated", "flag", "estimated", "", 1),
    ("usage_translated", "money", "usage basis", "", 3),
    ("loaded_translated", "money", "loaded basis", "", 3),
)
DOCUMENTS: Final = _columns(
    ("supplier", "text", "supplier", "", 0),
    ("currency", "text", "currency", "", 0),
    ("what", "text", "what", "", 1),
    ("document", "text", "document", "", 0),
    ("posted_month", "day", "posted", "month of", 0),
    ("billed", "money", "document", "billed", 3),
    ("billed_here", "money", "billed", "in the period", 0),
    ("recognised_before", "money", "recognised", "before", 2),
    ("recognised_here", "money", "recognised", "in the period", 0),
    ("recognised_after", "money", "recognised", "after", 2),
    ("change_in_prepaid", "money", "change in", "prepaid", 0),
)
CAPTURE: Final = _columns(
    ("supplier", "text", "supplier", "", 0),
    ("currency", "text", "currency", "", 0),
    ("service_from", "instant", "service from", "UTC", 0),
    ("service_until", "instant", "until", "UTC", 0),
    ("rated", "money", "rated", "", 0),
    ("billed", "money", "billed", "", 0),
    ("variance", "money", "variance", "", 0),
    ("capture_ratio", "ratio", "captured", "rated of billed", 0),
)
MISSING: Final = _columns(
    ("supplier", "text", "supplier", "", 0),
    ("reason", "text", "missing", "", 0),
    ("object", "text", "of", "", 0),
    ("amount", "money", "estimate", "", 0),
    ("currency", "text", "currency", "", 0),
    ("quantity", "quantity", "quantity", "of the meter", 0),
    ("meter", "text", "meter", "", 0),
)
OBLIGATIONS: Final = _columns(
    ("supplier", "text", "supplier", "", 0),
    ("obligation", "text", "obligation", "", 0),
    ("kind", "text", "kind", "", 2),
    ("effective_from", "instant", "from", "UTC", 3),
    ("effective_until", "instant", "until", "UTC", 0),
    ("state", "text", "state", "", 2),
    ("measure", "text", "in", "", 0),
    ("committed", "money", "committed", "", 0),
    ("drawn", "money", "drawn", "", 0),
    ("remaining", "money", "remaining", "", 1),
    ("pace_ratio", "ratio", "pace", "of even", 2),
    ("run_rate_per_day", "money", "run rate", "a day", 4),
    ("projected", "money", "projected", "at the end", 3),
    ("shortfall", "money", "shortfall", "", 1),
    ("surplus", "money", "surplus", "", 5),
    ("shortfall_cost", "money", "shortfall", "costs", 1),
    ("days_left", "count", "days left", "", 1),
    ("notice_by", "instant", "notice by", "UTC", 3),
)
#: What customers agreed to; `measure` says of what its amounts are.
CONTRACTS: Final = _columns(
    ("customer", "text", "customer", "", 0),
    ("kind", "text", "kind", "", 5),
    ("contract", "text", "contract", "", 4),
    ("plan", "text", "plan", "", 5),
    ("what", "text", "what", "", 4),
    ("name", "text", "name", "", 0),
    ("effective_from", "instant", "from", "UTC", 5),
    ("effective_until", "instant", "until", "UTC", 1),
    ("state", "text", "state", "", 5),
    ("measure", "text", "in", "", 0),
    ("paid", "text", "paid", "", 6),
    ("shortfall_rule", "text", "shortfall", "rule", 7),
    ("committed", "money", "committed", "", 0),
    ("drawn", "money", "drawn", "", 0),
    ("remaining", "money", "remaining", "", 3),
    ("rolled_over", "money", "rolled over", "", 6),
    ("overage", "money", "overage", "", 3),
    ("shortfall", "money", "shortfall", "so far", 4),
    ("pace_ratio", "ratio", "pace", "of even", 1),
    ("run_rate_per_day", "money", "run rate", "a day", 5),
    ("projected", "money", "projected", "at the end", 4),
    ("shortfall_projected", "money", "shortfall", "projected", 0),
    ("shortfall_fee", "money", "shortfall", "costs", 2),
    ("days_left", "count", "days left", "", 2),
)
#: What customers have left, and what is not billed yet; `currency` is a column: a report may hold several.
BALANCES: Final = _columns(
    ("customer", "text", "customer", "", 0),
    ("kind", "text", "kind", "", 1),
    ("contract", "text", "contract", "", 4),
    ("currency", "text", "in", "", 0),
    ("period_start", "instant", "open since", "UTC", 3),
    ("period_until", "instant", "open until", "UTC", 6),
    ("committed_left", "money", "committed", "left", 0),
    ("prepaid_left", "money", "prepaid", "left", 0),
    ("promotional_left", "money", "promotional", "left", 1),
    ("fees", "money", "fees", "so far", 5),
    ("unbilled", "money", "unbilled", "so far", 0),
    ("expiring", "money", "expiring", "soon", 1),
    ("expires_at", "instant", "first", "expiry, UTC", 4),
    ("expected_lost", "money", "of it lost", "as expected", 2),
)

#: Pools sized on recorded demand (`plan capacity`).
PLAN: Final = _columns(
    ("pool", "text", "pool", "", 0),
    ("supplier", "text", "supplier", "", 9),
    ("unit", "text", "unit", "", 6),
    ("units_today", "count", "today", "units", 0),
    ("minutes", "count", "replayed", "minutes", 9),
    ("demand_of_available_ratio", "ratio", "demand", "of available", 4),
    ("above_ratio", "ratio", "above", "of minutes", 3),
    ("spill_ratio", "ratio", "spills", "of demand", 5),
    ("refused_requests", "count", "refused", "requests", 6),
    ("c0_per_million", "money", "capacity per M", "", 5),
    ("on_demand_per_million", "money", "on demand per M", "", 5),
    ("break_even_ratio", "ratio", "break-even", "use", 1),
    ("served_of_contracted_ratio", "ratio", "used", "of contracted", 2),
    ("cost_today", "money", "cost today", "", 2),
    ("units_best", "count", "best", "units", 0),
    ("cost_best", "money", "cost best", "", 2),
    ("saving", "money", "saves", "", 0),
    ("above_best_ratio", "ratio", "then above", "of minutes", 3),
    ("spill_best_ratio", "ratio", "then spills", "of demand", 4),
    ("runway_date", "day", "full from", "UTC", 0),
    ("order_by_date", "day", "order by", "UTC", 0),
    ("forecast", "text", "forecast", "", 7),
    ("lower_bound", "flag", "lower bound", "", 7),
    ("currency", "text", "currency", "", 9),
)
COST_CURVE: Final = _columns(
    ("pool", "text", "pool", "", 0),
    ("units", "count", "size", "units", 0),
    ("capacity_cost", "money", "capacity", "", 1),
    ("on_demand_cost", "money", "on demand", "", 1),
    ("cost", "money", "cost", "", 0),
    ("minutes", "count", "replayed", "minutes", 9),
    ("minutes_above", "count", "above", "minutes", 3),
    ("above_ratio", "ratio", "above", "of minutes", 2),
    ("spill_ratio", "ratio", "spills", "of demand", 2),
    ("today", "flag", "today", "", 0),
    ("best", "flag", "best", "", 0),
    ("currency", "text", "currency", "", 9),
)

#: A period as recorded and as supposed (`what-if`).
_MEASURES: Final[tuple[tuple[str, Kind, str, str, int], ...]] = (
    ("contracted", "burn", "contracted", "burn units", 4),
    ("served", "burn", "served", "burn units", 5),
    ("idle", "burn", "idle", "burn units", 6),
    ("overrun", "burn", "overrun", "burn units", 7),
    ("spill", "burn", "spill", "burn units", 3),
    ("served_of_contracted_ratio", "ratio", "used", "of contracted", 0),
    ("cost_pool", "money", "pool cost", "", 2),
    ("cost_on_demand", "money", "on demand", "", 1),
    ("revenue", "money", "revenue", "", 3),
    ("cost", "money", "cost", "", 2),
    ("margin", "money", "margin", "", 1),
)
#: Ends of the names of what would have been, and their headings: one side, or two where limits are raised.
_SUPPOSED: Final = (("_after", "after"), ("_lower", "lower"), ("_upper", "upper"))
WHAT_IF: Final = (
    *_columns(
        ("measure", "text", "", "", 0),
        ("pool", "text", "pool", "", 0),
        ("dimension", "text", "dimension", "", 3),
        ("plan", "text", "plan", "", 0),
        ("segment", "text", "segment", "", 0),
        ("customer", "text", "customer", "", 0),
        ("before", "money", "before", "", 0),
        ("after", "money", "after", "", 0),
        ("change", "money", "change", "", 0),
        ("change_lower", "money", "change (lower)", "", 0),
        ("change_upper", "money", "change (upper)", "", 0),
    ),
    Column("after_lower", "money", "after (lower)", "", 1, "after"),
    Column("after_upper", "money", "after (upper)", "", 1, "after"),
    *(
        column
        for name, kind, heading, unit, rank in _MEASURES
        for column in (
            Column(name, kind, heading, unit, rank, name),
            # beside the first: what it is of, and in which unit, is said there
            *(Column(f"{name}{end}", kind, told, "", rank, name) for end, told in _SUPPOSED),
        )
    ),
)

#: What moved the margin between two periods (`report bridge`).
#: What a charge or cost is under two catalogs; `_change`: the later less the earlier.
RERATED: Final = _columns(
    ("day", "day", "day", "UTC", 0),
    ("customer", "text", "customer", "", 0),
    ("line", "text", "line", "", 0),
    ("product", "text", "product", "", 0),
    ("tier_sold", "text", "tier sold", "", 9),
    ("provider", "text", "provider", "", 9),
    ("model_served", "text", "model served", "", 9),
    ("pool", "text", "pool", "", 9),
    *(
        row
        for name, heading, rank in (
            ("charge", "charges", 9),
            ("fee", "fees", 9),
            ("revenue", "revenue", 0),
            ("cost", "cost", 0),
            ("cost_loaded", "loaded cost", 9),
        )
        for row in (
            (f"{name}_before", "money", f"{heading} before", "", max(rank, 2)),
            (f"{name}_now", "money", f"{heading} now", "", max(rank, 1)),
            (f"{name}_change", "money", f"{heading} change", "", rank),
        )
    ),
    ("charge_unrated", "flag", "charge unrated", "now", 3),
    ("cost_unrated", "flag", "cost unrated", "now", 3),
    ("currency", "text", "currency", "", 9),
    ("from_revision", "count", "from", "revision", 9),
    ("to_revision", "count", "to", "revision", 9),
)
BRIDGE: Final = _columns(
    ("customer", "text", "customer", "", 0),
    ("term", "text", "", "", 0),
    ("revenue", "money", "revenue", "", 0),
    ("cost", "money", "cost", "", 0),
    ("margin", "money", "margin", "", 0),
    ("currency", "text", "currency", "", 9),
)


def in_currency(columns: Sequence[Column], currency: str) -> tuple[Column, ...]:
    """The columns with the report's currency as the unit of their amounts."""
    return tuple(
        replace(column, unit=currency) if column.kind == "money" and not column.unit else column
        for column in columns
    )
