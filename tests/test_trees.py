"""Trees as text: long lists of parts are folded into lines that still sum to the whole, and lose no reason."""

from datetime import timedelta

from metering.delivery.report import Provenance
from metering.delivery.trees import folded, to_text
from metering.periods import parse_period
from metering.tree import Node, total

DAY = parse_period("2026-11-22")
PROVENANCE = Provenance(
    period=DAY,
    cut=DAY,
    complete_until=DAY.until + timedelta(hours=1),
    watermark_id=None,
    catalog_revision=1,
    program_version="0",
)


def shown(node: Node, **how) -> list[str]:
    text = to_text(node, PROVENANCE, "title", 100, **how)
    assert max(map(len, text.splitlines())) <= 100
    return [line.replace(".", "").strip() for line in text.split("\n\n", 1)[1].splitlines()]


def sums(node: Node) -> None:
    """Node refuses parts that do not sum; here that each list is short, all the way down."""
    assert len(node.children) <= 12
    for child in node.children:
        sums(child)


def quarter_hours(reason="") -> Node:
    names = [f"{hour:02}:{minute:02}" for hour in range(24) for minute in (0, 15, 30, 45)]
    leaves = [Node(name, place, 1, "tokens", reason) for place, name in enumerate(names)]
    return total("night", leaves, 1, "tokens", "at 0 units, 4,560 counted", "quarter hours")


def test_quarter_hours_of_a_day_are_one_run_with_its_least_and_most_unless_every_part_is_asked_for():
    assert shown(quarter_hours()) == [
        "night  4,560 tokens",
        "= at 0 units, 4,560 counted",
        "96 quarter hours, 00:00 to 23:45  4,560 tokens",
        "= from 0 (00:00) to 95 (23:45)",
    ]
    assert shown(quarter_hours("x 3 per million"))[-1] == "= from 0 (00:00) to 95 (23:45); x 3 per million"
    assert len(shown(quarter_hours(), every_part=True)) == 98
    assert shown(quarter_hours(), depth=0) == shown(quarter_hours())[:2]


def test_of_other_parts_the_largest_stay_in_their_order_and_the_rest_is_one_with_their_common_reason():
    leaves = [Node(f"customer {number}", number % 7, 1, "tokens", "as agreed") for number in range(20)]
    tree = total("whole", leaves, 1, "tokens")
    lines = shown(tree)
    kept = [f"customer {number}" for number in (3, 4, 5, 6, 10, 11, 12, 13, 17, 18, 19)]
    assert [line.split("  ")[0] for line in lines[1::2]] == [*kept, "and 9 smaller"]
    assert lines[-2:] == ["and 9 smaller  9 tokens", "= as agreed"]
    assert len(shown(tree, every_part=True)) == 41


def test_below_a_run_and_in_what_an_amount_is_made_of_everything_is_folded_too():
    native = quarter_hours()
    tree = total("both", [native, native.named("again")], 1, "tokens")
    tree = Node("in EUR", tree.amount, 1, "tokens", children=(tree,), made_of=tree)
    sums(folded(tree))
    made_of = folded(tree).made_of
    assert made_of is not None
    sums(made_of)
    assert shown(tree).count("96 quarter hours, 00:00 to 23:45  4,560 tokens") == 4
