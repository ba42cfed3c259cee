"""Explanations: what a cell of a report needs is read, no more, and the core takes it apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from typing import Any, Final

import polars as pl
from sqlalchemy import Connection

from metering.core.burn import carve_out_pools
from metering.core.capacity import capacity
from metering.core.costs import reach
from metering.core.explain_capacity import CapacityCell, explain_capacity
from metering.core.explain_closure import BASES, ClosureCell, explain_closure
from metering.core.explain_limits import explain_exposure, explain_windows
from metering.core.explain_margin import COLUMNS, Cell, books_of, explain_margin
from metering.core.explain_standing import (
    Stands,
    explain_balance,
    explain_commitment,
    explain_entitlement,
)
from metering.core.explain_words import Place
from metering.core.flows import carve_outs
from metering.core.limits import limit_windows
from metering.core.margin import Margin, margin
from metering.core.series import known_usage, united
from metering.core.shares import customer_shares
from metering.core.standing import balances, contract_standing
from metering.core.windows import pool_costs
from metering.delivery.report import Provenance
from metering.errors import BadInput
from metering.frames.books import Books
from metering.frames.usage import DIMENSIONS, POOL_CUSTOMER_USAGE, POOL_USAGE, USAGE, Identified
from metering.meters import METERS
from metering.periods import Period, parse_period
from metering.results.capacity import CAPACITY_CUSTOMERS
from metering.results.margin import LINE_KEY
from metering.settings import Settings
from metering.store.archives import archives
from metering.store.books import read_catalog
from metering.store.origins import read_origins
from metering.store.rollups import (
    read_pool_customer_usage,
    read_pool_usage,
    read_usage_by_series,
    read_usage_of,
)
from metering.tree import Node, total
from workers.capacity_reports import known_pool
from workers.closing import closure_report
from workers.limit_reports import exposed, limited
from workers.reports import known, usage_of_terms
from workers.standing import charged_of

REPORTS: Final = ("margin", "contracts", "balances", "limits", "capacity", "closure")
#: Columns of margin that no pool takes part in.
_WITHOUT_POOLS: Final = (
    "revenue",
    "gross",
    "discount",
    "charge",
    "fee",
    *("top_up", "overage_premium", "shortfall", "breakage", "promotional_credit"),
    "cost_on_demand",
    "requests",
    "billable_requests",
    *METERS,
)
#: Columns that other customers' entitlements decide.
_MOVED: Final = ("margin_loaded", "cost_loaded", "cost_by_cause", "idle_share", "cause_shift")
_NAMED_MAX: Final = 12


@dataclass(frozen=True)
class Explanation:
    """A tree and what it stands on; `batches`: of the events behind it, counted, where they were asked for."""

    tree: Node
    provenance: Provenance
    title: str
    batches: Node | None = None


def parse_cell(words: Sequence[str], names: Sequence[str], default: str) -> tuple[dict[str, str | None], str]:
    """`customer=acme product=- charge`: what a cell is about (`-`: nobody, nothing), and its column."""
    where: dict[str, str | None] = {}
    columns = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            columns.append(word)
        elif name not in names:
            raise BadInput(f"'{word}': a cell has no {name}; it is about any of {', '.join(names)}")
        elif name in where:
            raise BadInput(f"'{word}': {name} is named twice; name it once")
        else:
            where[name] = None if value == "-" else value
    if len(columns) > 1:
        raise BadInput(f"'{columns[0]}' and '{columns[1]}': a cell has one column; name one")
    return where, columns[0] if columns else default


def explain_margin_cell(
    connection: Connection, settings: Settings, words: Sequence[str], period: Period, as_of: int | None
) -> Explanation:
    """Take a cell of the margin report apart; `connection` is one snapshot.

    Read are the rows of the customer that the cell names and, for what pools cost, of the pools that it used:
    their cost is shared with all who used them. BadInput for a cell that does not exist names what does.
    """
    where, column = parse_cell(words, tuple(LINE_KEY), "margin")
    if column not in COLUMNS:
        raise BadInput(f"margin has no column '{column}' that has parts; give one of {', '.join(COLUMNS)}")
    provenance, books = known(connection, settings, period, as_of)
    usage, computed = _computed(connection, settings, provenance, books, where, column)
    cell = Cell(_typed(where), column)
    customers = books.customers["customer"].unique().sort().to_list()
    _refuse_unknown(computed.lines, customers, where, cell, period.name)
    tree = explain_margin(usage, computed, books, cell, _placed(connection, provenance))
    about = " ".join(word for word in words if "=" in word) or "the company"
    return Explanation(tree, provenance, f"{column} of {about}")


def _typed(where: Mapping[str, str | None]) -> dict[str, Any]:
    typed: dict[str, Any] = dict(where)
    if where.get("day") is not None:
        try:
            typed["day"] = date.fromisoformat(str(where["day"]))
        except ValueError:
            raise BadInput(f"'day={where['day']}': give a day, such as 2026-11-21") from None
    return typed


def _refuse_unknown(
    lines: pl.DataFrame, customers: Sequence[str], where: Mapping[str, str | None], cell: Cell, period: str
) -> None:
    """Every value of the cell is there by itself, and all of them together."""
    if lines.filter(cell.lines).height:
        return
    for name, value in cell.where.items():
        # the lines of a customer alone know of no other
        there = customers if name == "customer" else lines[name].unique().sort().to_list()
        if value is not None and value not in there:
            listed = ", ".join("-" if each is None else str(each) for each in there[:_NAMED_MAX])
            more = f" and {len(there) - _NAMED_MAX} more" if len(there) > _NAMED_MAX else ""
            raise BadInput(
                f"'{name}={where[name] or '-'}': margin has no such line in {period}; there are "
                f"{listed or 'no lines at all'}{more}"
            )
    rest = [
        " ".join(f"{name}={'-' if value is None else value}" for name, value in row.items())
        for row in lines.select(list(cell.where))
        .unique()
        .sort(list(cell.where))
        .head(_NAMED_MAX)
        .iter_rows(named=True)
    ]
    raise BadInput(
        f"margin has no line {' '.join(f'{name}={value}' for name, value in where.items())} in {period}; there are "
        f"{'; '.join(rest) or 'no lines at all'}"
    )


def _computed(
    connection: Connection,
    settings: Settings,
    provenance: Provenance,
    books: Books,
    where: Mapping[str, str | None],
    column: str,
) -> tuple[Identified, Margin]:
    """The margin of what the cell needs: (usage, margin)."""
    cut, as_of = provenance.cut, provenance.watermark_id
    customer = where.get("customer")
    pools: list[str] | None = None  # all
    mine = known_usage(USAGE.empty())
    if customer is not None and column not in _MOVED:
        mine = read_usage_of(connection, cut.start, cut.until, as_of, [customer])
        # a charge that is a ratio of our cost hangs on the pools too
        at_cost = (books.percentages["of"] == "cost").any()
        pools = [] if column in _WITHOUT_POOLS and not at_cost else _pools_of(mine)
    if where.get("line") == "fee":
        pools = []
    if pools is None:
        months = reach(books, cut, provenance.complete_until)
        read = read_usage_by_series(connection, months.start, months.until, as_of)
        by_minute = read_pool_usage(connection, months.start, months.until, as_of)
        by_customer = read_pool_customer_usage(connection, cut.start, cut.until, as_of)
        used = books
    else:
        used = _of_pools(books if customer is None else books_of(books, customer), pools)
        read, by_minute, by_customer = mine, POOL_USAGE.empty(), POOL_CUSTOMER_USAGE.empty()
        if pools:
            # what a pool costs is shared quarter hour by quarter hour: others count where the customer used it
            pooled = mine.series.filter(pl.col("pool").is_in(pools))["series_id"].implode()
            met = mine.rows.filter(pl.col("series_id").is_in(pooled))["quarter_start"]
            quarters = met.unique().sort().to_list()
            span = (cut.start, cut.until, as_of, pools)
            beside = read_usage_by_series(connection, *span, quarters=quarters)
            others = beside.series.filter(pl.col("customer") != customer)
            rows = beside.rows.filter(pl.col("series_id").is_in(others["series_id"].implode()))
            read = united([read, Identified(others, rows)])
            by_minute = read_pool_usage(connection, *span, quarters=quarters)
    computed = margin(
        read,
        by_minute,
        used,
        cut,
        settings.reporting_currency,
        pool_customer_usage=by_customer,
        terms_usage=usage_of_terms(connection, used, provenance, customer),
        complete_until=provenance.complete_until,
        customer=customer,
    )
    return read, computed


def _pools_of(usage: Identified) -> list[str]:
    return usage.series.filter(pl.col("ran_on") == "pool")["pool"].drop_nulls().unique().sort().to_list()


def _of_pools(books: Books, pools: Sequence[str]) -> Books:
    """The books with the capacity of these pools alone, and nothing that moves cost between customers."""
    here = pl.col("pool").is_in(list(pools))
    return replace(
        books,
        pools=books.pools.filter(here).with_columns(pl.lit("none").alias("idle_policy")),
        capacity_steps=books.capacity_steps.filter(here),
        capacity_fees=books.capacity_fees.filter(here),
        burndown=books.burndown.filter(here),
        multipliers=books.multipliers.filter(here),
        entitlements=books.entitlements.clear(),
        bill_lines=books.bill_lines.filter(pl.col("object").is_in(list(pools))),
    )


def _places(connection: Connection, catalog_revision: int) -> dict[tuple[str, str], str]:
    """Where every object of the catalog stands: revision, file and line."""
    entries = read_catalog(connection, catalog_revision).entries
    found = {
        key: f"revision {entry.catalog_revision}, {entry.file}:{entry.line}" for key, entry in entries.items()
    }
    for (kind, name), place in list(found.items()):
        # prices of its own make a book of the contract
        if kind == "contract":
            found[kind, name] = place
    return found


def explained(
    connection: Connection,
    settings: Settings,
    report: str,
    words: Sequence[str],
    period: Period,
    as_of: int | None,
    *,
    batches: bool = False,
) -> Explanation:
    """The tree of a cell of one of REPORTS."""
    explain = {
        "margin": explain_margin_cell,
        "contracts": explain_contracts_cell,
        "balances": explain_balances_cell,
        "limits": explain_limits_cell,
        "capacity": explain_capacity_cell,
        "closure": explain_closure_cell,
    }.get(report)
    if explain is None:
        raise BadInput(f"explain '{report}': give one of {', '.join(REPORTS)}")
    found = explain(connection, settings, words, period, as_of)
    if not batches:
        return found
    return replace(found, batches=_batches(connection, found.provenance, words))


def _batches(connection: Connection, provenance: Provenance, words: Sequence[str]) -> Node:
    """The events behind a cell by intake and batch; a day that the cell names is that day alone."""
    where, _ = parse_cell(words, (*LINE_KEY, "dimension", "supplier", "currency", "term"), "")
    about = {name: value for name, value in where.items() if name in DIMENSIONS}
    cut = provenance.cut
    if where.get("day") is not None:
        cut = parse_period(str(where["day"])).cut_at(cut.until)
    found = read_origins(connection, cut.start, cut.until, provenance.watermark_id, about)
    intakes: dict[str, list[Node]] = {}
    for one in found:
        intake = one.kind if one.topic is None else f"{one.topic} partition {one.partition}"
        offsets = _offsets(one.first_offset, one.next_offset) if one.topic is not None else ""
        leaf = Node(f"batch {one.batch_id}", one.events, 1, "events", offsets, facts=vars(one))
        intakes.setdefault(intake, []).append(leaf)
    parts = [
        total(name, batches, 1, "events", _offsets_said(batches), "batches")
        for name, batches in intakes.items()
    ]
    about_what = " ".join(f"{name}={value or '-'}" for name, value in about.items())
    archived = [
        f"{one.day}" for one in archives(connection) if cut.start.date() <= one.day < cut.until.date()
    ]
    how = f"of {about_what}, compensating entries included"
    if archived:
        how += f"; archived, and not looked through: {', '.join(archived)}"
    return total("events in the ledger", parts, 1, "events", how)


def _offsets(first: int, following: int) -> str:
    return f"offsets {first:,} to {following - 1:,}"


def _offsets_said(batches: Sequence[Node]) -> str:
    """Of a partition's batches: within which offsets they lie."""
    if len(batches) < 2 or batches[0].facts["topic"] is None:
        return ""
    within = _offsets(batches[0].facts["first_offset"], batches[-1].facts["next_offset"])
    return f"{len(batches):,} batches within {within}"


