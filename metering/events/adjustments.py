"""Adjustments: quantities that a person enters, one a line of a CSV file, all of them sound or none."""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import polars as pl
import xxhash

from metering.events.columns import REGION_DEFAULT
from metering.events.identity import event_keys, length_prefixed
from metering.events.instants import parse_instants
from metering.events.laws import DecodeLimits
from metering.events.rejects import TEXT_BYTES_MAX
from metering.frames.usage import DIMENSIONS
from metering.meters import CONTEXT_BREAKPOINTS, FIRST_METERS, METERS, QUANTITY_MAX

#: Version of the digest: the order and encoding of its fields, and the seed of its hash.
ADJUSTMENT_DIGEST_VERSION: Final = 1
#: Version of the digest of an adjustment of further meters: all meters are in it.
FURTHER_ADJUSTMENT_VERSION: Final = 2
REQUIRED: Final = (
    "id", "customer", "provider", "model_served", "tier_served", "occurred_at", "reason",
)  # fmt: skip
OPTIONAL: Final = (
    "product", "tier_sold", "region", "capacity_pool", "ran_on", "counts_for", "context_breakpoint",
    "project", "seat", "author", *METERS,
)  # fmt: skip
_CLOSED: Final[Mapping[str, tuple[str, ...]]] = {
    "ran_on": ("pool", "overflow", "on_demand"),
    "counts_for": ("charge_and_cost", "cost", "charge"),
    "context_breakpoint": ("0", *map(str, sorted(CONTEXT_BREAKPOINTS))),
}
_TEXTS: Final = tuple(
    name for name in (*REQUIRED, *OPTIONAL) if name not in (*METERS, *_CLOSED, "occurred_at")
)
_INTEGER: Final = re.compile(r"[-+]?[0-9]{1,18}")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Adjustment:
    """Quantities that are added to a series at an instant (all >= 0) or taken from it (all <= 0)."""

    line: int
    event_id: str
    occurred_at: datetime
    dimensions: tuple[str | int | None, ...]  # in the order of frames.DIMENSIONS
    project: str | None
    seat: str | None
    meters: tuple[int, ...]  # in the order of METERS; at least one is not 0
    reason: str
    author: str

    @property
    def sign(self) -> int:
        """1 or -1."""
        return -1 if min(self.meters) < 0 else 1

    @property
    def customer(self) -> str:
        """Whose usage is adjusted."""
        return str(self.dimensions[0])

    @property
    def digest_version(self) -> int:
        """The version in which `digest` encodes it."""
        further = any(self.meters[len(FIRST_METERS) :])
        return FURTHER_ADJUSTMENT_VERSION if further else ADJUSTMENT_DIGEST_VERSION

    def digest(self) -> int:
        """The signed 64-bit xxh3 of what is entered: id, time, series, quantities, project, seat, reason.

        Each field length-prefixed; the seed is the version. The author is not part of it: the same file entered
        by another person is the same adjustment.
        """
        at = (self.occurred_at - _EPOCH) // timedelta(microseconds=1)
        version = self.digest_version
        meters = self.meters if version == FURTHER_ADJUSTMENT_VERSION else self.meters[: len(FIRST_METERS)]
        fields = (self.event_id, at, *self.dimensions, *meters, self.project, self.seat, self.reason)
        digest = xxhash.xxh3_64_intdigest(b"".join(map(length_prefixed, ("adjustment", *fields))), version)
        return digest - 2**64 if digest >= 2**63 else digest


class Fault(NamedTuple):
    """What is wrong with a file: the line and column where there are any, and what would be right."""

    line: int | None
    column: str | None
    detail: str

    def __str__(self) -> str:
        line = "" if self.line is None else f"line {self.line}: "
        return line + ("" if self.column is None else f"{self.column}: ") + self.detail


