"""Words of explanations: amounts, ratios and days as all trees say them."""

from collections.abc import Callable
from typing import Any, Final

import polars as pl

from metering.frames.frame import SUM
from metering.money import from_quanta
from metering.tree import MONEY_PER, Node, total

#: Where a catalog object stands: (kind, name) -> "revision 3, prices.yaml:12".
Place = Callable[[str, str], str]
MINUTE: Final = "%Y-%m-%d %H:%M"


def units(quanta: Any) -> Any:
    """A count of money.QUANTUM as an amount."""
    return pl.select(from_quanta(pl.lit(quanta or 0, dtype=SUM))).item()


def money(quanta: Any) -> str:
    """A count of money.QUANTUM to the cent."""
    return f"{units(quanta):,.2f}"


def shortest(ratio: Any) -> str:
    """A decimal without zeros at its end."""
    return f"{ratio.normalize():f}"


def rate(ratio: int) -> str:
    """A count of 10**-12 without zeros at its end."""
    whole, rest = divmod(ratio, 10**12)
    return f"{whole}.{rest:012d}".rstrip("0").rstrip(".")


def days(name: str, how: str, rows: pl.DataFrame, currency: str) -> Node:
    """Rows (day, quanta) day by day; of one day, the sum alone."""
    sums = rows.group_by("day").agg(pl.col("quanta").sum()).sort("day")
    nodes = [Node(f"{day}", amount, MONEY_PER, currency) for day, amount in sums.iter_rows()]
    if len(nodes) == 1:
        return nodes[0].named(name, how)
    return total(name, nodes, MONEY_PER, currency, how, "days")