def explain_capacity_cell(
    connection: Connection, settings: Settings, words: Sequence[str], period: Period, as_of: int | None
) -> Explanation:
    """Take a cell of the capacity report apart: of one pool (or carve-out), whose usage alone is read."""
    where, column = parse_cell(words, ("pool", "dimension"), "idle")
    provenance, books = known(connection, settings, period, as_of)
    there = ", ".join(sorted({*books.pools["pool"], *carve_outs(books)}))
    if where.get("pool") is None:
        raise BadInput(f"capacity: say of which pool, pool=NAME; there are {there or 'none in the catalog'}")
    pool = str(where["pool"])
    if pool not in {*books.pools["pool"], *carve_outs(books)}:
        raise BadInput(f"'pool={pool}': no such pool; there are {there or 'none in the catalog'}")
    cut = provenance.cut
    usage = read_pool_usage(connection, cut.start, cut.until, provenance.watermark_id, [pool])
    owner = carve_out_pools(books.set_aside).filter(pl.col("carve_out") == pool)["pool"].to_list()
    used = _of_pools(books, [pool, *owner])
    made = capacity(usage, used, cut)
    cost = pool_costs(made.utilization, used, cut).filter(pl.col("pool") == pool)
    cell = CapacityCell(pool, where.get("dimension"), column)
    tree = explain_capacity(usage, made, cost, used, cut, cell, _placed(connection, provenance))
    about = " ".join(word for word in words if "=" in word)
    return Explanation(tree, provenance, f"{column} of {about}")


