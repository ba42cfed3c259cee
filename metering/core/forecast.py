"""Forecast: the busiest minute of every hour to come, by the week's pattern and its growth, with bands."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

import numpy as np
import numpy.typing as npt

#: Hours of a week: one season.
WEEK: Final = 168
#: Whole weeks without which nothing is forecast: two to see a pattern and its growth, one to test it on.
WEEKS_MIN: Final = 3
#: Weeks of the past that a forecast learns from.
_WEEKS_USED: Final = 12

Hours = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Forecast:
    """A forecast that was tested on its own past.

    method: `weekly_growth` (pattern of the week x its growth) where that was nearer than `seasonal_naive` (the
    same hour a week before) one week ahead, else `seasonal_naive`. Errors are mean absolute ones over all tested
    hours, as shares of the mean. `ratios`: actual / forecast of all tested hours, ascending.
    """

    method: str
    start: datetime
    weeks: int
    error_ratio: float
    naive_error_ratio: float
    ratios: Hours
    _pattern: Hours
    _growth: float

    def expected(self, hour: int) -> float:
        """The busiest minute of an hour, hours counted from `start`."""
        return float(self._pattern[hour % WEEK] * np.exp(self._growth * (hour // WEEK + 1)))

    def exceeds(self, hour: int, available: float) -> float:
        """P(busiest minute of the hour > available): the share of past errors that would carry it above.

        Errors were seen one week ahead; k weeks ahead their logarithms count sqrt(k) times.
        """
        expected = self.expected(hour)
        if available <= 0:
            return 1.0
        if expected <= 0:
            return 0.0
        weeks = hour // WEEK + 1
        needed = float(np.log(available / expected) / np.sqrt(weeks))
        return float((np.log(self.ratios) > needed).mean())


def forecast(hours: Hours, start: datetime) -> Forecast | None:
    """Learn from the busiest minute of each past hour (the last one ends at `start`); None below WEEKS_MIN weeks.

    weekly_growth: the mean of each hour of the week, each week scaled to its own mean, x the level of the last
    week x growth per week, which is the least-squares slope of the logarithms of the weekly means. Tested one
    week ahead from every week that has two before it, against seasonal-naive on the same weeks; the nearer one
    is used, and its own errors are the bands.
    """
    weeks = min(len(hours) // WEEK, _WEEKS_USED)
    if weeks < WEEKS_MIN:
        return None
    past = hours[len(hours) - weeks * WEEK :].reshape(weeks, WEEK)
    if not past.any():
        return None
    grown, naive, actual = [], [], []
    for tested in range(2, weeks):
        pattern, growth = _fit(past[:tested])
        grown.append(pattern * np.exp(growth))
        naive.append(past[tested - 1])
        actual.append(past[tested])
    truth = np.concatenate(actual)
    mean = float(truth.mean()) or 1.0
    errors = {
        "weekly_growth": float(np.abs(np.concatenate(grown) - truth).mean()) / mean,
        "seasonal_naive": float(np.abs(np.concatenate(naive) - truth).mean()) / mean,
    }
    better = errors["weekly_growth"] < errors["seasonal_naive"]
    made = np.concatenate(grown if better else naive)
    # an hour that was expected to be empty says nothing of how far a forecast may be off
    told = (made > 0) & (truth > 0)
    ratios = np.sort(truth[told] / made[told]) if told.any() else np.ones(1)
    pattern, growth = _fit(past) if better else (past[-1], 0.0)
    return Forecast(
        method="weekly_growth" if better else "seasonal_naive",
        start=start,
        weeks=weeks,
        error_ratio=errors["weekly_growth" if better else "seasonal_naive"],
        naive_error_ratio=errors["seasonal_naive"],
        ratios=ratios,
        _pattern=pattern,
        _growth=growth,
    )


def _fit(past: Hours) -> tuple[Hours, float]:
    """Pattern of the week at the level of the last week, and growth per week, in logarithms."""
    means = past.mean(axis=1)
    if (means <= 0).any():
        return past.mean(axis=0), 0.0
    pattern = (past / means[:, None]).mean(axis=0)
    level = np.log(means)
    at = np.arange(len(means)) - (len(means) - 1) / 2
    growth = float((at * level).sum() / (at * at).sum())
    last = level.mean() + growth * at[-1]
    return pattern * float(np.exp(last)), growth


def hour_after(start: datetime, hour: int) -> datetime:
    """The instant at which an hour of the future begins."""
    return start + timedelta(hours=hour)
