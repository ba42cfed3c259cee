"""Settling: what a void does, by what it names and by what was taken back before."""

from typing import Final, Literal

Side = Literal["charge", "both"]
Outcome = Literal[
    "compensated", "second_void", "void_of_void", "void_of_other", "nonbillable_charge", "target_archived"
]

#: Events that can be taken back.
_VOIDABLE: Final = "usage"


def outcome(*, side: Side, target: str | None, billable: bool, taken_back: bool) -> Outcome:
    """How a void settles.

    `target`: the type of the event that it names (a key of the ledger's event types), None when that stood in
    a day that was archived. `billable`: whether the event was charged for. `taken_back`: whether a void has
    taken it back already; the first one counts, so that `both` after `charge` changes nothing any more.

    Only `compensated` takes anything back: revenue for side `charge`, revenue, cost and burn for `both`.
    """
    if target is None:
        return "target_archived"
    if target == "void":
        return "void_of_void"
    if target != _VOIDABLE:
        return "void_of_other"
    if taken_back:
        return "second_void"
    if side == "charge" and not billable:
        return "nonbillable_charge"
    return "compensated"