def explain_closure_cell(
    connection: Connection, settings: Settings, words: Sequence[str], period: Period, as_of: int | None
) -> Explanation:
    """Take a line of the closure apart: of one supplier and the currency of its bills."""
    where, basis = parse_cell(words, ("supplier", "currency", "term", "kind"), "usage")
    if basis not in BASES:
        raise BadInput(f"closure has no column '{basis}' that has parts; give one of {', '.join(BASES)}")
    found = closure_report(connection, settings, period, as_of)
    closed = found.by("term").rows
    there = closed.select("supplier", "currency").unique().sort("supplier", "currency", nulls_last=True)
    chosen = there
    for name in ("supplier", "currency"):
        if name in where:
            chosen = chosen.filter(pl.col(name).eq_missing(pl.lit(where[name], dtype=pl.String)))
    if chosen.height != 1:
        named = "; ".join(f"supplier={each[0] or '-'} currency={each[1]}" for each in there.iter_rows())
        raise BadInput(
            f"closure: name one supplier and currency; there are {named or 'none with any cost or bill'}"
        )
    supplier, currency = chosen.row(0)
    lines = closed.filter(
        pl.col("supplier").eq_missing(pl.lit(supplier, dtype=pl.String)) & (pl.col("currency") == currency)
    )
    term = where.get("term") or "recognised_cost"
    if term not in lines["term"]:
        raise BadInput(
            f"'term={term}': {supplier} has no such line; there are {', '.join(lines['term'].unique(maintain_order=True))}"
        )
    kinds = lines.filter(pl.col("term") == term)["kind"].drop_nulls().to_list()
    if where.get("kind") is not None and where["kind"] not in kinds:
        raise BadInput(
            f"'kind={where['kind']}': {term} has no such line; there are {', '.join(kinds) or 'none'}"
        )
    if lines.filter((pl.col("term") == term) & pl.col(basis).is_null()).height:
        raise BadInput(
            f"'term={term}' is not known yet: `metering report closure --by missing` says what is not billed"
        )
    cell = ClosureCell(supplier, currency, term, where.get("kind"), basis)
    tree = explain_closure(found.computed, found.costs, found.books, period, cell)
    return Explanation(
        tree, found.provenance, f"{term} of {supplier or 'an unknown supplier'} in {currency}, {basis} basis"
    )


