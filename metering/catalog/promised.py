"""What customers were promised of a pool beside what it has: promising more is allowed, and said."""

from collections.abc import Iterator
from datetime import datetime

from metering.catalog.fields import decimal_text, instant_text
from metering.catalog.spans import OPEN
from metering.frames import Books


def oversubscribed(books: Books, at: datetime) -> Iterator[str]:
    """A sentence per pool and dimension whose entitlements exceed its units from `at` on, at the first instant."""
    unit_of = {row["pool"]: row["unit"] for row in books.pools.iter_rows(named=True)}
    by = ["pool", "dimension"]
    for (pool, dimension), promised in sorted(books.entitlements.group_by(by)):
        rows = promised.select("effective_from", "effective_until", "units").rows()
        steps = (
            books.capacity_steps.filter(pool=pool, dimension=dimension)
            .select("effective_from", "effective_until", "units")
            .rows()
        )
        edges = {at} | {edge for span in (*rows, *steps) for edge in span[:2] if edge and edge > at}
        for edge in sorted(edges):
            held = [units for start, until, units in rows if start <= edge < (until or OPEN)]
            there = sum(units for start, until, units in steps if start <= edge < (until or OPEN))
            if sum(held) > there:
                named = "" if dimension == "all" else f" of dimension {dimension}"
                yield (
                    f"pool {pool} is oversubscribed: from {instant_text(edge)} on entitlements promise "
                    f"{decimal_text(sum(held))} {unit_of[pool]}{named}, and {there} are contracted"
                )
                break
