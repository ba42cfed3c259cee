"""Which alerts open and which resolve, as tables."""

from datetime import UTC, datetime
from decimal import Decimal

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.core.alerting import (
    CHANGES,
    FINDINGS,
    STATES,
    changes,
    judged_periods,
    margin_findings,
    messages,
)
from metering.errors import FrameBroken
from metering.frames.frame import Frame
from metering.money import MONEY
from metering.periods import parse_period

BAND = Decimal("0.01")
#: The columns of a margin by customer that the rule reads.
MARGINS = Frame(
    "MARGINS",
    {
        "customer": pl.String,
        "kind": pl.String,
        "revenue": MONEY,
        "cost": MONEY,
        "margin": MONEY,
        "floor_ratio": MONEY,
        "breach": pl.Boolean,
        "cost_unrated": pl.Boolean,
    },
    nullable=frozenset({"customer", "kind", "floor_ratio", "breach"}),
)


def table(frame: Frame, text: str) -> pl.DataFrame:
    """A text table (first line: column names; `-` is null) as a frame."""
    head, *lines = [line.split() for line in text.strip().splitlines()]
    columns: dict[str, pl.Series] = {}
    for place, name in enumerate(head):
        words = [None if line[place] == "-" else line[place] for line in lines]
        dtype = frame.columns[name]
        if dtype == pl.Boolean:
            columns[name] = pl.Series(
                [None if word is None else word == "yes" for word in words], dtype=dtype
            )
        elif dtype == MONEY:
            columns[name] = pl.Series(
                [None if word is None else Decimal(word) for word in words], dtype=dtype
            )
        else:
            columns[name] = pl.Series(words, dtype=pl.String).cast(dtype)
    return pl.DataFrame(columns)


def written(frame: pl.DataFrame, *columns: str) -> list[str]:
    """Rows as words, to compare with the lines of a text table."""
    words = {True: "yes", False: "no", None: "-"}
    return [
        " ".join(
            words[v]
            if v is None or isinstance(v, bool)
            else f"{v.normalize():f}"
            if isinstance(v, Decimal)
            else str(v)
            for v in row
        )
        for row in frame.select(columns).rows()
    ]


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.strip().splitlines()]


def test_a_breach_holds_and_clears_only_above_the_band() -> None:
    summary = table(
        MARGINS,
        """
        customer   kind   revenue cost margin floor_ratio breach cost_unrated
        below      paying 100     81   19     0.2         yes    no
        at_floor   paying 100     80   20     0.2         no     no
        in_band    paying 100     79.01 20.99 0.2         no     no
        above      paying 100     79   21     0.2         no     no
        no_revenue paying 0       5    -5     0.2         yes    no
        nothing    paying 0       0    0      0.2         no     no
        no_floor   paying 0       50   -50    -           no     no
        trial      trial  0       50   -50    0.2         no     no
        cost_open  paying 100     10   90     0.2         no     yes
        high_floor paying 100     0.2  99.8   0.995       no     no
        -          -      0       70   -70    -           -      no
        """,
    )
    found = margin_findings(summary, "2026-11", BAND)
    assert written(found, "scope", "holds", "clear", "impact") == lines(
        """
        above      no  yes 0
        at_floor   no  no  0
        below      yes no  1
        cost_open  no  no  0
        high_floor no  yes 0
        in_band    no  no  0
        no_floor   no  yes 0
        no_revenue yes no  5
        nothing    no  yes 0
        trial      no  yes 0
        """
    )
    assert found["period"].unique().to_list() == ["2026-11"]


def test_an_alert_opens_once_stays_and_resolves_once() -> None:
    findings = table(
        FINDINGS,
        """
        scope     period  holds clear impact
        new       2026-11 yes   no    7
        open      2026-11 yes   no    7
        in_band   2026-11 no    no    0
        better    2026-11 no    yes   0
        again     2026-11 yes   no    3
        fine      2026-11 no    yes   0
        first_fine 2026-11 no   yes   0
        """,
    )
    states = table(
        STATES,
        """
        scope    sequence state
        open     1        opened
        in_band  3        opened
        better   5        opened
        again    2        resolved
        fine     4        resolved
        gone     1        opened
        """,
    )
    first = changes(findings, states, "2026-11")
    assert written(first, "scope", "sequence", "state", "period", "impact") == lines(
        """
        again  3 opened   2026-11 3
        better 6 resolved 2026-11 0
        gone   2 resolved 2026-11 0
        new    1 opened   2026-11 7
        """
    )
    after = STATES.conform(
        pl.concat([states.join(first, on="scope", how="anti"), first.select(*STATES.columns)])
    )
    assert changes(findings, after, "2026-11").is_empty()


