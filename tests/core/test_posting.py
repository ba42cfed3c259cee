"""What is learned of a closed month is posted to the first open one: tables that a controller could check."""

from datetime import date

import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from metering.core.posting import posted
from metering.frames.frame import Frame
from metering.money import MONEY
from tests.text_tables import check, read

LINES = Frame(
    "LINES",
    {
        "day": pl.Date, "customer": pl.String, "revenue": MONEY, "cost": MONEY, "list_price": MONEY,
        "estimated": pl.Boolean,
    },
    key=("day", "customer"),
    nullable=frozenset({"customer", "list_price"}),
)  # fmt: skip
MARCH, APRIL, MAY = (date(2026, month, 1) for month in (3, 4, 5))
#: March as it was closed; and as it is known in May: 5,000 of late revenue, and a credit of 8,000.
CLOSED = """
day        | customer | revenue | cost   | list_price | estimated
2026-03-30 | -        | 0       | 20_000 | -          | yes
2026-03-30 | acme     | 100_000 | 50_000 | 60_000     | yes
2026-03-31 | globex   | 1       | 1      | 1          | no
2026-03-31 | initech  | 0       | 0      | -          | no
"""
KNOWN_IN_MAY = """
day        | customer | revenue | cost   | list_price | estimated
2026-03-30 | -        | 0       | 12_000 | -          | no
2026-03-30 | acme     | 100_000 | 50_000 | 60_000     | no
2026-03-31 | acme     | 5_000   | 0      | -          | no
2026-03-31 | globex   | 1       | 1      | 1          | no
2026-03-31 | initech  | 0       | 0      | -          | yes
"""
OF_MAY = """
day        | customer | revenue | cost   | list_price | estimated
2026-05-01 | acme     | 10_000  | 4_000  | 4_000      | yes
"""
POSTED = """
service_month | day        | customer | revenue | cost   | list_price | estimated
2026-03-01    | 2026-03-30 | -        | 0       | -8_000 | -          | no
2026-03-01    | 2026-03-31 | acme     | 5_000   | 0      | -          | no
2026-05-01    | 2026-05-01 | acme     | 10_000  | 4_000  | 4_000      | yes
"""


def lines(text: str) -> pl.DataFrame:
    return read(text, LINES)


def margin(frame: pl.DataFrame) -> tuple[int, int]:
    return int(frame["revenue"].sum()), int(frame["revenue"].sum() - frame["cost"].sum())


def test_march_stays_as_closed_and_may_gains_what_was_learned_of_it() -> None:
    assert margin(lines(KNOWN_IN_MAY)) == (105_001, 43_000)
    march = posted(LINES, (MARCH, lines(CLOSED)))
    assert margin(march) == (100_001, 30_000)
    late = [(MARCH, lines(KNOWN_IN_MAY), lines(CLOSED)), (APRIL, LINES.empty(), LINES.empty())]
    may = posted(LINES, (MAY, lines(OF_MAY)), late)
    check(may, POSTED)
    gained = may.filter(pl.col("service_month") == MARCH)
    assert margin(gained) == (5_000, 13_000)


#: What is known of each of three months at each of three closes.
_AMOUNTS = st.lists(st.lists(st.integers(-5, 5), min_size=3, max_size=3), min_size=3, max_size=3)


@given(_AMOUNTS)
def test_posted_over_all_months_is_service_as_last_known(known: list[list[int]]) -> None:
    months = (MARCH, APRIL, MAY)

    def as_of(month: int, close: int) -> pl.DataFrame:
        row = {
            "day": months[month], "customer": "acme", "revenue": known[month][close], "cost": 0, "list_price": None,
            "estimated": False,
        }  # fmt: skip
        return pl.DataFrame([row], schema_overrides=dict(LINES.columns)).cast(dict(LINES.columns))  # type: ignore[arg-type]

    total = 0
    for at, month in enumerate(months):
        late = [(months[earlier], as_of(earlier, at), as_of(earlier, at - 1)) for earlier in range(at)]
        total += margin(posted(LINES, (month, as_of(at, at)), late))[0]
    assert total == sum(month[-1] for month in known)
