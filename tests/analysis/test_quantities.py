"""Ratios of two drafting arms computed by hand from scripted records."""

import pytest
from helpers.scripted_records import frame, turn

from specbench.analysis.frames import pair
from specbench.analysis.metrics import Measured, decode_mat_needed, mat, speedup_decode, speedup_micro, step_cost
from specbench.analysis.quantities import (
    QUANTITIES,
    drafting_per_step,
    drafting_per_token,
    drafting_share,
    mat_ratio,
    mat_ratio_per_question,
    reference_mat,
)

STEP_S = (0.001, 0.012, 0.001)
TURNS = frame(
    [
        turn("vanilla", "q1", [0] * 6),
        turn("vanilla", "q2", [0] * 9, category="rag"),
        turn("medusa", "q1", [2, 1, 0]),  # a step drafts 2 of 15 ms
        turn("medusa", "q2", [3, 3, 0], category="rag"),
        turn("s4c", "q1", [2, 2], step_s=STEP_S),
        turn("s4c", "q2", [8], category="rag", depth=8, step_s=STEP_S),
    ]
)


def of_pair(reference):
    measured = Measured(pair(TURNS, "s4c", reference=reference))
    return lambda definition: measured.estimate(definition).value


def test_ratios_of_two_drafting_arms():
    value = of_pair("medusa")
    assert value(mat_ratio) == pytest.approx((15 / 3) / (15 / 6))
    assert value(mat_ratio_per_question) == pytest.approx(((3 + 9) / 2) / ((2 + 3) / 2))
    assert value(reference_mat) == pytest.approx(2.5)
    assert value(drafting_per_token) == pytest.approx((12 / 15) / (3 / 15))
    assert value(drafting_per_step) == pytest.approx(2)
    assert value(drafting_share) == pytest.approx((2 / 15) / (1 / 14))
    assert value(speedup_micro) == pytest.approx((90 + 62) / (42 + 62))


def test_the_decode_speedup_over_a_drafting_arm_is_the_ratio_of_mats_by_the_step_cost():
    value = of_pair("medusa")
    assert value(step_cost) == pytest.approx(14 / 15)
    assert value(speedup_decode) == pytest.approx(90 / 42) == pytest.approx(value(mat_ratio) / value(step_cost))
    assert value(decode_mat_needed(90 / 42)) == pytest.approx(value(mat))


def test_over_vanilla_the_ratio_of_mats_is_mat():
    value = of_pair("vanilla")
    assert value(mat_ratio) == value(mat) == 5
    assert value(drafting_per_token) == 0


def test_no_ratio_can_be_formed_without_the_reference():
    value = of_pair("eagle3")
    assert all(value(definition) != value(definition) for definitions in QUANTITIES.values() for definition in definitions)