def read_adjustments(
    content: bytes, *, author: str, adjustments_max: int, limits: DecodeLimits, now: datetime
) -> tuple[list[Adjustment], list[Fault]]:
    """Read a CSV file with a header: its adjustments in order, or what is wrong with it (never both).

    `author` is who enters a row that names none. Times and ids keep the bounds of events, `now` in the place
    of the append time. What a row leaves out (a column that is missing, or an empty cell) is as on the wire.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        return [], [Fault(line, None, "this is not UTF-8; save the file as CSV in UTF-8")]
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        return [], [Fault(reader.line_num, None, f"this is not CSV: {error}")]
    if not rows:
        return [], [Fault(None, None, f"the file is empty; its first line names {', '.join(REQUIRED)}")]
    (_, header), body = rows[0], rows[1:]
    faults = list(_header_faults([name.strip() for name in header]))
    if not faults and not body:
        faults = [Fault(None, None, "the file has a header and no adjustment")]
    if len(body) > adjustments_max:
        faults.append(
            Fault(
                None,
                None,
                f"the file has {len(body):,} adjustments; at most {adjustments_max:,} enter at once "
                "(METERING_ADJUSTMENTS_MAX): cut it into several files",
            )
        )
    if faults:
        return [], faults
    names = [name.strip() for name in header]
    table = []
    for line, row in body:
        if len(row) == len(names):
            cells = {name: cell.strip() for name, cell in zip(names, row, strict=True) if cell.strip()}
            table.append((line, cells))
        else:
            faults.append(Fault(line, None, f"has {len(row)} cells, the header has {len(names)}"))
    # a column at a time, by the same reader as events
    ids = pl.Series([cells.get("id", "") for _, cells in table], dtype=pl.String)
    times = pl.Series([cells.get("occurred_at", "") for _, cells in table], dtype=pl.String)
    made: list[Adjustment] = []
    lines_of_ids: dict[str, int] = {}
    for (line, cells), at, id_at in zip(table, parse_instants(times), event_keys(ids).id_at, strict=True):
        wrong = [*_cell_faults(line, cells), *_time_faults(line, cells, at, id_at, limits, now)]
        if "id" in cells and (first := lines_of_ids.setdefault(cells["id"], line)) != line:
            wrong.append(Fault(line, "id", f"'{cells['id'][:64]}' stands in line {first} already"))
        faults += wrong
        if not faults:
            made.append(_adjustment(line, cells, at, author))
    return ([], sorted(faults, key=lambda fault: fault.line or 0)) if faults else (made, [])


def _header_faults(names: list[str]) -> Iterator[Fault]:
    for at, name in enumerate(names):
        if name not in REQUIRED and name not in OPTIONAL:
            known = ", ".join((*REQUIRED, *OPTIONAL))
            yield Fault(1, name or None, f"there is no such column; known are {known}")
        elif name in names[:at]:
            yield Fault(1, name, "stands twice in the header")
    for name in REQUIRED:
        if name not in names:
            yield Fault(1, name, "the column is missing; every adjustment has one")
    if not set(METERS) & set(names):
        yield Fault(1, None, f"no column is a quantity; name at least one of {', '.join(METERS)}")


def _cell_faults(line: int, cells: Mapping[str, str]) -> Iterator[Fault]:
    for name in REQUIRED:
        if name not in cells:
            yield Fault(line, name, "is empty; every adjustment has one")
    for name in _TEXTS:
        cell = cells.get(name, "")
        if len(cell.encode()) > TEXT_BYTES_MAX:
            yield Fault(
                line,
                name,
                f"has {len(cell.encode())} bytes, at most {TEXT_BYTES_MAX} are allowed; shorten it",
            )
        elif not cell.isprintable():
            yield Fault(line, name, f"{cell!r} holds a control character; take it out")
    for name, allowed in _CLOSED.items():
        if name in cells and cells[name] not in allowed:
            yield Fault(line, name, f"'{cells[name][:64]}' is none of {', '.join(allowed)}")
    if cells.get("ran_on", "on_demand") != "on_demand" and "capacity_pool" not in cells:
        yield Fault(line, "capacity_pool", f"is empty, but ran_on is {cells['ran_on']}; name the pool")
    if "capacity_pool" in cells and "ran_on" not in cells:
        yield Fault(
            line, "ran_on", f"is empty; beside a capacity_pool it is one of {', '.join(_CLOSED['ran_on'])}"
        )
    given = {name: cells[name] for name in METERS if name in cells}
    wrong = [name for name, cell in given.items() if not _INTEGER.fullmatch(cell)]
    for name in wrong:
        yield Fault(line, name, f"'{given[name][:64]}' is not a whole number; write it as 1200 or -1200")
    if wrong:
        return
    quantities = {name: int(cell) for name, cell in given.items()}
    for name, quantity in quantities.items():
        if abs(quantity) > QUANTITY_MAX:
            yield Fault(line, name, f"{quantity} is beyond {QUANTITY_MAX}; make several adjustments of it")
    if not any(quantities.values()):
        yield Fault(line, None, f"no quantity is given; fill in at least one of {', '.join(METERS)}")
    if min(quantities.values(), default=0) < 0 < max(quantities.values(), default=0):
        above = next(name for name, quantity in quantities.items() if quantity > 0)
        below = next(name for name, quantity in quantities.items() if quantity < 0)
        yield Fault(
            line,
            above,
            f"is {quantities[above]}, but {below} is {quantities[below]}; quantities of one adjustment are all "
            ">= 0 or all <= 0: make two of it",
        )


def _time_faults(
    line: int,
    cells: Mapping[str, str],
    at: datetime | None,
    id_at: datetime | None,
    limits: DecodeLimits,
    now: datetime,
) -> Iterator[Fault]:
    """The same bounds as of events: what the ledger has no day for cannot enter."""
    told, floor = cells.get("occurred_at", "")[:64], limits.ledger_floor
    if at is None:
        if told:
            detail = f"'{told}' is not a time with a zone; write 2026-10-31T23:59:59Z"
            yield Fault(line, "occurred_at", detail)
    elif at < floor:
        yield Fault(line, "occurred_at", f"{told} lies before the ledger's floor {floor:%Y-%m-%dT%H:%M:%SZ}")
    elif at > now + timedelta(seconds=limits.event_ahead_seconds_max):
        yield Fault(line, "occurred_at", f"{told} lies in the future; an adjustment is of what has happened")
    if id_at is not None and not floor <= id_at <= now + timedelta(seconds=limits.id_ahead_seconds_max):
        detail = (
            f"the time inside '{cells['id']}' is {id_at:%Y-%m-%dT%H:%M:%SZ}, for which the ledger has no day"
        )
        yield Fault(line, "id", f"{detail}; mint the id today, or name it in words")


def _adjustment(line: int, cells: Mapping[str, str], at: datetime, author: str) -> Adjustment:
    values: dict[str, Any] = {
        **cells,
        "product": cells.get("product", cells["model_served"]),
        "tier_sold": cells.get("tier_sold", cells["tier_served"]),
        "region": cells.get("region", REGION_DEFAULT),
        "pool": cells.get("capacity_pool"),
        "ran_on": cells.get("ran_on", "on_demand"),
        "counts_for": cells.get("counts_for", "charge_and_cost"),
        "context_breakpoint": int(cells.get("context_breakpoint", "0")),
    }
    return Adjustment(
        line=line,
        event_id=cells["id"],
        occurred_at=at,
        dimensions=tuple(values[name] for name in DIMENSIONS),
        project=cells.get("project"),
        seat=cells.get("seat"),
        meters=tuple(int(cells.get(meter, "0")) for meter in METERS),
        reason=cells["reason"],
        author=cells.get("author", author),
    )
