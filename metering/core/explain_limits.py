"""Where a cell of the limits report comes from: windows, what opened them, their uses by product and weight, refusals."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, Final

import polars as pl

from metering.core.explain_words import MINUTE, Place
from metering.errors import BadInput
from metering.frames.books import Books
from metering.frames.frame import SUM
from metering.frames.usage import SUMS
from metering.money import ratio
from metering.periods import DAY, Period
from metering.results.limits import LIMIT_WINDOWS
from metering.tree import RATIO_PER, Node, grouped, total

Row = Mapping[str, Any]
#: What a window, or several, may be asked for.
_COUNTS: Final = {
    "holders": "holders",
    "holders_binding": "holders",
    "windows": "windows",
    "windows_binding": "windows",
    "refused_requests": "requests",
    "refused_unestimated": "requests",
    "refused_tokens": "tokens",
}
#: Of the windows in the order of used / limit, the place of the one that is told: nearest rank, percent.
_RANKS: Final = {"p50_ratio": 50, "p95_ratio": 95, "max_ratio": 100}
WINDOW_COLUMNS: Final = (
    *("used", "headroom_ratio", "least_headroom_ratio", *_RANKS, "binding_ratio", "refused"),
    *_COUNTS,
)
EXPOSURE_COLUMNS: Final = ("exposure", "exposure_ratio", "available", "peak", "peak_ratio")
#: So many windows are told down to their uses; of more, each is one part.
USES_WINDOWS_MAX: Final = 200
_HOLDER: Final = ("customer", "contract", "limit", "held_by")


def explain_windows(
    windows: pl.DataFrame, usage: pl.DataFrame, books: Books, column: str, place: Place
) -> Node:
    """The tree of a column of some windows (results.LIMIT_WINDOWS): down to uses by product and quarter hour, or day.

    usage: frames.LIMIT_USAGE that the windows were made of. Ratios are of one window; which one, the tree says. Raises
    BadInput for a column without parts, and where units of several limits would have to be added.
    """
    if column not in WINDOW_COLUMNS:
        raise BadInput(
            f"limits has no column '{column}' that has parts; give one of {', '.join(WINDOW_COLUMNS)}"
        )
    return _Windows(windows.sort(LIMIT_WINDOWS.key), usage, books, place).node(column)


@dataclass
class _Windows:
    windows: pl.DataFrame
    usage: pl.DataFrame
    books: Books
    place: Place

    def node(self, column: str) -> Node:
        if column in ("used", "refused"):
            return self._weighted(column)
        if column in _COUNTS:
            return self._counted(column)
        if column == "binding_ratio":
            return self._binding()
        if column in _RANKS:
            return self._ranked(column, _RANKS[column])
        return self._headroom(column)

    # ---- windows ---------------------------------------------------------------------------------------------

    def _by_holder(self, name: str, leaves: Iterable[tuple[Row, Node]], per: int, unit: str) -> Node:
        """Nodes of windows under their customer, limit and holder."""
        levels: dict[tuple[str, str], dict[str, list[Node]]] = {}
        for row, node in leaves:
            levels.setdefault((row["customer"], row["limit"]), {}).setdefault(row["held_by"], []).append(node)
        found = []
        for (customer, limit), holders in levels.items():
            nodes = [
                nodes[0].named(", ".join([*([held_by] if held_by != customer else []), nodes[0].name]))
                if len(nodes) == 1
                else total(held_by, nodes, per, unit, each="windows")
                for held_by, nodes in holders.items()
            ]
            found.append(total(f"{customer}, {limit}", nodes, per, unit, self._said(customer, limit)))
        return total(name, found, per, unit)

    def _said(self, customer: str, limit: str) -> str:
        """What the catalog says of a limit that the windows are of."""
        mine = (pl.col("customer") == customer) & (pl.col("limit") == limit)
        rows = self.windows.filter(mine)
        first = rows.row(0, named=True)
        quantities = " then ".join(
            f"{quantity:,}" for quantity in rows.sort("window_start")["quantity"].unique(maintain_order=True)
        )
        weights = self.books.limit_weights.filter(
            (pl.col("contract") == first["contract"]) & (pl.col("limit") == limit) & (pl.col("weight") != 0)
        ).sort("meter")
        by = first["denominator"]
        weighed = " + ".join(
            f"{meter} x {_share(weight, by)}"
            for meter, weight in weights.select("meter", "weight").iter_rows()
        )
        where = (
            f"plan {first['plan']} ({self.place('plan', first['plan'])})"
            if first["plan"] is not None
            else f"contract {first['contract']} ({self.place('contract', first['contract'])})"
        )
        opened = {
            "minute": "each minute",
            "fixed": f"windows of {first['window_minutes']:,} minutes, one after the other",
            "anchored": f"windows of {first['window_minutes']:,} minutes from the first use after the last one closed",
        }[first["window"]]
        return f"{quantities} per {first['holder']}, {opened}, of {weighed}; {where}"

    def _window(self, row: Row) -> str:
        return f"{row['window_start']:{MINUTE}} to {row['window_until']:{MINUTE}} UTC"

    def _full(self, row: Row) -> str:
        """How full a window is, and what it was when."""
        by = row["denominator"]
        words = f"{_units(row['used'], by)} of {row['quantity']:,}"
        if row["refused_requests"]:
            words += f", {row['refused_requests']:,} requests refused"
        if row["binding_from"] is not None:
            words += f", binding from {row['binding_from']:{MINUTE}}"
        return words + (", still open" if row["open"] else "")

    def _weighted(self, column: str) -> Node:
        """used or refused, in units of one limit."""
        rows = self.windows
        kinds = rows.select("contract", "limit", "quantity", "denominator").unique()
        if rows.select("limit", "denominator").unique().height != 1:
            some = ", ".join(kinds["limit"].unique().sort())
            raise BadInput(f"units of {some} cannot be added; add limit=NAME")
        per = int(rows["denominator"][0])
        uses = self._uses() if column == "used" and rows.height <= USES_WINDOWS_MAX else {}

        def window(place: int, row: Row) -> Node:
            parts = uses.get(place, ())
            return Node(self._window(row), row[column], per, "units", self._full(row), tuple(parts))

        leaves = [(row, window(place, row)) for place, row in enumerate(rows.iter_rows(named=True))]
        return self._by_holder(column, leaves, per, "units")

    def _uses(self) -> dict[int, Sequence[Node]]:
        """What was used of each window by product, then quarter hour (of a window longer than a day, by day)."""
        windows = self.windows.with_row_index("_window")
        limits = self.books.limits.select(
            "contract", "limit", "holder", "items", "effective_from", "effective_until"
        )
        pairs = windows.select(
            *(
                "_window",
                "customer",
                "contract",
                "limit",
                "held_by",
                "window_start",
                "window_until",
                "window_minutes",
                "denominator",
            )
        ).join(limits, on=["contract", "limit"])
        pairs = pairs.filter(
            (pl.col("effective_from") <= pl.col("window_start"))
            & (pl.col("effective_until").is_null() | (pl.col("effective_until") > pl.col("window_start")))
        )
        held = pl.col("holder")
        used = self.usage.filter(
            pl.col("customer").is_in(windows["customer"].unique().implode())
            & pl.col("minute").is_between(
                windows["window_start"].min(), windows["window_until"].max(), closed="left"
            )
        ).with_row_index("_use")
        rows = used.join(pairs, on="customer").filter(
            ((pl.col("items").list.len() == 0) | pl.col("items").list.contains(pl.col("product")))
            & pl.col("minute").is_between("window_start", "window_until", closed="left")
            & (
                pl.when(held == "customer")
                .then("customer")
                .when(held == "project")
                .then("project")
                .otherwise("seat")
                == pl.col("held_by")
            )
        )
        weights = self.books.limit_weights.filter(pl.col("weight") != 0)
        long = pl.col("window_minutes") > 1440
        weighed = (
            rows.with_columns(
                pl.when(long)
                .then(pl.col("minute").dt.truncate("1d"))
                .otherwise(pl.col("minute").dt.truncate("15m"))
                .alias("at")
            )
            .unpivot(
                list(SUMS),
                index=["_window", "contract", "limit", "product", "at", "window_minutes", "denominator"],
                variable_name="meter",
                value_name="quantity",
            )
            .join(weights.drop("denominator"), on=["contract", "limit", "meter"])
            .group_by("_window", "product", "at", "window_minutes", "denominator", "meter", "weight")
            .agg(pl.col("quantity").cast(SUM).sum())
            .filter(pl.col("quantity") != 0)
            .sort("_window", "product", "at", "meter")
        )
        found: dict[int, Sequence[Node]] = {}
        for (window,), mine in weighed.group_by("_window", maintain_order=True):
            found[int(str(window))] = self._by_product(mine)
        return found

    def _by_product(self, rows: pl.DataFrame) -> Sequence[Node]:
        by, daily = int(rows["denominator"][0]), rows["window_minutes"][0] > 1440

        def said(rows: pl.DataFrame) -> str:
            sums = rows.group_by("meter", "weight").agg(pl.col("quantity").sum()).sort("meter")
            return " + ".join(
                f"{quantity:,} {meter} x {_share(weight, by)}" for meter, weight, quantity in sums.iter_rows()
            )

        used = (pl.col("quantity") * pl.col("weight")).sum().alias("used")
        uses = pl.struct("meter", "weight", "quantity").alias("uses")
        sums = rows.group_by("product", "at", maintain_order=True).agg(used, uses)

        def leaf(row: Row) -> Node:
            at = f"{row['at']:%Y-%m-%d}" if daily else f"{row['at']:{MINUTE}}"
            return Node(
                at,
                row["used"],
                by,
                "units",
                said(pl.DataFrame(row["uses"], schema_overrides={"quantity": SUM})),
            )

        def whole(some: pl.DataFrame) -> str:
            return said(some.select("uses").explode("uses").unnest("uses"))

        each = "days" if daily else "quarter hours"
        return grouped("", sums, [["product"]], leaf, by, "units", each=each, whole=whole).children

    def _counted(self, column: str) -> Node:
        unit = _COUNTS[column]
        rows = self.windows
        if column in ("windows_binding", "holders_binding"):
            rows = rows.filter("binding")
        if column in ("holders", "holders_binding"):
            return self._holders(column, rows)
        one = column in ("windows", "windows_binding")
        leaves = [
            (row, Node(self._window(row), 1 if one else row[column], 1, unit, self._full(row)))
            for row in rows.iter_rows(named=True)
            if one or row[column]
        ]
        return self._by_holder(column, leaves, 1, unit)

    def _holders(self, column: str, rows: pl.DataFrame) -> Node:
        """Who held something: each once, however many limits and windows it had."""
        by = ["customer", "holder", "held_by"]
        sums = (
            rows.group_by(by)
            .agg(pl.len().alias("windows"), pl.col("binding").sum(), pl.lit(1).alias("one"))
            .sort(by)
        )

        def leaf(row: Row) -> Node:
            how = f"{row['windows']:,} windows, {row['binding']:,} of them binding"
            return Node(row["held_by"], 1, 1, "holders", how)

        return grouped(column, sums, [["customer"]], leaf, 1, "holders")

    # ---- ratios ----------------------------------------------------------------------------------------------

    def _binding(self) -> Node:
        binding, all_of = self._counted("windows_binding"), self.windows.height
        how = f"{binding.amount:,} binding of {all_of:,} windows"
        share = self.windows.select(ratio(pl.col("binding").sum().cast(SUM), pl.len().cast(SUM))).item()
        return Node("binding_ratio", int(share * RATIO_PER), RATIO_PER, "ratio", how, made_of=binding)

    @cached_property
    def _in_order(self) -> pl.DataFrame:
        """Windows by used / limit."""
        full = pl.col("quantity").cast(SUM) * pl.col("denominator").cast(SUM)
        rows = self.windows.with_row_index("_place").with_columns(ratio(pl.col("used"), full).alias("_ratio"))
        return rows.sort("_ratio", "_place")

    def _of_window(self, place: int) -> Node:
        return _Windows(self.windows[place], self.usage, self.books, self.place).node("used")

    def _ranked(self, column: str, percent: int) -> Node:
        rows = self._in_order
        rank = (rows.height * percent + 99) // 100
        chosen = rows.row(rank - 1, named=True)
        how = f"used / limit of the window at place {rank:,} of {rows.height:,}, the emptiest first"
        return Node(
            column,
            int(chosen["_ratio"] * RATIO_PER),
            RATIO_PER,
            "ratio",
            how,
            made_of=self._of_window(chosen["_place"]),
        )

    def _headroom(self, column: str) -> Node:
        least = self.windows.with_row_index("_place").sort("headroom_ratio", "_place").row(0, named=True)
        if column == "headroom_ratio" and self.windows.height > 1:
            raise BadInput(
                f"headroom_ratio is of one window, and there are {self.windows.height:,}; add held_by=, window_start=, or "
                "ask for least_headroom_ratio"
            )
        how = f"1 - {_units(least['used'], least['denominator'])} / {least['quantity']:,}"
        if self.windows.height > 1:
            how += f", the least of {self.windows.height:,} windows"
        amount = int(least["headroom_ratio"] * RATIO_PER)
        return Node(column, amount, RATIO_PER, "ratio", how, made_of=self._of_window(least["_place"]))


def _units(numerator: int, denominator: int) -> str:
    whole, rest = divmod(numerator, denominator)
    return f"{whole:,}" if not rest else f"{numerator / denominator:,.3f}"


def _share(weight: int, denominator: int) -> str:
    whole, rest = divmod(weight, denominator)
    return f"{whole}" if not rest else f"{weight / denominator:.6f}".rstrip("0")


# ---- exposure --------------------------------------------------------------------------------------------


def explain_exposure(
    rows: pl.DataFrame, burn: pl.DataFrame, books: Books, period: Period, row: Row, column: str, place: Place
) -> Node:
    """The tree of a cell of results.EXPOSURE `rows`: of one limit, or of all with windows of one length.

    burn: results.LIMIT_BURN of the pool.
    """
    if column not in EXPOSURE_COLUMNS:
        raise BadInput(
            f"the exposure of a pool has no column '{column}' that has parts; give one of {', '.join(EXPOSURE_COLUMNS)}"
        )
    if row[column] is None:
        raise BadInput(f"{column} is empty here: the period is shorter than the window")
    per = int(row["denominator"])
    length = timedelta(minutes=row["window_minutes"])
    window = f"an average window of {length / DAY * 24:g} hours of {period.name}"
    how = f"of {row['pool']} in {window}, less undelivered and carved out"
    available = Node("available", row["available"], per, "burn units", how)
    if column == "available":
        return available
    if column in ("peak", "peak_ratio"):
        how = f"burned by all holders together in the fullest such window, from {row['peak_start']:{MINUTE}} UTC"
        found = Node("peak", row["peak"], per, "burn units", how)
    elif row["limit"] is None:
        same = (pl.col("window_minutes") == row["window_minutes"]) & (pl.col("dimension") == row["dimension"])
        limits = rows.filter(same & pl.col("limit").is_not_null())
        limits = limits.sort("plan", "contract", "limit", nulls_last=True)
        parts = [_of_limit(each, burn, books, period, place) for each in limits.iter_rows(named=True)]
        found = total("exposure", parts, per, "burn units", "all limits with windows of this length")
    else:
        found = _of_limit(row, burn, books, period, place).named("exposure")
    if not column.endswith("_ratio"):
        return found
    how = f"{found.name} {_units(found.amount, per)} / available {_units(available.amount, per)}"
    return Node(column, int(row[column] * RATIO_PER), RATIO_PER, "ratio", how, made_of=found)


def _of_limit(row: Row, burn: pl.DataFrame, books: Books, period: Period, place: Place) -> Node:
    """Holders x limit x observed burn / observed use."""
    about = ("plan", "contract", "limit", "dimension")
    said_so = (pl.col(name).eq_missing(pl.lit(row[name], dtype=pl.String)) for name in about)
    mine = burn.filter(pl.all_horizontal(said_so)).row(0, named=True)
    last = period.until - timedelta(minutes=1)
    said = books.limits.filter(
        (pl.col("limit") == row["limit"])
        & (
            pl.col("plan") == row["plan"]
            if row["plan"] is not None
            else pl.col("contract") == row["contract"]
        )
        & (pl.col("effective_from") <= last)
        & (pl.col("effective_until").is_null() | (pl.col("effective_until") > last))
    )
    quantities = " or ".join(f"{quantity:,}" for quantity in said["quantity"].unique().sort())
    where = place("plan", row["plan"]) if row["plan"] is not None else place("contract", str(row["contract"]))
    how = (
        f"{row['holders']:,} holders x limit {quantities} x {_units(mine['burn'], mine['denominator'])} burned / "
        f"{_units(mine['use'], mine['use_denominator'])} used of it in {period.name} ({where})"
    )
    name = ", ".join(filter(None, [row["plan"], row["contract"], row["limit"]]))
    facts = {
        "holders": row["holders"],
        "burn": _units(mine["burn"], mine["denominator"]),
        "use": _units(mine["use"], mine["use_denominator"]),
    }
    return Node(name, row["exposure"], int(row["denominator"]), "burn units", how, facts=facts)
