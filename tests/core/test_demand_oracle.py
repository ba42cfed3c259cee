"""The demand side twice: the core against the slow oracle on random contracts and usage, to the last digit."""

from collections import Counter

from tests.oracle.demand_compare import demand_differs
from tests.oracle.demand_worlds import demand_world


def test_the_core_and_the_oracle_charge_the_same_of_every_quarter_hour() -> None:
    met: Counter[str] = Counter()
    assert [line for seed in range(4, 28) for line in demand_differs(demand_world(seed), met)] == []
    assert min(met.values()) > 0, f"some term was never met, so nothing is proved of it: {met}"
