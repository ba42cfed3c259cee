"""Measures: one number with its unit, what it is held against, and the goal; as a table and as JSON."""

import json
import os
import platform
import re
import resource
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Final, Literal

import rich.table
from rich.console import Console

#: Says on stderr what is being done.
Progress = Callable[[str], None]
Goal = Literal["at least", "at most"]

_PACKAGES: Final = ("polars", "numpy", "psycopg", "kafka-python", "msgspec", "xxhash", "crc32c")
#: The folder that holds this package: processes of the benchmarks start there.
CHECKOUT: Final = Path(__file__).resolve().parent.parent
_MIB: Final = 1024 * 1024


@dataclass(frozen=True)
class Measure:
    """`value` in `unit`; `ratio` is value / reference. The goal is a ratio to reach, or one not to exceed."""

    measure: str
    value: float
    unit: str
    reference: float | None = None
    goal_ratio: float | None = None
    goal: Goal = "at least"

    @property
    def ratio(self) -> float | None:
        """How the value stands to its reference; None without one."""
        return self.value / self.reference if self.reference else None

    @property
    def reached(self) -> bool | None:
        """Whether the goal is met; None where there is none."""
        if self.ratio is None or self.goal_ratio is None:
            return None
        return self.ratio >= self.goal_ratio if self.goal == "at least" else self.ratio <= self.goal_ratio

    def record(self) -> dict[str, object]:
        """The measure as it stands in latest.json."""
        return {**asdict(self), "ratio": self.ratio}


@dataclass(frozen=True)
class Table:
    """Numbers that belong together, ready to read: a title, columns, rows of texts."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


@dataclass
class Results:
    """What a part of the benchmarks found."""

    measures: list[Measure] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    def add(self, other: "Results") -> None:
        """Take over what another part found."""
        self.measures += other.measures
        self.tables += other.tables


def peak_bytes() -> int:
    """The largest resident set of this process since it began to run its program.

    Not `ru_maxrss` where Linux tells it better: that one begins with what the process was forked from.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def mebibytes(count: float) -> float:
    """Bytes as MiB."""
    return count / _MIB


def write_json(path: Path, measures: Iterable[Measure]) -> None:
    """Replace `path` by the list of measures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".new")
    draft.write_text(json.dumps([measure.record() for measure in measures], indent=1) + "\n")
    draft.replace(path)


def measured_table(measures: Iterable[Measure]) -> Table:
    """The measures with their references, ratios and goals."""
    words = {True: "reached", False: "not reached", None: ""}
    return Table(
        "Measures",
        ("measure", "value", "unit", "reference", "ratio", "goal", ""),
        [
            (
                one.measure,
                _number(one.value),
                one.unit,
                "" if one.reference is None else _number(one.reference),
                "" if one.ratio is None else f"{one.ratio:.2f}",
                ""
                if one.goal_ratio is None
                else f"{'>=' if one.goal == 'at least' else '<='} {one.goal_ratio:.2f}",
                words[one.reached],
            )
            for one in measures
        ],
    )


def print_table(console: Console, table: Table) -> None:
    """For a terminal: numbers to the right."""
    shown = rich.table.Table(box=None, header_style="bold", pad_edge=False, title_justify="left")
    for place, column in enumerate(table.columns):
        shown.add_column(column, justify="right" if _is_numeric(table, place) else "left")
    for row in table.rows:
        shown.add_row(*row)
    console.print(f"\n[bold]{table.title}[/bold]", highlight=False)
    console.print(shown)


def markdown(table: Table) -> str:
    """For a document."""
    rule = ["---:" if _is_numeric(table, place) else "---" for place in range(len(table.columns))]
    lines = [f"| {' | '.join(cells)} |" for cells in (table.columns, rule, *table.rows)]
    return "\n".join([f"**{table.title}**", "", *lines, ""])


def _is_numeric(table: Table, place: int) -> bool:
    return all(re.fullmatch(r"([<>]= )?-?[\d.,]+ ?%?|", row[place]) for row in table.rows)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:,.2f}"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine_facts() -> list[str]:
    """What the numbers depend on: processor, memory, Python, versions."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return [
        f"{cores()} cores ({_processor()}), {memory:.0f} GiB, {platform.system()} {platform.release()}",
        f"Python {platform.python_version()}, {packages}",
        f"load before the run: {os.getloadavg()[0]:.2f}",
    ]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def say(line: str) -> None:
    """Progress on stderr."""
    print(line, file=sys.stderr, flush=True)
