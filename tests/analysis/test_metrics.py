"""Metrics computed by hand from scripted records.

A vanilla step takes 10 ms, a drafting step 2 + 12 + 1 ms, prefill 30 ms, and the rest of a turn 1 ms.
"""

from dataclasses import replace
from math import inf, isnan, sqrt

import numpy as np
import pytest
from helpers.scripted_records import failed, frame, turn

from specbench.analysis.agreement import first_divergence, repetition
from specbench.analysis.breakdown import acceptance, along_the_answer, time_split
from specbench.analysis.frames import OVERALL, pair
from specbench.analysis.metrics import DEFINITIONS, Measured, comparison, log_speedups, mat_needed, measure, noise_floor, speedup_micro
from specbench.report.tables import OVER_EAGER, SHORT, headline
from specbench.store.records import Record

pytestmark = pytest.mark.filterwarnings("error")  # a division by zero is a bug even where its NaN is right
Q1 = [turn("vanilla", "q1", [0] * 6), turn("medusa", "q1", [2, 1, 0])]  # 7 tokens in 91 and 76 ms
Q2 = [turn("vanilla", "q2", [0] * 9, category="rag"), turn("medusa", "q2", [3, 3, 0], category="rag")]  # 10 tokens in 121 and 76 ms


def test_every_number_by_hand():
    row = measure(frame(Q1 + Q2), "medusa")
    assert row["speedup"] == pytest.approx(sqrt(91 / 76 * 121 / 76))
    assert row["speedup_decode"] == pytest.approx(150 / 90)
    assert row["tokens_per_s"] == pytest.approx((7 / 0.076 + 10 / 0.076) / 2)
    assert row["speedup_specbench"] == pytest.approx((7 / 0.076 + 10 / 0.076) / (7 / 0.091 + 10 / 0.121))
    assert row["tokens_per_s_decode"] == pytest.approx(15 / 0.090)
    assert row["mat"] == 15 / 6
    assert row["step_cost"] == pytest.approx(1.5)
    assert row["agreement"] == 1
    assert row["peak_mib"] == 3
    assert row["stopped_by_length"] == 1
    assert (row["questions"], row["turns"], row["output_tokens"], row["excluded_questions"]) == (2, 2, 17, 0)
    assert not row["accounting_error"]


def test_speedup_over_eager_vanilla_is_shown_if_that_arm_ran():
    eager = [
        turn("vanilla:backend=eager", "q1", [0] * 6, step_s=(0, 0.02, 0)),
        turn("vanilla:backend=eager", "q2", [0] * 9, category="rag", step_s=(0, 0.03, 0)),
    ]
    turns = frame(Q1 + Q2 + eager)  # 151 and 301 ms
    row = measure(turns, "medusa")
    assert row["speedup"] == pytest.approx(sqrt(91 / 76 * 121 / 76))
    assert row["speedup_over_eager"] == pytest.approx(sqrt(151 / 76 * 301 / 76))
    assert row["speedup_over_eager_low"] < row["speedup_over_eager"] < row["speedup_over_eager_high"]
    assert measure(turns, "vanilla")["speedup_over_eager"] == pytest.approx(sqrt(151 / 91 * 301 / 121))
    assert measure(turns, "vanilla:backend=eager")["speedup_over_eager"] == 1
    names = {name: name for name in ("vanilla", "medusa")}
    shown, without = (headline(comparison(each, list(names), ["qa", "rag"]), names, SHORT, "") for each in (turns, frame(Q1 + Q2)))
    assert OVER_EAGER in shown.headers
    assert OVER_EAGER not in without.headers
    assert [len(row) for row in without.rows] == [len(without.headers)] * 2


def test_vanilla_run_twice_is_no_eager_baseline():
    again = [replace(record, arm="vanilla#2") for record in Q1 + Q2 if record.arm == "vanilla"]
    row = measure(frame(Q1 + Q2 + again), "medusa")
    assert np.isnan(row["speedup_over_eager"])


def test_an_arm_with_a_faster_back_end_is_no_accounting_error():
    """Its steps cost half of vanilla's, which would be an accounting error for an arm on vanilla's back end."""
    steps_s = {"vanilla": 0.01, "v:backend=static": 0.005, "v": 0.005}
    turns = [turn(name, f"q{i}", [0] * 9, step_s=(0, step_s, 0)) for i in range(40) for name, step_s in steps_s.items()]
    assert measure(frame(turns), "v")["accounting_error"]
    assert not measure(frame(turns), "v:backend=static")["accounting_error"]


