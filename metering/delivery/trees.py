"""Trees for people and programs: indented text that fits a terminal, and JSON with every part."""

import json
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from itertools import chain
from typing import Any, Final

from metering.delivery.report import Provenance, instant
from metering.delivery.tables import money, printable
from metering.tree import MONEY_PER, RATIO_PER, Node

WIDTH_MIN: Final = 60
#: Children of one node that text shows, unless every part is asked for.
_SHOWN_MAX: Final = 12
_INDENT: Final = 2


def to_text(
    tree: Node,
    provenance: Provenance,
    title: str,
    width: int,
    batches: Node | None = None,
    *,
    depth: int | None = None,
    every_part: bool = False,
) -> str:
    """The tree as lines of at most `width`: name and amount, and below it, indented, how it was computed.

    depth: how many levels below the root; None: all. More than 12 parts of a node are told in fewer lines, which
    sum to the same; every_part: each in a line of its own.
    """
    width = max(width, WIDTH_MIN)
    head = [*textwrap.wrap(printable(title), width), *textwrap.wrap(provenance.caption(), width)]
    trees = [tree] if batches is None else [tree, batches]
    told = [("", *_lines(each if every_part else folded(each), 0, width, depth)) for each in trees]
    return "\n".join([*head, *chain.from_iterable(told)]) + "\n"


def folded(node: Node) -> Node:
    """The same with at most 12 parts below each node, which still sum to it.

    Many parts that follow each other (`Node.each`) become one, with the first, the last, the least and the most of
    them; of others the largest stay, and the rest become one. What all of those say of themselves, it says.
    """
    parts = node.children
    if len(parts) > _SHOWN_MAX:
        parts = (_run(node),) if node.each else _largest(node)
    return replace(
        node,
        children=tuple(folded(part) for part in parts),
        made_of=folded(node.made_of) if node.made_of else None,
    )


def _run(node: Node) -> Node:
    parts = node.children
    name = f"{len(parts):,} {node.each}, {parts[0].name} to {parts[-1].name}"
    least, most = (pick(parts, key=lambda part: part.amount) for pick in (min, max))
    span = f"each {_amount(least)}"
    if least.amount != most.amount:
        span = f"from {_amount(least)} ({least.name}) to {_amount(most)} ({most.name})"
    return Node(name, node.amount, node.per, node.unit, "; ".join(filter(None, [span, _common(parts)])))


def _largest(node: Node) -> tuple[Node, ...]:
    """The largest parts in their order, and one of all others."""
    order = sorted(range(len(node.children)), key=lambda place: -abs(node.children[place].amount))
    kept = {*order[: _SHOWN_MAX - 1]}
    rest = [part for place, part in enumerate(node.children) if place not in kept]
    least = min(abs(node.children[place].amount) for place in kept)
    which = "smaller" if all(abs(part.amount) < least for part in rest) else "more"
    other = Node(
        f"and {len(rest):,} {which}", sum(part.amount for part in rest), node.per, node.unit, _common(rest)
    )
    return (*(part for place, part in enumerate(node.children) if place in kept), other)


def _common(parts: Sequence[Node]) -> str:
    said = {part.how for part in parts}
    return said.pop() if len(said) == 1 else ""


def _lines(node: Node, level: int, width: int, depth: int | None) -> Iterator[str]:
    margin = " " * (_INDENT * level)
    amount = f"{_amount(node)} {_unit(node)}"
    name = printable(node.name)
    room = width - len(margin) - len(amount) - 1
    if len(name) > room:
        yield from textwrap.wrap(name, width, initial_indent=margin, subsequent_indent=margin)
        yield f"{margin}{amount:>{width - len(margin)}}"
    else:
        dots = "." * (room - len(name) - 1)
        yield (
            f"{margin}{name} {dots} {amount}"
            if dots
            else f"{margin}{name} {amount:>{room + len(amount) - len(name)}}"
        )
    if node.how:
        inside = margin + " " * _INDENT
        yield from textwrap.wrap(
            f"= {printable(node.how)}", width, initial_indent=inside, subsequent_indent=inside + "  "
        )
    if level == depth:
        return
    for child in node.children:
        yield from _lines(child, level + 1, width, depth)
    if node.made_of is not None:
        made_of = node.made_of.named(node.made_of.name or f"of {node.made_of.unit}")
        yield from _lines(made_of, level + 1, width, depth)


def _amount(node: Node) -> str:
    if node.per == MONEY_PER:
        return money(node.value)
    if node.per != RATIO_PER and node.amount % node.per == 0:
        return f"{node.amount // node.per:,}"
    return f"{node.value:,.6f}" if node.per == RATIO_PER else f"{node.value:,.3f}"


def _unit(node: Node) -> str:
    """The unit, in the singular of one; `ms` has none."""
    one = node.amount == node.per and node.per != MONEY_PER and node.unit.endswith("s") and node.unit != "ms"
    return node.unit[:-1] if one else node.unit


def to_json(tree: Node, provenance: Provenance, report: str, cell: str, batches: Node | None = None) -> str:
    """The whole tree: amounts as text with all places, each node with how, facts, children and made_of."""
    cut, known = provenance.cut, provenance.complete_until
    head = {
        "report": report,
        "cell": cell,
        "period": provenance.period.name,
        "from": instant(provenance.period.start),
        "until": instant(provenance.period.until),
        "cut_at": instant(cut.until),
        "complete": provenance.whole,
        "complete_until": None if known is None else instant(known),
        "watermark_id": provenance.watermark_id,
        "catalog_revision": provenance.catalog_revision,
        "program_version": provenance.program_version,
    }
    body = {"tree": _object(tree)} | ({"batches": _object(batches)} if batches is not None else {})
    return json.dumps({**head, **body}, ensure_ascii=False, indent=1) + "\n"


def _object(node: Node) -> dict[str, Any]:
    amount = f"{node.value:f}" if node.per != 1 else str(node.amount)
    found: dict[str, Any] = {"name": node.name, "amount": amount, "unit": node.unit, "how": node.how}
    if node.facts:
        found["facts"] = {name: _plain(value) for name, value in node.facts.items()}
    if node.children:
        found["children"] = [_object(child) for child in node.children]
    if node.made_of is not None:
        found["made_of"] = _object(node.made_of)
    return found


def _plain(value: object) -> object:
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, datetime):
        return instant(value)
    if isinstance(value, date):
        return str(value)
    # a program that reads JSON may take a number for a float
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value
