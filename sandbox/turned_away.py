"""Requests of seats that had used up their limit: what the gateway turns away, as refusals."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from sandbox.company import CUSTOMERS, PRODUCTS

Integers = npt.NDArray[np.int64]

#: The plan `team-flat` of examples/catalog: so much in a window of five hours, which opens at a seat's first use.
TEAM: Final = ("granite-edu", "harbor-law")
FIVE_HOURS_MS: Final = 300 * 60_000
FIVE_HOURS_QUANTITY: Final = 150_000
#: A seat that was served its last request asks again so much later.
AGAIN_MS: Final = 40_000


@dataclass(frozen=True)
class TurnedAway:
    """One refusal: when, whose, and what was asked for."""

    at_ms: int
    customer: int
    seat: int
    project: int
    product: int
    input_tokens: int
    output_tokens: int

    def line(self, id_: str, time: str, request: str) -> bytes:
        """The event, one JSON object."""
        who = CUSTOMERS[self.customer]
        model = PRODUCTS[self.product]
        return (
            f'{{"specversion":"1.0","id":"{id_}","type":"inference.refused.v1","source":"gateway/us-west",'
            f'"subject":"{who.name}","time":"{time}Z","data":{{"request_id":"{request}",'
            f'"reason":"customer_limit","product":"{model}","model":"{model}","tier_sold":"standard",'
            f'"region":"us-west","project":"{who.projects[self.project]}","seat":"seat-{self.seat:03d}",'
            f'"estimated_input_tokens":{self.input_tokens},"estimated_output_tokens":{self.output_tokens}}}}}'
        ).encode()


def turned_away(
    customer: Integers,
    seat: Integers,
    ended_ms: Integers,
    project: Integers,
    product: Integers,
    uncached: Integers,
    total_input: Integers,
    total_output: Integers,
    day_ms: int,
) -> list[TurnedAway]:
    """Whoever has used up a window asks once more after each request in it, and is turned away.

    The gateway counts a little late, so that what was under way is still served.
    """
    team = [number for number, each in enumerate(CUSTOMERS) if each.name in TEAM]
    rows = np.flatnonzero(np.isin(customer, team))
    rows = rows[np.lexsort((rows, ended_ms[rows], seat[rows], customer[rows]))]
    found = []
    holder, opened, used = (-1, -1), 0, 0
    for row in rows.tolist():
        who, at = (int(customer[row]), int(seat[row])), int(ended_ms[row])
        if who != holder or at >= opened + FIVE_HOURS_MS:
            holder, opened, used = who, at - at % 60_000, 0
        used += int(uncached[row]) + 5 * int(total_output[row])
        if used >= FIVE_HOURS_QUANTITY and at + AGAIN_MS < min(opened + FIVE_HOURS_MS, day_ms):
            asked = (int(product[row]), int(total_input[row]), int(total_output[row]))
            found.append(TurnedAway(at + AGAIN_MS, *who, int(project[row]), *asked))
    return found