def test_vanilla_has_a_speedup_of_one():
    row = measure(frame(Q1 + Q2), "vanilla")
    assert [row[name] for name in ("speedup", "speedup_decode", "speedup_specbench", "step_cost", "mat")] == [1] * 5
    assert isnan(row["agreement"])


def test_turns_are_summed_before_the_ratio_and_repeats_averaged_after():
    rows = [
        turn("vanilla", "q1", [0] * 2),
        turn("vanilla", "q1", [0] * 8, number=1),
        turn("vanilla", "q1", [0] * 2, repeat=1),
        turn("medusa", "q1", [1]),
        turn("medusa", "q1", [3, 3], number=1),
        turn("medusa", "q1", [1], repeat=1),
    ]
    row = measure(frame(rows), "medusa")
    assert row["speedup"] == pytest.approx(sqrt((51 + 111) / (46 + 61) * 51 / 46))
    assert row["tokens_per_s"] == pytest.approx((12 / 0.107 + 3 / 0.046) / 2)
    assert row["speedup_decode"] == pytest.approx(120 / 60)


@pytest.mark.parametrize("method", ["vanilla", "medusa"])
def test_a_failed_turn_takes_its_question_out_of_both_arms(method):
    q3 = [turn("vanilla", "q3", [0] * 4), turn("medusa", "q3", [3]), turn("s4c", "q3", [3])]
    other = {"vanilla": "medusa", "medusa": "vanilla"}[method]
    rows = Q1 + q3 + [failed(method, "q3", number=1), turn(other, "q3", [0, 0], number=1)]
    both = pair(frame(rows), "medusa")
    assert both.excluded == 1
    assert set(both.arm["question_id"]) == set(both.reference["question_id"]) == {"q1"}
    assert measure(frame(rows), "medusa")["speedup"] == pytest.approx(91 / 76)


def test_a_failure_of_one_method_leaves_the_other_methods_comparison_alone():
    rows = [*Q1, turn("s4c", "q1", [2, 2]), *Q2, failed("medusa", "q2", number=1), turn("s4c", "q2", [8], category="rag", depth=8)]
    assert measure(frame(rows), "s4c")["questions"] == 2
    assert measure(frame(rows), "medusa")["questions"] == 1


def test_a_turn_the_other_arm_has_not_reached_is_not_compared():
    rows = [*Q1, *Q2, turn("medusa", "q1", [3, 3, 3], number=1), turn("vanilla", "q2", [0], category="rag", repeat=1)]
    row, clean = measure(frame(rows), "medusa"), measure(frame(Q1 + Q2), "medusa")
    assert {name: row[name] for name in ("speedup", "mat", "turns")} == {name: clean[name] for name in ("speedup", "mat", "turns")}


def test_without_vanilla_there_is_mat_but_no_speedup():
    row = measure(frame([Q1[1], Q2[1]]), "medusa")
    assert row["mat"] == 2.5
    assert isnan(row["speedup"])
    assert isnan(row["step_cost"])
    assert isnan(row["agreement"])


def test_an_answer_that_ends_with_the_prefill_counts_end_to_end_and_not_in_the_loop():
    rows = [*Q1, turn("vanilla", "q2", []), turn("medusa", "q2", []), turn("vanilla", "q3", []), turn("medusa", "q3", [0])]
    row = measure(frame(rows), "medusa")
    assert row["speedup"] == pytest.approx((91 / 76 * 31 / 31 * 31 / (46 / 2)) ** (1 / 3))
    assert row["speedup_decode"] == pytest.approx((60 / 6) / (60 / 7))


def test_no_records_give_empty_rows():
    table = comparison(frame([]), ["vanilla", "medusa"], ["qa"])
    assert list(table["category"]) == ["qa", OVERALL] * 2
    assert table["mat"].isna().all()
    assert table["speedup"].isna().all()
    assert acceptance(frame([]), ["medusa"], ["qa"]).empty


def test_comparison_splits_by_category():
    table = comparison(frame(Q1 + Q2), ["medusa"], ["qa", "rag"]).set_index("category")
    assert table.loc["qa", "speedup"] == pytest.approx(91 / 76)
    assert table.loc["rag", "speedup"] == pytest.approx(121 / 76)
    assert table.loc[OVERALL, "mat"] == 2.5
    assert table.loc["qa", "mat"] == 2


def test_a_step_cheaper_than_a_vanilla_step_is_an_accounting_error():
    def row(draft_step_s: float) -> dict:
        rows = [turn("vanilla", f"q{i}", [0] * 6) for i in range(4)]
        rows += [turn("medusa", f"q{i}", [2, 2], step_s=(0, draft_step_s, 0)) for i in range(4)]
        return measure(frame(rows), "medusa")

    assert row(0.0094)["accounting_error"]
    assert not row(0.0096)["accounting_error"]