def test_two_months_open_on_either_and_resolve_on_both() -> None:
    findings = table(
        FINDINGS,
        """
        scope     period  holds clear impact
        old_month 2026-11 yes   no    7
        old_month 2026-12 no    yes   0
        both      2026-11 yes   no    7
        both      2026-12 yes   no    8
        half      2026-11 no    no    0
        half      2026-12 no    yes   0
        clear     2026-11 no    yes   0
        clear     2026-12 no    yes   0
        """,
    )
    states = table(STATES, "scope sequence state\nhalf 1 opened\nclear 1 opened")
    assert written(
        changes(findings, states, "2026-12"), "scope", "sequence", "state", "period", "impact"
    ) == lines(
        """
        both      1 opened   2026-12 8
        clear     2 resolved 2026-12 0
        old_month 1 opened   2026-11 7
        """
    )


@pytest.mark.parametrize(
    ("complete_until", "periods"),
    [
        (None, []),
        ("2026-11-22T16:47:12", ["2026-11"]),
        ("2026-11-04T00:00:00", ["2026-10", "2026-11"]),
        ("2026-11-04T00:15:00", ["2026-11"]),
        ("2026-12-01T00:00:00", ["2026-11"]),
        ("2026-12-01T00:14:59", ["2026-11"]),
        ("2026-12-01T00:15:00", ["2026-11", "2026-12"]),
        ("2027-01-02T00:00:00", ["2026-12", "2027-01"]),
    ],
)
def test_the_months_that_are_judged(complete_until: str | None, periods: list[str]) -> None:
    instant = None if complete_until is None else datetime.fromisoformat(complete_until).replace(tzinfo=UTC)
    judged = judged_periods(instant)
    assert [period.name for period in judged] == periods
    assert all(period == parse_period(period.name) for period in judged)


def test_more_than_the_limit_become_one_digest_largest_first() -> None:
    appended = table(
        CHANGES,
        """
        scope sequence state    period  impact
        a     1        opened   2026-11 5
        b     1        opened   2026-11 50
        c     3        opened   2026-11 5
        d     2        resolved 2026-11 0
        """,
    )
    assert [part["scope"].to_list() for part in messages(appended, 3)] == [["b"], ["a"], ["c"], ["d"]]
    assert [part["scope"].to_list() for part in messages(appended, 2)] == [["b", "a", "c"], ["d"]]
    assert messages(CHANGES.empty(), 2) == []


def test_a_finding_that_holds_and_is_clear_is_refused() -> None:
    with pytest.raises(FrameBroken, match="holds or clear"):
        FINDINGS.conform(table(FINDINGS, "scope period holds clear impact\na 2026-11 yes yes 1"))


@given(
    margins=st.lists(st.tuples(st.integers(-200, 200), st.integers(0, 200)), min_size=1, max_size=12),
    floor=st.integers(0, 100),
)
def test_any_history_alternates_and_says_each_thing_once(margins: list[tuple[int, int]], floor: int) -> None:
    states, floor_ratio = STATES.empty(), Decimal(floor) / 100
    for revenue, cost in margins:
        margin = revenue - cost
        breach = margin < floor_ratio * revenue or (revenue <= 0 and cost > 0)
        row = [("a", "paying", *map(Decimal, (revenue, cost, margin)), floor_ratio, breach, False)]
        summary = pl.DataFrame(row, schema=dict(MARGINS.columns), orient="row")
        found = margin_findings(summary, "2026-11", BAND)
        appended = changes(found, states, "2026-11")
        was_open = states.height == 1 and states["state"].item() == "opened"
        assert not (was_open and appended.height and breach)
        assert was_open or appended.height == int(breach)
        if appended.height:
            assert appended["sequence"].item() == (states["sequence"].item() if states.height else 0) + 1
            states = STATES.conform(appended.select(*STATES.columns))
        assert changes(found, states, "2026-11").is_empty()
