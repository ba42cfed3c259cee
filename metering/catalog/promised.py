"""What customers were promised of a pool beside what it has: promising more is allowed, and said."""

from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime
from decimal import Decimal

from metering.catalog.fields import decimal_text, instant_text
from metering.catalog.spans import OPEN
from metering.catalog.supply import DIMENSION_ALL
from metering.frames.books import Books


def oversubscribed(books: Books, at: datetime) -> Iterator[str]:
    """A sentence per pool and dimension whose entitlements exceed its units from `at` on, at the first instant.

    Only while the pool has a step in force: what is promised beyond its end is no promise of units that it has.
    """
    unit_of = {row["pool"]: row["unit"] for row in books.pools.iter_rows(named=True)}
    for (pool, dimension), promised in sorted(books.entitlements.group_by("pool", "dimension")):
        changes: dict[datetime, list[Decimal]] = defaultdict(lambda: [Decimal(0)] * 3)
        for side, frame in enumerate((promised, books.capacity_steps.filter(pool=pool, dimension=dimension))):
            for start, until, units in frame.select("effective_from", "effective_until", "units").rows():
                if (until or OPEN) > at:
                    changes[max(start, at)][side] += units
                    changes[until or OPEN][side] -= units
                    changes[max(start, at)][2] += side
                    changes[until or OPEN][2] -= side
        held = there = steps = Decimal(0)
        for edge in sorted(changes):
            held, there, steps = (a + b for a, b in zip((held, there, steps), changes[edge], strict=True))
            if held > there and steps:
                named = "" if dimension == DIMENSION_ALL else f" of dimension {dimension}"
                yield (
                    f"pool {pool} is oversubscribed: from {instant_text(edge)} on entitlements promise "
                    f"{decimal_text(held)} {unit_of[pool]}{named}, and {decimal_text(there)} are contracted"
                )
                break