def test_a_speedup_above_mat_is_an_accounting_error():
    """The speedup shows the error even where the steps' own times do not."""
    rows = [turn("vanilla", f"q{i}", [0] * 6) for i in range(4)]
    rows += [replace(turn("medusa", f"q{i}", [2, 2], step_s=(0, 0.010, 0)), prefill_s=0.0, total_s=0.04) for i in range(4)]
    assert not measure(frame(rows), "medusa")["accounting_error"]
    rows = [replace(row, total_s=0.027) if row.arm == "medusa" else row for row in rows]
    assert measure(frame(rows), "medusa")["speedup_over_mat"] == pytest.approx(91 / 27 / 3)
    assert measure(frame(rows), "medusa")["accounting_error"]


def test_step_cost_does_not_depend_on_how_acceptance_varies():
    """R is a time, so the spread of MAT over questions must not move it."""
    rows = []
    for i, accepted in enumerate([[3]] * 5 + [[0] * 40]):
        rows += [turn("vanilla", f"q{i}", [0] * (sum(accepted) + len(accepted))), turn("pld", f"q{i}", accepted, step_s=(0, 0.012, 0))]
    row = measure(frame(rows), "pld")
    assert row["step_cost"] == pytest.approx(1.2)
    assert row["speedup_decode"] == pytest.approx(row["mat"] / 1.2)
    assert not row["accounting_error"]


def test_the_mat_needed_for_a_speedup():
    measured = Measured(pair(frame(Q1 + Q2), "medusa"))
    bound = measured.estimate(speedup_micro).value
    assert measured.estimate(mat_needed(bound)).value == pytest.approx(2.5)  # what was measured gives what was measured
    assert measured.estimate(mat_needed(2)).value == pytest.approx(15 * 0.015 / (0.212 / 2 - 0.062))
    assert measured.estimate(mat_needed(4)).value == inf  # prefill alone takes longer
    assert isnan(Measured(pair(frame([Q1[1], Q2[1]]), "medusa")).estimate(mat_needed(2)).value)


def test_acceptance_by_depth():
    turns = frame([turn("pld", "q1", [3, 1, 1, 0]), turn("pld", "q2", [0, 1], depth=1)])
    table = acceptance(turns, ["pld"], []).set_index("depth")
    assert list(table["steps"]) == [6, 6, 6]
    assert list(table["drafted"]) == pytest.approx([1, 4 / 6, 4 / 6])
    assert list(table["reached"]) == [6, 3, 1]
    assert list(table["marginal"]) == pytest.approx([4 / 6, 1 / 6, 1 / 6])
    assert list(table["conditional"]) == pytest.approx([4 / 6, 1 / 3, 1])
    assert 1 + table["marginal"].sum() == pytest.approx(measure(turns, "pld")["mat"])


def test_mat_along_the_answer():
    table = along_the_answer(frame([turn("pld", "q1", [9, 9, 1], depth=9), turn("pld", "q2", [7], depth=7)]), ["pld"])
    assert list(table["start"]) == [0, 16]
    assert list(table["steps"]) == [3, 1]  # they begin after 1, 11, 21 and 1 tokens
    assert list(table["mat"]) == pytest.approx([28 / 3, 2])


def test_time_split_adds_up_to_the_turn():
    parts = time_split(frame(Q1 + Q2), ["medusa"], []).set_index("part")
    assert parts["share"].sum() == pytest.approx(1)
    assert parts["ms_per_token"].sum() == pytest.approx(152 / 17)
    assert list(parts.loc[["draft", "verify", "commit"], "ms_per_step"]) == pytest.approx([2, 12, 1])
    assert parts.loc["other", "ms_per_step"] == pytest.approx(2 / 6)
    assert isnan(parts.loc["prefill", "ms_per_step"])


def test_agreement_compares_only_equal_prompts():
    rows = [
        turn("vanilla", "q1", [0, 0], ids=[1, 2, 3]),
        turn("medusa", "q1", [1], ids=[1, 2, 9]),
        turn("vanilla", "q1", [0, 0], number=1, prompt="saw 3"),
        turn("medusa", "q1", [1], number=1, prompt="saw 9"),
        turn("vanilla", "q2", [0, 0]),
        turn("medusa", "q2", [1]),
    ]
    row = measure(frame(rows), "medusa")
    assert (row["agreement"], row["comparable_turns"], row["diverging_turns"], row["first_divergence"]) == (0.5, 2, 1, 2)