def explain_contracts_cell(
    connection: Connection, settings: Settings, words: Sequence[str], period: Period, as_of: int | None
) -> Explanation:
    """Take a cell of the contracts report apart: of one commitment, amount that rolled over, or entitlement.

    Read is the usage of the customer alone and, of an entitlement, that of its pool.
    """
    where, column = parse_cell(words, ("customer", "contract", "what", "name", "effective_from"), "drawn")
    provenance, books = known(connection, settings, period, as_of)
    cut = _complete(provenance)
    customer = _whose(where, books, "contracts")
    made = charged_of(connection, settings, books, provenance, customer, everyone=False)
    promised = books.entitlements.filter(pl.col("customer") == customer)["pool"].unique().sort().to_list()
    pools = promised if where.get("what") in (None, "entitlement") else []
    pool_books = _of_pools(books, pools)
    pool_books = replace(pool_books, entitlements=books.entitlements.filter(pl.col("pool").is_in(pools)))
    customer_usage, used = POOL_CUSTOMER_USAGE.empty(), None
    taken = CAPACITY_CUSTOMERS.empty()
    if pools:
        span = (cut.start, cut.until, provenance.watermark_id, pools)
        used = capacity(read_pool_usage(connection, *span), pool_books, cut)
        customer_usage = read_pool_customer_usage(connection, *span)
        taken = customer_shares(customer_usage, pool_books, used)
    rows = contract_standing(
        made,
        taken,
        replace(books, entitlements=pool_books.entitlements),
        cut.start,
        cut.until,
        settings.run_rate_days,
    ).filter(pl.col("customer") == customer)
    row = _one_row(
        rows, ("customer", "contract", "what", "name", "effective_from"), where, "contracts", period
    )
    place = _placed(connection, provenance)
    if row["what"] == "terms":
        raise BadInput(
            f"contracts: {row['contract']} has neither commitment nor entitlement: nothing of it is counted"
        )
    if row["what"] == "entitlement":
        assert used is not None, "an entitlement is of a pool that was read"
        pool, _, dimension = row["name"].rpartition(" ")
        of = (pl.col("pool") == pool) & (pl.col("dimension") == dimension)
        minutes = pl.concat([used.utilization, used.carve_outs]).filter(of)
        tree = explain_entitlement(customer_usage, minutes, pool_books, cut, row, column, place)
    else:
        stands = Stands(row["contract"], made, books, cut.until, settings.run_rate_days, place)
        tree = explain_commitment(stands, row, column)
    return Explanation(
        tree, provenance, f"{column} of {row['contract']}, {row['what'].replace('_', ' ')} {row['name']}"
    )


