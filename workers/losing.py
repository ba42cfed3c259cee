"""Why somebody loses money, in a sentence: what a thousand requests earn and cost, and where the cost ran."""

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Any, Final

import polars as pl

from metering.core.losses import losses
from metering.delivery.report import counted
from metering.delivery.tables import money, ratio

#: So many losses are told, the largest first; the table has all.
_TOLD: Final = 3
#: A part of the requests from which it is told that they earn nothing.
_UNBILLED: Final = Decimal("0.05")


def loss_notes(lines: pl.DataFrame, by: str, currency: str, period: str) -> Iterator[str]:
    """A sentence for each of the largest losses, by customer, plan, contract or segment, and where to look further."""
    found = losses(lines, by).sort("margin", "whose")
    for row in found.head(_TOLD).iter_rows(named=True):
        yield f"{row['whose']} loses {money(-row['margin'])} {currency}: {why(row)}"
    if found.height:
        rest = found.height - _TOLD
        more = f"{rest:,} more {'loses' if rest == 1 else 'lose'} money; " if rest > 0 else ""
        worst = found["whose"][0]
        named = f"'{by}={worst}'" if " " in worst else f"{by}={worst}"
        yield f"{more}down to prices and quantities: `metering explain margin {named} margin --period {period}`"


def why(row: Mapping[str, Any]) -> str:
    """What is earned, what it costs and where (a row of core.losses.LOSSES)."""
    given = [
        f"{money(row[name])} of {told}"
        for name, told in (("discount", "discounts"), ("promotional_credit", "promotional credits"))
        if row[name] > 0
    ]
    after = f" after {' and '.join(given)}" if given else ""
    parts = [("cost_pool", "for capacity in pools"), ("cost_on_demand", "on demand")]
    ran = ", ".join(f"{money(row[name])} {told}" for name, told in parts if row[name])
    requests, unbilled = row["requests"], row["unbilled_requests"]
    said = f"earns {money(row['revenue'])}{after}"
    if not requests:
        return f"{said}, and costs {money(row['cost'])} ({ran}) without a request"
    each = [money(row[name] * 1000 / requests) for name in ("revenue", "cost")]
    said += f" for {counted(requests, 'request')} that cost {money(row['cost'])} ({ran}): "
    said += f"{each[0]} against {each[1]} per thousand"
    if row["product_ratio"] is not None and row["product_ratio"] < 1:
        said += f"; {row['product']} is {ratio(row['product_ratio'])} of the cost"
    if unbilled >= _UNBILLED * requests:
        said += f"; {unbilled:,} of the requests are not billed (retries, failures, internal use)"
    return said
