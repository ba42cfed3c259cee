"""The forecast on generated weeks: used where it beats the same hour a week before, else not; never on too little."""

from datetime import timedelta

import numpy as np

from metering.core.forecast import WEEK, forecast
from tests.text_tables import instant

START = instant("2026-03-02")
DAY = np.sin(np.arange(WEEK) * 2 * np.pi / 24) * 0.5 + 1


def weeks(
    count: int, growth: float, noise: float, seed: int = 5
) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """A week's pattern that grows by exp(growth) a week, each hour off by a random factor."""
    dice = np.random.default_rng(seed)
    levels = np.repeat(np.exp(growth * np.arange(count)), WEEK)
    return np.asarray(np.tile(DAY, count) * levels * dice.lognormal(0, noise, count * WEEK) * 100)


def test_it_beats_seasonal_naive_where_there_is_growth() -> None:
    found = forecast(weeks(9, 0.05, 0.1), START)
    assert found is not None
    assert found.method == "weekly_growth"
    assert found.error_ratio < 0.8 * found.naive_error_ratio
    truth = weeks(13, 0.05, 0)[9 * WEEK :]
    expected = np.array([found.expected(hour) for hour in range(4 * WEEK)])
    assert float(np.abs(expected / truth - 1).mean()) < 0.1
    # the band: of the hours of the next week about one in twenty lies above what 5 % exceed
    actual = weeks(10, 0.05, 0.1, seed=6)[9 * WEEK :]
    over = [found.exceeds(hour, float(actual[hour])) < 0.05 for hour in range(WEEK)]
    assert 0 < np.mean(over) < 0.15


def test_seasonal_naive_is_used_where_it_is_nearer() -> None:
    """Every other week doubles: a line through the levels of the past is farther off than the level of one."""
    steps = np.repeat([1.0, 1.0, 1.0, 8.0, 8.0, 8.0, 8.0, 8.0], WEEK) * np.tile(DAY, 8)
    found = forecast(steps, START)
    assert found is not None
    assert found.method == "seasonal_naive"
    assert found.error_ratio == found.naive_error_ratio
    assert found.expected(5) == steps[-WEEK + 5]


def test_too_little_is_not_forecast() -> None:
    assert forecast(weeks(3, 0, 0)[1:], START) is None
    assert forecast(np.zeros(4 * WEEK), START) is None


def test_nothing_available_is_always_exceeded() -> None:
    found = forecast(weeks(4, 0, 0.1), START)
    assert found is not None
    assert found.exceeds(0, 0) == 1
    assert found.exceeds(0, 1e9) == 0
    assert found.start + timedelta(hours=1) == instant("2026-03-02 01:00")