def explain_balances_cell(
    connection: Connection, settings: Settings, words: Sequence[str], period: Period, as_of: int | None
) -> Explanation:
    """Take a cell of the balances report apart: of one contract and currency, whose customer's usage alone is read."""
    key = ("customer", "contract", "currency")
    where, column = parse_cell(words, key, "unbilled")
    provenance, books = known(connection, settings, period, as_of)
    cut = _complete(provenance)
    customer = _whose(where, books, "balances")
    made = charged_of(connection, settings, books, provenance, customer, everyone=True)
    rows = balances(made, books, cut.until, settings.run_rate_days, settings.expiring_days)
    row = _one_row(rows.filter(pl.col("customer") == customer), key, where, "balances", period)
    place = _placed(connection, provenance)
    stands = Stands(row["contract"], made, books, cut.until, settings.run_rate_days, place)
    tree = explain_balance(stands, row, column, settings.expiring_days)
    return Explanation(tree, provenance, f"{column} of {row['contract']} in {row['currency']}")


#: What a cell of limits may be about; with a pool, it is of its exposure.
_LIMIT_KEY: Final = ("plan", "contract", "customer", "limit", "holder", "held_by", "window_start")
_EXPOSURE_KEY: Final = ("pool", "dimension", "plan", "contract", "limit", "window_minutes")


def explain_limits_cell(
    connection: Connection, settings: Settings, words: Sequence[str], period: Period, as_of: int | None
) -> Explanation:
    """Take a cell of the limits report apart, or of the exposure of a pool.

    Of windows the usage of the customers under the limit is read alone.
    """
    names = (*_LIMIT_KEY, *(name for name in _EXPOSURE_KEY if name not in _LIMIT_KEY))
    of_pool = any(word.startswith("pool=") for word in words)
    where, column = parse_cell(words, names, "exposure" if of_pool else "used")
    provenance, books = known(connection, settings, period, as_of)
    cut = _complete(provenance)
    place = _placed(connection, provenance)
    about = " ".join(word for word in words if "=" in word) or "all limits"
    title = f"{column} of {about}"
    if of_pool:
        pool = str(where["pool"])
        rows, burn = exposed(connection, books, provenance, pool, known_pool(pool, books))
        row = _one_row(rows, _EXPOSURE_KEY, where, "limits", period)
        return Explanation(explain_exposure(rows, burn, books, cut, row, column, place), provenance, title)
    limits = books.limits
    for name in ("plan", "contract", "customer", "limit", "holder"):
        if name in where:
            limits = limits.filter(pl.col(name).eq_missing(pl.lit(where[name], dtype=pl.String)))
    read = limited(connection, books, provenance, limits["customer"].unique().sort().to_list())
    assert provenance.complete_until is not None, "a cut that is not empty is complete until some time"
    windows = limit_windows(
        read.usage, read.refused, _limits_of(books, limits), cut, provenance.complete_until
    )
    mine = windows.join(limits.select("contract", "limit").unique(), on=["contract", "limit"], how="semi")
    met = mine.filter(_met(mine, where))
    if met.is_empty():
        raise BadInput(f"limits: no window of {about} in {period.name}; {_there(mine, books, where)}")
    return Explanation(explain_windows(met, read.usage, books, column, place), provenance, title)


