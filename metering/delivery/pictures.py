"""Pictures of capacity for a terminal: a heat map by hour of the week, and a line over the period."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final, TextIO

from rich.console import Console, Group, RenderableType
from rich.text import Text

_WEEKDAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
#: A share of at least this many percent has the next shade; the first is for less.
_SHADES_FROM: Final = (5, 25, 50, 75)


@dataclass(frozen=True)
class _Signs:
    shades: str  # one more than _SHADES_FROM
    line: str  # from nothing to just below the limit, then the limit itself


_DRAWN: Final = _Signs("·░▒▓█", "▁▂▃▄▅▆▇█")
_PLAIN: Final = _Signs(".:+#@", "_.:-=+*@")


@dataclass(frozen=True)
class Cell:
    """A stretch of time: how much of what was available was used, and its fullest minute; None: no minutes."""

    used: Decimal | None
    fullest: Decimal | None
    at_limit: bool


@dataclass(frozen=True)
class Picture:
    """Of one dimension of a pool: `hours`, the 168 of a week from Monday 00:00 UTC; `line`, the period in turn."""

    title: str
    hours: Sequence[Cell]
    line: Sequence[Cell]
    line_from: datetime
    each: str  # the length of a stretch of the line: 12h


def show(pictures: Sequence[Picture], file: TextIO) -> None:
    """Draw below a table; in ASCII where the terminal is not UTF-8, or there is none."""
    console = Console(file=file, width=None if file.isatty() else 100)
    utf8 = (getattr(file, "encoding", None) or "").lower().replace("-", "") == "utf8"
    signs = _DRAWN if utf8 and console.is_terminal else _PLAIN
    for picture in pictures:
        console.print(_draw(picture, signs), highlight=False)


def _draw(picture: Picture, signs: _Signs) -> RenderableType:
    parts: list[Text] = [
        Text(),
        Text(picture.title, style="bold"),
        Text("used of available by hour of week, UTC", style="dim"),
        Text(f"{'':5}" + "".join(f"{hour:02}    " for hour in range(0, 24, 3)).rstrip(), style="dim"),
    ]
    for day, name in enumerate(_WEEKDAYS):
        cells = [_hour(cell, signs) for cell in picture.hours[24 * day : 24 * day + 24]]
        parts.append(Text.assemble((f"{name}  ", "dim"), *cells))
    edges = [f"{sign} {edge} %" for sign, edge in zip(signs.shades[1:], _SHADES_FROM, strict=True)]
    legend = f"{signs.shades[0]} less   {'   '.join(edges)} and more   ! minutes at the limit"
    parts.append(Text(f"     {legend}", style="dim"))
    parts += [
        Text(f"from {picture.line_from:%Y-%m-%dT%H:%MZ}, {picture.each} each", style="dim"),
        Text.assemble(("mean ", "dim"), *(_stroke(cell.used, signs) for cell in picture.line)),
        Text.assemble(("peak ", "dim"), *(_stroke(cell.fullest, signs) for cell in picture.line)),
        Text(f"     {signs.line[0]} nothing   {signs.line[-1]} at the limit or above", style="dim"),
    ]
    return Group(*parts)


def _hour(cell: Cell, signs: _Signs) -> Text:
    if cell.used is None:
        return Text("  ")
    shade = signs.shades[sum(cell.used * 100 >= edge for edge in _SHADES_FROM)]
    return Text(shade + ("!" if cell.at_limit else shade), style=_style(cell.used, at_limit=cell.at_limit))


def _stroke(share: Decimal | None, signs: _Signs) -> Text:
    if share is None:
        return Text(" ")
    below = len(signs.line) - 1
    place = below if share >= 1 else min(below - 1, int(share * below))
    return Text(signs.line[place], style=_style(share, at_limit=share >= 1))


def _style(share: Decimal, *, at_limit: bool) -> str:
    if at_limit:
        return "red"
    return "yellow" if share >= Decimal("0.85") else "green"
