"""Frames: a frame keeps its declaration, comes out sorted by its key, or is refused by name."""

from typing import Any

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.errors import FrameBroken
from metering.frames.frame import Frame
from tests.text_tables import read

BOUGHT = Frame(
    "BOUGHT",
    {"day": pl.Int32, "customer": pl.String, "pool": pl.String, "quantity": pl.Int64},
    key=("day", "customer", "pool"),
    nullable=frozenset({"pool"}),
    laws={"quantity is not negative": pl.col("quantity") >= 0},
)
KEYS = st.tuples(st.integers(0, 2), st.sampled_from(["", "a", "b"]), st.sampled_from([None, "", "p"]))


def bought(rows: list[tuple[Any, ...]]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=dict(BOUGHT.columns), orient="row")


def test_rows_come_out_by_the_key_and_nulls_first() -> None:
    found = read(
        """
        day | customer | pool | quantity
        2   | acme     | west | 5
        1   | zeta     | -    | 4
        1   | acme     | west | 3
        1   | acme     | east | 2
        1   | acme     | -    | 1
        """,
        BOUGHT,
    )
    assert found["quantity"].to_list() == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "1 | acme | - | 1\n 2 | acme | - | 1\n 1 | acme | - | 7",
            r"the key .* occurs twice: .*'pool': None",
        ),
        ("1 | acme | a | 1\n 1 | acme | a | 1", "the key .* occurs twice: .*'pool': 'a'"),
        ("1 | acme | a | -1", "'quantity is not negative' does not hold for .*'quantity': -1"),
    ],
)
def test_a_broken_frame_is_refused_by_name(text: str, says: str) -> None:
    with pytest.raises(FrameBroken, match=f"BOUGHT: {says}"):
        read(f"day | customer | pool | quantity\n {text}", BOUGHT)


@given(st.lists(KEYS, max_size=9))
def test_any_order_is_sorted_and_any_repetition_is_found(keys: list[tuple[Any, ...]]) -> None:
    given_rows = [(*key, place) for place, key in enumerate(keys)]
    if len(set(keys)) < len(keys):
        with pytest.raises(FrameBroken, match="occurs twice"):
            BOUGHT.conform(bought(given_rows))
        return
    found = BOUGHT.conform(bought(given_rows))
    order = sorted(given_rows, key=lambda row: (*row[:2], row[2] is not None, row[2] or ""))
    assert found.rows() == order
    assert BOUGHT.conform(found).equals(found)


@given(st.lists(st.lists(KEYS, unique=True, max_size=4), max_size=4))
def test_parts_laid_end_to_end_are_what_all_rows_are(parts: list[list[tuple[Any, ...]]]) -> None:
    made = [BOUGHT.conform(bought([(*key, 1) for key in keys])) for keys in parts]
    together = pl.concat([BOUGHT.empty(), *made])
    if together.select("day", "customer", "pool").is_duplicated().any():
        with pytest.raises(FrameBroken, match="occurs twice"):
            BOUGHT.end_to_end(made)
    else:
        assert BOUGHT.end_to_end(made).equals(BOUGHT.conform(together))
