"""Objects where they were read, and the rules that hold for every kind: spans, overlaps, names that exist."""

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol, TypeVar

from metering.catalog.documents import Document, Fault, KeyPath
from metering.catalog.fields import instant_text
from metering.catalog.shapes import CatalogObject
from metering.meters import CONTEXT_BREAKPOINTS


class Dated(Protocol):
    """A row with a span."""

    @property
    def effective_from(self) -> datetime: ...
    @property
    def effective_until(self) -> datetime | None: ...


Row = TypeVar("Row", bound=Dated)


@dataclass(frozen=True)
class Placed:
    """An object where it was read."""

    item: CatalogObject
    document: Document
    path: KeyPath

    @property
    def line(self) -> int:
        """The line on which the object begins."""
        return self.document.line(self.path)

    @property
    def place(self) -> str:
        """File and line, to point a person at it."""
        return f"{self.document.file}:{self.line}"

    def fault(self, path: KeyPath, value: object, problem: str) -> Fault:
        """A fault at a path below this object."""
        return self.document.fault((*self.path, *path), value, problem)


def ends(one: Placed, path: KeyPath, start: datetime, until: datetime | None) -> Iterator[Fault]:
    """A span ends after it starts."""
    if until is not None and until <= start:
        yield one.fault(
            (*path, "effective_until"),
            instant_text(until),
            f"must be later than effective_from ({instant_text(start)})",
        )


def overlaps(
    rows: Iterable[tuple[Hashable, datetime, datetime | None, Placed, KeyPath]],
) -> Iterator[Fault]:
    """Spans that overlap an earlier span of the same group."""
    groups: dict[Hashable, list[tuple[datetime, datetime | None, Placed, KeyPath]]] = defaultdict(list)
    for group, begins, ends, where, below in rows:
        groups[group].append((begins, ends, where, below))
    for members in groups.values():
        members.sort(key=lambda member: member[0])
        reaching = members[0]
        for member in members[1:]:
            before_start, before_until, before, before_path = reaching
            start, until, one, path = member
            if before_until is None or before_until > start:
                line = before.document.line((*before.path, *before_path))
                end = "open" if before_until is None else instant_text(before_until)
                other = f"{before.document.file}:{line} ({instant_text(before_start)} to {end})"
                remedy = (
                    "keep one of them"
                    if before_start == start
                    else f"give that one `effective_until: {instant_text(start)}` or start this one later"
                )
                yield one.fault(
                    (*path, "effective_from"),
                    instant_text(start),
                    f"overlaps {other}; {remedy}",
                )
            if before_until is not None and (until is None or until > before_until):
                reaching = member


def spans(
    one: Placed, path: KeyPath, rows: Sequence[Row], group: Callable[[Row], Hashable]
) -> Iterator[Fault]:
    """Every row of a list ends after it starts, and the rows of one group do not overlap."""
    for index, row in enumerate(rows):
        yield from ends(one, (*path, index), row.effective_from, row.effective_until)
    yield from overlaps(
        (group(row), row.effective_from, row.effective_until, one, (*path, index))
        for index, row in enumerate(rows)
    )


def known(one: Placed, path: KeyPath, name: str, names: Collection[str], what: str) -> Iterator[Fault]:
    """A name that others refer to is there."""
    if name not in names:
        listed = ", ".join(sorted(names)[:8]) + (", ..." if len(names) > 8 else "")
        yield one.fault(path, name, f"no such {what} in this catalog; known are {listed or 'none'}")


def breakpoint_known(one: Placed, path: KeyPath, above: int) -> Iterator[Fault]:
    """A context breakpoint is one of those that events are counted by."""
    if above not in (0, *CONTEXT_BREAKPOINTS):
        known = ", ".join(str(edge) for edge in CONTEXT_BREAKPOINTS)
        yield one.fault((*path, "above_input_tokens"), above, f"must be one of {known}; leave it out for 0")


def priced_meters(meters: Iterable[str]) -> set[str]:
    """The meters that a table prices or weighs: reasoning counts as output where it is not named."""
    named = set(meters)
    return named | {"reasoning_tokens"} if "output_tokens" in named else named
