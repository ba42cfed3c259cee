"""Trees for people and programs: indented text that fits a terminal, and JSON with every part."""

import json
import textwrap
from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final

from metering.delivery.report import Provenance, instant
from metering.delivery.tables import money, printable
from metering.tree import MONEY_PER, Node

WIDTH_MIN: Final = 60
#: Children of one node that text shows; the rest is summed in one line. JSON has all.
_SHOWN_MAX: Final = 24
_INDENT: Final = 2


def to_text(tree: Node, provenance: Provenance, title: str, width: int, batches: Node | None = None) -> str:
    """The tree as lines of at most `width`: name and amount, and below it, indented, how it was computed."""
    width = max(width, WIDTH_MIN)
    caption = textwrap.wrap(provenance.caption(), width)
    lines = [*textwrap.wrap(printable(title), width), *caption, "", *_lines(tree, 0, width)]
    if batches is not None:
        lines += ["", *_lines(batches, 0, width)]
    return "\n".join(lines) + "\n"


def _lines(node: Node, depth: int, width: int) -> Iterator[str]:
    margin = " " * (_INDENT * depth)
    amount = f"{_amount(node)} {node.unit}"
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
    shown, rest = node.children, node.children[_SHOWN_MAX:]
    if len(rest) > 1:
        shown = node.children[:_SHOWN_MAX]
    for child in shown:
        yield from _lines(child, depth + 1, width)
    if len(rest) > 1:
        more = Node(f"and {len(rest)} more", sum(child.amount for child in rest), node.per, node.unit)
        yield from _lines(more, depth + 1, width)
    if node.made_of is not None:
        yield from _lines(node.made_of.named(f"of {node.made_of.unit}"), depth + 1, width)


def _amount(node: Node) -> str:
    if node.per == MONEY_PER:
        return money(node.value)
    if node.amount % node.per == 0:
        return f"{node.amount // node.per:,}"
    return f"{node.value:,.3f}"


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