def _limits_of(books: Books, chosen: pl.DataFrame) -> Books:
    """The books with the limits of some customers alone: a refusal may be of any limit of its customer."""
    customers = chosen["customer"].unique().implode()
    return replace(books, limits=books.limits.filter(pl.col("customer").is_in(customers)))


def _met(rows: pl.DataFrame, where: Mapping[str, str | None]) -> pl.Series:
    """Whether each row is what a cell is about."""
    values = rows.select(list(where))
    return (
        pl.Series(
            [all(_meets(row[name], where[name]) for name in where) for row in values.iter_rows(named=True)],
            dtype=pl.Boolean,
        )
        if where
        else pl.Series([True] * rows.height, dtype=pl.Boolean)
    )


def _there(windows: pl.DataFrame, books: Books, where: Mapping[str, str | None]) -> str:
    """What a cell of limits could have been about: the values of the first name that nothing meets."""
    for name, value in where.items():
        values = (windows if windows.height else books.limits).get_column(
            name, default=pl.Series(dtype=pl.String)
        )
        told = [_written(each) if each is not None else "-" for each in values.unique().sort(nulls_last=True)]
        if (value or "-") not in told:
            return f"{name} may be {_some(told)}"
    return "those limits were not used, and turned nobody away"


def _complete(provenance: Provenance) -> Period:
    """The complete part of the period, which must not be empty."""
    if not provenance.cut.minutes:
        raise BadInput(f"nothing of {provenance.period.name} is complete yet; `metering report now` says why")
    return provenance.cut


def _whose(where: Mapping[str, str | None], books: Books, report: str) -> str:
    """The customer that a cell names, or whose contract it names."""
    if where.get("contract") is not None:
        there = dict(books.contracts.select("contract", "customer").unique().iter_rows())
        if (contract := str(where["contract"])) not in there:
            raise BadInput(f"'contract={contract}': no such contract; there are {_some(sorted(there))}")
        return str(there[contract])
    names = books.contracts["customer"].unique().sort().to_list()
    if where.get("customer") is None:
        raise BadInput(f"{report}: say whose, customer=NAME or contract=NAME; there are {_some(names)}")
    if where["customer"] not in names:
        raise BadInput(f"'customer={where['customer']}': it has no contract; there are {_some(names)}")
    return str(where["customer"])


def _one_row(
    rows: pl.DataFrame, key: Sequence[str], where: Mapping[str, str | None], report: str, period: Period
) -> dict[str, Any]:
    """The one row of a report that a cell is about; BadInput says which there are."""
    met = [
        row
        for row in rows.sort(key, nulls_last=True).iter_rows(named=True)
        if all(_meets(row[name], value) for name, value in where.items())
    ]
    if len(met) == 1:
        return met[0]
    there = met or list(rows.sort(key, nulls_last=True).iter_rows(named=True))
    told = [
        " ".join(f"{name}={_written(row[name])}" for name in key if row[name] is not None) for row in there
    ]
    says = "name one row" if met else f"no such row in {period.name}"
    raise BadInput(f"{report}: {says}; there are {_some(told, '; ')}")


def _meets(value: Any, wanted: str | None) -> bool:
    return (
        value is None
        if wanted is None
        else value is not None and wanted in (_written(value), _written(value)[:10])
    )


def _written(value: Any) -> str:
    """A value of a key as a cell names it: an instant without what is zero of its time."""
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d}" if value.time() == time() else f"{value:%Y-%m-%dT%H:%MZ}"
    return str(value)


def _some(names: Sequence[str], between: str = ", ") -> str:
    more = f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else ""
    return (between.join(names[:_NAMED_MAX]) or "none") + more


def _placed(connection: Connection, provenance: Provenance) -> Place:
    places = _places(connection, provenance.catalog_revision)

    def placed(kind: str, name: str) -> str:
        # a contract's own prices make a book of their own, named after both
        book, _, contract = name.partition(" for ")
        own = (("price_book", book), ("contract", contract)) if contract and kind == "price_book" else ()
        found = [places[key] for key in own or ((kind, name),) if key in places]
        return " and ".join(found) or "not in the catalog"

    return placed
