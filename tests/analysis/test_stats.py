"""Bootstrap intervals: coverage, strata, and seeds."""

import math

import numpy as np
import pytest

from specbench.analysis import stats
from specbench.analysis.stats import geometric_mean, interval, resampled_sums

pytestmark = pytest.mark.filterwarnings("error")  # a division by zero is a bug even where its NaN is right
CATEGORIES = [category for category in "abcdef" for _ in range(8)]
NOISE = 0.10  # of a question's log ratio


def simulated(runs: int, effect: float) -> list[tuple[float, float]]:
    """Return intervals of runs whose questions' ratios scatter around exp(effect), with categories of different levels of noise."""
    rng = np.random.default_rng(7)
    scale = np.repeat([0.5, 1, 1, 1, 1, 1.5], 8) * NOISE
    return [bounds(rng.normal(effect, scale), CATEGORIES, seed=i, resamples=500) for i in range(runs)]


def bounds(logs, strata, **how) -> tuple[float, float]:
    estimate = geometric_mean(logs, strata, **how)
    return estimate.low, estimate.high


def test_interval_of_identical_arms_holds_one_at_its_nominal_rate():
    held = np.mean([low <= 1 <= high for low, high in simulated(400, effect=0)])
    assert 0.92 <= held <= 0.97


def test_a_slowdown_of_five_percent_is_detected():
    detected = np.mean([high < 1 for _, high in simulated(100, effect=math.log(0.95))])
    assert detected > 0.85


def test_interval_repeats_for_a_seed_and_not_for_another():
    logs = np.random.default_rng(0).normal(0, NOISE, len(CATEGORIES))
    first = bounds(logs, CATEGORIES, seed=3)
    stats.draw_weights.cache_clear()
    assert bounds(logs, CATEGORIES, seed=3) == first
    assert bounds(logs, CATEGORIES, seed=3) != bounds(logs, CATEGORIES, seed=4)


def test_resampling_stays_within_categories():
    levels = [1.0] * 4 + [3.0] * 4
    assert bounds(levels, ["a"] * 4 + ["b"] * 4) == pytest.approx((math.exp(2), math.exp(2)))
    low, high = bounds(levels, ["a"] * 8)
    assert low < math.exp(2) < high


def test_interval_has_the_variance_of_the_mean():
    logs = np.random.default_rng(1).normal(0, NOISE, 8)
    low, high = bounds(logs, ["a"] * 8, resamples=40_000)
    width = math.log(high) - math.log(low)
    assert width == pytest.approx(2 * 1.96 * logs.std(ddof=1) / math.sqrt(8), rel=0.08)


def test_categories_of_one_question_are_not_taken_as_exact():
    low, high = bounds([0.0, 0.5, 1.0], ["a", "b", "c"])
    assert low < math.exp(0.5) < high
    low, high = bounds([0.0, 0.0, 0.0, 1.0, 0.0, 0.0], ["a", "a", "a", "b", "c", "c"])
    assert low < math.exp(1 / 6) < high


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_questions_have_no_interval(count):
    assert all(math.isnan(x) for x in bounds([0.1] * count, ["a"] * count))


def test_estimates_by_hand():
    assert geometric_mean([math.log(2), math.log(8)], ["a", "a"]).value == pytest.approx(4)
    assert math.isnan(geometric_mean([], []).value)
    assert interval(np.array([np.nan, 1.0, np.inf, 3.0])) == pytest.approx((1.05, 2.95))


def test_columns_are_resampled_together():
    values, strata = np.array([[6.0, 3.0], [9.0, 2.0], [4.0, 1.0], [4.0, 1.0]]), ["a", "a", "b", "b"]
    sums = resampled_sums(values, strata, resamples=50)
    assert set(map(tuple, sums)) == {(6 * 2 + 8, 3 * 2 + 2), (9 * 2 + 8, 2 * 2 + 2)}
    assert np.array_equal(sums[:, :1], resampled_sums(values[:, :1], strata, resamples=50))