@pytest.mark.parametrize(
    ("ours", "theirs", "place"), [([1, 2], [1, 2], None), ([1, 2, 3], [1, 5, 3], 1), ([1, 2], [1, 2, 3], 2), ([], [4], 0)]
)
def test_first_divergence(ours, theirs, place):
    assert first_divergence(ours, theirs) == place


@pytest.mark.parametrize(("ids", "share"), [([1, 2, 3], 0), ([1, 2, 3, 4], 0), ([1] * 7, 3 / 4), ([1, 2, 3, 4, 1, 2, 3, 4], 1 / 5)])
def test_repetition_share(ids, share):
    assert repetition(ids) == pytest.approx(share)


@pytest.mark.parametrize(("accepted", "length"), [([0, 0, 0, 0], 1), ([1, 1, 1, 1], 2), ([2, 3, 2, 3], 3.5)])
def test_every_definition_gives_a_forced_acceptance_length(accepted, length):
    rows = []
    for question, category in (("q1", "qa"), ("q2", "rag"), ("q3", "rag")):
        for number in (0, 1):
            pair_of = turn("vanilla", question, [0] * round(4 * length)), turn("pld", question, accepted, step_s=(0.002, 0.007, 0.001))
            rows += [free_of_the_rest(each, category=category, turn=number) for each in pair_of]
    measured = Measured(pair(frame(rows), "pld"))
    for name, definition in DEFINITIONS.items():
        wanted = 1 if name in ("step_cost", "speedup_over_mat") else length
        assert list(measured.estimate(definition)) == pytest.approx([wanted] * 3), name


def free_of_the_rest(record: Record, **changes) -> Record:
    """Return the record with a turn that takes as long as its steps."""
    steps = record.steps
    total_s = sum(steps.draft_s) + sum(steps.verify_s) + sum(steps.commit_s)
    return replace(record, prefill_s=0.0, total_s=total_s, text_tokens=len(record.output_ids), **changes)


def test_definitions_of_speedup_by_hand():
    rows = [replace(one, text_tokens=len(one.output_ids) - 1) for one in (*Q1, *Q2)]
    row = measure(frame(rows), "medusa")
    assert row["speedup_specbench_legacy"] == pytest.approx((7 / 0.076 + 10 / 0.076) / (6 / 0.091 + 9 / 0.121))
    assert row["speedup_micro"] == pytest.approx((17 / 0.152) / (17 / 0.212))
    assert row["latency_ratio"] == pytest.approx(212 / 152)
    assert isnan(measure(frame([*rows[:3], Q2[1], Q2[0]]), "medusa")["speedup_specbench_legacy"])


def test_mat_weighs_steps_and_mat_per_question_weighs_questions():
    rows = [turn("pld", "q1", [1] * 6), turn("pld", "q2", [2, 3], depth=3), turn("pld", "q3", [])]
    row = measure(frame(rows), "pld")
    assert row["mat"] == 19 / 8
    assert row["mat_per_question"] == (2 + 3.5) / 2


def test_repeats_of_a_question_are_averaged():
    rows = [turn(m, "q1", [1] * 3, repeat=r, step_s=(0, s, 0)) for m, r, s in (("s4c", 0, 0.01), ("s4c", 1, 0.02), ("vanilla", 0, 0.03))]
    rows.append(turn("vanilla", "q1", [1] * 3, repeat=1, step_s=(0, 0.03, 0)))
    assert list(log_speedups(pair(frame(rows), "s4c"))) == pytest.approx([(np.log(121 / 61) + np.log(121 / 91)) / 2])


def test_the_noise_interval_of_two_equal_arms_holds_one():
    """In 100 A/A runs with noise of questions and of repeats, 91 to 98 % of the intervals contain 1."""
    rng = np.random.default_rng(11)
    rows = [
        turn(arm, f"q{q}", [1] * 5, category="abcdef"[q % 6], repeat=r) for q in range(36) for r in range(3) for arm in ("s4c", "s4c#2")
    ]
    turns = frame(rows)
    held = 0
    for _ in range(100):
        question, repeat = rng.normal(0, 0.2, (36, 3, 1)), rng.normal(0, 0.05, (36, 3, 2))
        noisy = turns.assign(total_s=turns["total_s"] * np.exp((question + repeat).reshape(-1)))
        floor = noise_floor(noisy, "s4c")
        held += floor.low <= 1 <= floor.high
    assert 0.91 <= held / 100 <= 0.98


def test_peak_memory_is_the_largest():
    rows = [*Q1, replace(Q2[1], peak_bytes=9 * 2**20), Q2[0]]
    assert measure(frame(rows), "medusa")["peak_mib"] == 9
