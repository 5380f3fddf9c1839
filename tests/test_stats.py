import math

import numpy as np
import pytest

from specbench.stats import geometric_mean, interval, ratio_of_sums

pytestmark = pytest.mark.filterwarnings("error")  # a division by zero is a bug even where its NaN is right
CATEGORIES = [category for category in "abcdef" for _ in range(8)]
NOISE = 0.10  # of a question's log ratio


def simulated(runs: int, effect: float) -> list[tuple[float, float]]:
    """Intervals of runs whose questions' ratios scatter around exp(effect), with categories of different levels of noise."""
    rng = np.random.default_rng(7)
    scale = np.repeat([0.5, 1, 1, 1, 1, 1.5], 8) * NOISE
    return [interval(rng.normal(effect, scale), CATEGORIES, seed=i, resamples=500) for i in range(runs)]


def test_interval_of_identical_arms_holds_one_at_its_nominal_rate():
    held = np.mean([low <= 1 <= high for low, high in simulated(400, effect=0)])
    assert 0.92 <= held <= 0.97


def test_a_slowdown_of_five_percent_is_detected():
    detected = np.mean([high < 1 for _, high in simulated(100, effect=math.log(0.95))])
    assert detected > 0.85


def test_interval_repeats_for_a_seed_and_not_for_another():
    logs = np.random.default_rng(0).normal(0, NOISE, len(CATEGORIES))
    assert interval(logs, CATEGORIES, seed=3) == interval(logs, CATEGORIES, seed=3)
    assert interval(logs, CATEGORIES, seed=3) != interval(logs, CATEGORIES, seed=4)


def test_resampling_stays_within_categories():
    levels = [1.0] * 4 + [3.0] * 4
    assert interval(levels, ["a"] * 4 + ["b"] * 4) == pytest.approx((math.exp(2), math.exp(2)))
    low, high = interval(levels, ["a"] * 8)
    assert low < math.exp(2) < high


def test_interval_has_the_variance_of_the_mean():
    logs = np.random.default_rng(1).normal(0, NOISE, 8)
    low, high = interval(logs, ["a"] * 8, resamples=40_000)
    width = math.log(high) - math.log(low)
    assert width == pytest.approx(2 * 1.96 * logs.std(ddof=1) / math.sqrt(8), rel=0.08)


def test_categories_of_one_question_are_not_taken_as_exact():
    low, high = interval([0.0, 0.5, 1.0], ["a", "b", "c"])
    assert low < math.exp(0.5) < high


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_questions_have_no_interval(count):
    assert all(math.isnan(x) for x in interval([0.1] * count, ["a"] * count))


def test_estimates_by_hand():
    assert geometric_mean([math.log(2), math.log(8)], ["a", "a"]).value == pytest.approx(4)
    estimate = ratio_of_sums([6, 9], [3, 2], ["a", "a"])
    assert estimate.value == 3
    assert (estimate.low, estimate.high) == (2, 4.5)
    assert math.isnan(ratio_of_sums([0], [0], ["a"]).value)
    assert math.isnan(geometric_mean([], []).value)
