"""Steps of the bridge: what one cell of a period becomes, as the new period replaces the old term by term."""

from collections.abc import Mapping
from typing import NamedTuple

from metering.core.cost_by_meter import ON_DEMAND

#: New full rate / old full rate by pool, dimension (None: of the pool) and currency: numerator, denominator.
Indices = Mapping[tuple[str, str | None, str], tuple[int, int]]


class Cell(NamedTuple):
    """Quantity, and gross and amount in quanta, of one price in one period."""

    quantity: int
    gross: int
    amount: int


class OnCost(NamedTuple):
    """A charge that is a ratio of cost: of each place what ran there and what that cost, and the whole charge."""

    places: dict[str, Cell]
    gross: int
    amount: int


def charge_steps(was: Cell | None, now: Cell | None, scale: tuple[int, int] | None) -> list[int]:
    """The charge of a cell: as it was, at the new volume, the new mix, the new price, the new discount."""
    start = was.amount if was else 0
    end = now.amount if now else 0
    if scale is None:
        return [start, end, end, end, end]
    scaled = start * scale[0] // scale[1]
    if was is None or was.quantity == 0 or now is None:
        return [start, scaled, end, end, end]
    mixed = was.amount * now.quantity // was.quantity
    priced = now.gross * was.amount // was.gross if was.gross else end
    return [start, scaled, mixed, priced, end]


def cost_steps(
    was: Mapping[str, Cell],
    now: Mapping[str, Cell],
    scale: tuple[int, int] | None,
    indices: Indices,
    currency: str,
) -> list[int]:
    """The cost of a cell over its places: as it was, at the new volume, mix, supplier prices, and as it ran."""
    start, end = sum(cell.amount for cell in was.values()), sum(cell.amount for cell in now.values())
    if scale is None:
        return [start, end, end, end, end]
    scaled = sum(cell.amount * scale[0] // scale[1] for cell in was.values())
    ran = sum(cell.quantity for cell in was.values())
    runs = sum(cell.quantity for cell in now.values())
    if ran == 0 or not now:
        return [start, scaled, end, end, end]
    mixed = start * runs // ran
    supplied = 0
    for place, cell in was.items():
        there = now.get(place)
        if place != ON_DEMAND:
            up, below = indices.get((place, None, currency), (1, 1))
            supplied += runs * cell.amount * up // (ran * below)
        elif there is not None and there.quantity:
            supplied += runs * cell.quantity * there.amount // (ran * there.quantity)
        else:
            supplied += runs * cell.amount // ran
    return [start, scaled, mixed, supplied, end]


def on_cost_steps(
    was: OnCost | None,
    now: OnCost | None,
    scale: tuple[int, int] | None,
    indices: Indices,
    cost_currency: str,
    turn: tuple[int, int],
) -> list[int]:
    """A charge that is a ratio of cost: as it was, at the new volume, mix, ratio, discount; then as its cost moved by
    suppliers' prices and by utilization, all at the old exchange rate; and at the new."""
    start, end = was.amount if was else 0, now.amount if now else 0
    if scale is None:
        return [start, *[end] * 7]
    if was is None or now is None:
        return [start, start * scale[0] // scale[1], *[end] * 6]
    _, _, mixed_cost, supplied_cost, cost = cost_steps(was.places, now.places, scale, indices, cost_currency)
    scaled = start * scale[0] // scale[1]
    ran = sum(cell.quantity for cell in was.places.values())
    if ran == 0 or cost == 0 or was.gross == 0:
        return [start, scaled, *[end] * 6]
    up, below = turn
    mixed = start * sum(cell.quantity for cell in now.places.values()) // ran
    priced = now.gross * mixed_cost * start * up // (cost * was.gross * below)
    discounted, supplied = (end * each * up // (cost * below) for each in (mixed_cost, supplied_cost))
    return [start, scaled, mixed, priced, discounted, supplied, end * up // below, end]
