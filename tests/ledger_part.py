"""A part of a batch without events, for tests of positions alone."""

from collections.abc import Sequence

import numpy as np

from metering.store.batch import Digests, Part, Refused
from metering.store.ledger_rows import LEDGER_ROW
from metering.store.positions import Claim


def empty_part(claim: Claim, *, next_offset: int) -> Part:
    """A part that moves a position and brings nothing."""
    none = np.empty(0, "S16")

    def refused(rows: Sequence[int]) -> list[Refused]:
        raise AssertionError(f"there are no rows {rows}")

    return Part(
        claim=claim,
        next_offset=next_offset,
        records=0,
        rows=np.empty(0, LEDGER_ROW),
        event_ids=[],
        digests=Digests(none, none, none, none),
        rejects=[],
        unknown_fields=0,
        appended_until=None,
        seen_until=None,
        refused=refused,
    )
