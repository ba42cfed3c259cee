"""How far heartbeats reach: runs, gaps, gaps that were accepted, clocks that step back. Tables in, tables out."""

from datetime import UTC, datetime, timedelta

import pytest

from metering.store.heartbeats import Gap, Heartbeat, walk

NOON = datetime(2026, 10, 31, 12, tzinfo=UTC)


def at(minute: int) -> datetime:
    return NOON + timedelta(minutes=minute)


def beats(told: str) -> list[Heartbeat]:
    """`3@7` is number 3, made at minute 7, complete until then; `3@7:5` is complete until minute 5."""
    found = []
    for one in told.split():
        number, _, times = one.partition("@")
        made, _, until = times.partition(":")
        found.append(Heartbeat(int(number), at(int(made)), at(int(until or made))))
    return sorted(found, key=lambda one: (one.occurred_at, one.sequence))


#: heartbeats, gaps accepted (first missing, next there, minute before, minute after), reach in minutes, what is missing
TABLE = """
                                | -         | -  | -
1@0                             | -         | 0  | -
1@0 2@1 3@2                     | -         | 2  | -
7@0 8@1                         | -         | 1  | -
1@0 2@1 4@3 5@4                 | -         | 1  | 3
1@0 2@1 7@6 8@7                 | -         | 1  | 3 to 6
1@0 2@1 4@3 5@4 3@2             | -         | 4  | -
1@0 2@1 1@2 2@3                 | -         | 3  | -
1@0 3@2 1@5 2@6                 | -         | 0  | 2
1@0 3@2 1@5 2@6                 | 2 3 0 2   | 6  | -
1@0 2@1 7@6 8@7                 | 3 7 1 6   | 7  | -
1@0 2@1 4@3 7@6 8@7             | 3 7 1 6   | 7  | -
1@0 2@1 7@6 8@7                 | 3 6 1 6   | 1  | 3 to 6
1@0 2@1 7@6 1@10 2@11 7@16      | 3 7 1 6   | 11 | 3 to 6
1@0 2@3 3@2 4@4                 | -         | 4  | -
1@0 2@1 2@2 3@3                 | -         | 3  | -
1@0 2@1 1@2:0                   | -         | 1  | -
1@0 2@1:0 3@2:0                 | -         | 0  | -
"""


@pytest.mark.parametrize("line", TABLE.strip("\n").splitlines())
def test_how_far_heartbeats_reach(line: str) -> None:
    told, accepted, reach, missing = (cell.strip() for cell in line.split("|"))
    gaps = []
    if accepted != "-":
        first, following, before, after = map(int, accepted.split())
        gaps.append(Gap(first, following, at(before), at(after)))
    until, gap = walk(beats(told), gaps)
    assert until == (None if reach == "-" else at(int(reach)))
    assert (gap.numbers if gap else "-") == missing
