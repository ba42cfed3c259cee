"""Trees: an amount, how it came about in words, and the parts that sum to it, exactly."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Context, Decimal
from typing import Any, Final

import polars as pl

from metering.errors import FrameBroken
from metering.money import QUANTUM

#: Quanta in one unit of currency.
MONEY_PER: Final = int(1 / QUANTUM)
#: What a ratio is counted in.
RATIO_PER: Final = 10**6
_EXACT: Final = Context(prec=60)
#: What makes a row of a frame a node.
Leaf = Callable[[Mapping[str, Any]], "Node"]


@dataclass(frozen=True)
class Node:
    """One amount: `amount` / `per` of `unit`. Its children, if it has any, sum to it; otherwise FrameBroken.

    how: in words, what was multiplied, split or looked up. facts: the same for programs, in files alone. made_of:
    the tree of another unit that it was made of (the amount before translation, what a ratio is of), which is not
    summed. each: what its children are where they follow each other (`quarter hours`), so that many of them may be
    told as one run; `how` then says of all together what theirs say of each.
    """

    name: str
    amount: int
    per: int
    unit: str
    how: str = ""
    children: tuple["Node", ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    made_of: "Node | None" = None
    each: str = ""

    def __post_init__(self) -> None:
        odd = [child for child in self.children if (child.per, child.unit) != (self.per, self.unit)]
        if odd:
            raise FrameBroken(f"{self.name}: in {self.unit}, its part {odd[0].name} in {odd[0].unit}")
        parts = sum(child.amount for child in self.children)
        if self.children and parts != self.amount:
            raise FrameBroken(f"{self.name}: is {self.amount}, its parts sum to {parts}")

    @property
    def value(self) -> Decimal:
        """The amount in its unit: exact to 12 places, half-even where it has more."""
        return _EXACT.divide(Decimal(self.amount), Decimal(self.per)).quantize(QUANTUM, context=_EXACT)

    def negated(self, name: str | None = None) -> "Node":
        """The same, taken off."""
        return replace(
            self,
            name=name or self.name,
            amount=-self.amount,
            children=tuple(child.negated() for child in self.children),
            made_of=self.made_of.negated() if self.made_of else None,
        )

    def named(self, name: str, how: str = "") -> "Node":
        """The same under another name."""
        return replace(self, name=name, how=how or self.how)


def total(name: str, parts: Iterable[Node], per: int, unit: str, how: str = "", each: str = "") -> Node:
    """The node whose children are `parts`; 0 without any."""
    children = tuple(parts)
    return Node(name, sum(child.amount for child in children), per, unit, how, children, each=each)


def grouped(
    name: str,
    rows: pl.DataFrame,
    levels: Sequence[Sequence[str]],
    leaf: Leaf,
    per: int,
    unit: str,
    *,
    each: str = "",
    whole: Callable[[pl.DataFrame], str] | None = None,
) -> Node:
    """A tree over the rows: one level of nodes for each of `levels`, named by its columns, and a leaf a row.

    Rows keep the order in which they come. A node with one child is that child, under both names; what is null, and
    the names of no context breakpoint and of the only dimension, are left out. each: what the leaves are, where they
    follow each other; whole: how the rows of all leaves below one node came about.
    """
    if not levels:
        leaves = (leaf(row) for row in rows.iter_rows(named=True))
        return total(name, leaves, per, unit, whole(rows) if whole else "", each)
    first, *rest = levels
    children = []
    for values, group in rows.group_by(list(first), maintain_order=True):
        named = label(dict(zip(first, values, strict=True)))
        child = grouped(named, group, rest, leaf, per, unit, each=each, whole=whole)
        if len(child.children) == 1:
            only = child.children[0]
            child = only.named(", ".join(filter(None, [child.name, only.name])))
        children.append(child)
    return total(name, children, per, unit)


def label(told: Mapping[str, Any]) -> str:
    """Names of a level: values, with a word where the value alone says nothing."""
    words = []
    for column, value in told.items():
        if value is None or (column == "context_breakpoint" and value == 0):
            continue
        if column == "context_breakpoint":
            words.append(f"above {value:,} tokens of input")
        elif column == "dimension" and value == "all":
            continue
        else:
            words.append(str(value))
    return ", ".join(words)
