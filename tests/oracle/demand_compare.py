"""Hold the demand side of the core against the oracle on one world: every difference, by quarter hour and term."""

from collections import Counter
from collections.abc import Iterator

import polars as pl

from metering.core.revenue import earned, reach, under_terms
from tests.oracle.demand import AMOUNTS, charges
from tests.oracle.demand_worlds import DemandWorld
from tests.oracle.supply import Row

#: What some world of a run must have had.
DEMAND_MET = frozenset({f"quarter hours with {name}" for name in AMOUNTS})


def demand_differs(world: DemandWorld, met: Counter[str] | None = None) -> list[str]:
    """What the core says and the oracle does not, or the other way round; empty where they agree."""
    met = Counter() if met is None else met
    return [f"demand seed {world.seed}: {line}" for line in _differences(world, met)]


def _differences(world: DemandWorld, met: Counter[str]) -> Iterator[str]:
    if under_terms(world.books).is_empty():
        return
    plain = world.plain
    contract = plain["contracts"][0]
    wanted = {
        at: row
        for at, row in charges(world.usage.to_dicts(), plain, contract, world.complete_until)
        .by_quarter()
        .items()
        if world.period.start <= at < world.period.until
    }
    found: dict[object, Row] = {}
    got = earned(_within_reach(world), world.books, world.period, world.complete_until)
    for row in got.lines.iter_rows(named=True):
        sums = found.setdefault(row["quarter_start"], dict.fromkeys(AMOUNTS, 0))
        for name in AMOUNTS:
            sums[name] += row[name]
    for at in sorted({*found, *wanted}, key=str):
        for name in AMOUNTS:
            core = found.get(at, {}).get(name, 0)
            oracle = wanted.get(at, {}).get(name, 0)
            met[f"quarter hours with {name}"] += bool(oracle)
            if core != oracle:
                yield f"{at} {name}: core {core}, oracle {oracle}"


def _within_reach(world: DemandWorld) -> pl.DataFrame:
    """The usage that a report of the period would read, and no more."""
    read = reach(world.books, world.period, world.complete_until)
    return (
        world.usage.join(read, on="customer", validate="m:1")
        .filter(pl.col("quarter_start").is_between("effective_from", "effective_until", closed="left"))
        .select(world.usage.columns)
    )
