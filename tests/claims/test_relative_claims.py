"""Claims relative to another arm than vanilla, and of other quantities than speedup."""

from dataclasses import replace

import pytest
from helpers.claimed_runs import PROMPT_S, THREE_ARMS, VANILLA_S, answer, beside, manifest, verdict_on
from helpers.scripted_records import arm_facts, frame

from methods.core.errors import UserError
from specbench.claims import text
from specbench.claims.arms import is_built
from specbench.claims.claim import claim_named
from specbench.claims.verdict import judge
from specbench.config.arm import AGAIN

CONFU = claim_named("confu")  # 1.08x-1.11x over eagle3
GBV_MAT = replace(claim_named("gbv-mat"), arm="confu", over="eagle3")  # at least 1.30x
DRAFTING = replace(claim_named("specblock-drafting"), arm="confu")  # 1.92x-2.27x


def on_pair(tmp_path, found, claim=CONFU, arm=None, over=None, **changes):
    return verdict_on(tmp_path, found, claim, arm, over, **({"methods": THREE_ARMS, "arms": 3} | changes))


def condition(verdict, name):
    return next(each for each in verdict.conditions if each.name == name)


def test_a_gain_of_a_tenth_is_measured_exactly_and_beside_vanilla_too(tmp_path):
    found = list(beside(1.10))
    verdict = on_pair(tmp_path / "a", found)
    assert tuple(verdict.judged.measured) == pytest.approx((1.10, 1.10, 1.10))
    assert all(tuple(each.measured) == pytest.approx((1.10, 1.10, 1.10)) for each in verdict.by_definition)
    assert text.sentence(verdict) == (
        "reproduced, under different conditions: ConFu measured 1.10x [1.10, 1.10] over EAGLE-3 (speedup_specbench), claimed 1.08x-1.11x"
    )
    assert on_pair(tmp_path / "b", found, over="vanilla").judged.measured.value == pytest.approx(2.20)


@pytest.mark.parametrize(
    ("gain", "wobble", "expected", "code"),
    [
        (1.09, 0.002, "reproduced", 0),
        (1.12, 0.002, "above", 0),
        (1.06, 0.002, "below", 1),
        (1.00, 0.0, "below", 1),
        (1.09, 0.07, "inconclusive", 3),
        (0.90, 0.07, "below", 1),
    ],
)
def test_a_gain_against_the_range(tmp_path, gain, wobble, expected, code):
    verdict = on_pair(tmp_path, beside(gain, wobble=wobble))
    assert (verdict.outcome, verdict.exit_code) == (expected, code)


@pytest.mark.parametrize(("times", "expected"), [(1.0, "reproduced"), (1.10, "above")])
def test_an_arm_beside_its_own_repeat(tmp_path, times, expected):
    again = f"eagle3{AGAIN}"
    found = [record for i in range(36) for record in (answer("vanilla", i), answer("eagle3", i, 2.0), answer(again, i, 2.0 * times))]
    methods = {"vanilla": "V", "eagle3": "EAGLE-3", again: "EAGLE-3, again"}
    verdict = on_pair(tmp_path, found, replace(CONFU, low=0.99, high=1.01), again, methods=methods)
    assert (verdict.outcome, verdict.judged.measured.value) == (expected, pytest.approx(times))


@pytest.mark.parametrize(
    ("ours", "theirs", "expected", "why"),
    [
        ([3] * 36, 4, "reproduced", "the interval lies inside the range"),  # MAT 4 beside 3
        ([4] * 36, 4, "below", "the interval lies below the range"),
        ([2, 6] * 18, 4, "below", "the interval lies below the range"),  # the arm's steps add up to the same
        ([2, 2, 2, 6] * 9, 4, "inconclusive", "the interval holds the lower bound"),
    ],
)
def test_a_lower_bound_on_mat_over_another_arm(tmp_path, ours, theirs, expected, why):
    found = []
    for i, steps in enumerate(ours):
        found += [answer("vanilla", i), answer("eagle3", i, 1.5, steps=theirs), answer("confu", i, 1.5, steps=steps)]
    verdict = on_pair(tmp_path, found, GBV_MAT)
    assert (verdict.outcome, verdict.judged.why) == (expected, why)
    assert verdict.judged.measured.value == pytest.approx(theirs * len(ours) / sum(ours))
    assert verdict.judged.definition == "mat_ratio"


def test_drafting_time_over_another_arm(tmp_path):
    found = beside(1.0, over=1.5, ours={"steps": 3, "draft_s": 0.002}, theirs={"steps": 4, "draft_s": 0.003})
    verdict = on_pair(tmp_path, found, DRAFTING)
    values = {each.definition: each.measured.value for each in verdict.by_definition}
    assert values == pytest.approx({"drafting_per_token": 4 * 3 / (3 * 2), "drafting_per_step": 3 / 2, "drafting_share": 12 / 6})
    assert text.sentence(verdict).startswith(
        "reproduced, under different conditions: ConFu measured 2.00x [2.00, 2.00] in drafting time over"
    )
    assert "MAT needed" not in "".join(map(str, text.parts(verdict)))


def test_an_arm_that_is_missing_is_named(tmp_path):
    with pytest.raises(UserError, match=r"unknown arm of this run \(--over\) 'eagle3'; choices: confu, vanilla"):
        on_pair(tmp_path / "a", beside(1.1), methods={"vanilla": "V", "confu": "ConFu"})
    with pytest.raises(UserError, match=r"unknown arm of this run \(--over\) 'vanilla'; choices: confu, eagle3"):
        on_pair(tmp_path / "b", beside(1.1), over="vanilla", methods={"eagle3": "EAGLE-3", "confu": "ConFu"})
    verdict = on_pair(tmp_path / "c", (record for record in beside(1.1) if record.arm != "eagle3"))
    assert (verdict.outcome, verdict.judged.why) == ("not comparable", "no answered turn of eagle3 is recorded")


@pytest.mark.parametrize("unbuilt", ["no-such-method", "eagle2:retrieve=nothing", "sps:acceptance=none-such"])
def test_a_claim_on_a_method_that_is_not_built_says_so(tmp_path, unbuilt):
    claim = replace(CONFU, arm=unbuilt)
    assert not is_built(unbuilt)
    with pytest.raises(UserError, match=f"claim confu: {unbuilt} is not built here; specbench methods lists what is"):
        on_pair(tmp_path / "a", beside(1.1), claim)
    with pytest.raises(UserError, match=f"claim confu: {unbuilt} is not built here"):
        on_pair(tmp_path / "b", beside(1.1), replace(CONFU, over=unbuilt))
    assert on_pair(tmp_path / "c", beside(1.1), claim, "confu").outcome == "reproduced"  # another arm was asked for


@pytest.mark.parametrize(
    "name", ["vanilla", "eagle3", "eagle3:nodes=60,depth=8", "sps:acceptance=speculative_sampling", "pld:backend=static"]
)
def test_a_method_of_the_table_is_built_with_its_options(name):
    assert is_built(name)


def test_wrong_times_of_either_arm_are_not_compared(tmp_path):
    why = "accounting error: the decode speedup of {} exceeds its MAT beyond its interval; times or counts are wrong"
    for place, (ours, over, wrong) in enumerate([(4.5, 2.0, "confu"), (2.0, 4.5, "eagle3")]):
        verdict = on_pair(tmp_path / str(place), beside(ours / over, over=over))
        assert (verdict.outcome, verdict.judged.why) == ("not comparable", why.format(wrong))


def test_the_arm_compared_with_is_a_condition(tmp_path):
    verdict = on_pair(tmp_path / "a", beside(1.1))
    assert condition(verdict, "compared with").status == "same"
    other = on_pair(tmp_path / "b", beside(1.1), over="vanilla")
    assert (condition(other, "compared with").status, condition(other, "compared with").measured[:7]) == ("differs", "vanilla")


@pytest.mark.parametrize(("rule", "status"), [("gbv", "same"), ("match", "differs")])
def test_an_option_that_the_claim_names_is_part_of_the_method(tmp_path, rule, status):
    run = manifest(tmp_path, methods=THREE_ARMS, arms=3)
    facts = arm_facts("Draft model", method="sps", acceptance=rule)
    run = replace(run, arms=run.arms | {"confu": facts})
    method = condition(judge(replace(CONFU, arm="sps:acceptance=gbv"), run, frame(beside(1.1)), "confu"), "method")
    assert (method.status, method.measured.split(",")[0]) == (status, f"sps:acceptance={rule}")


@pytest.mark.parametrize(("suite", "status"), [("spec-bench", "unknown"), ("MT-Bench, GSM8K", "differs"), (None, "unknown")])
def test_questions_without_a_file_are_judged_on_others(tmp_path, suite, status):
    verdict = on_pair(tmp_path, beside(1.1), replace(CONFU, suite=suite))
    assert condition(verdict, "suite").status == status
    assert condition(verdict, "questions").status == "unknown"
    assert verdict.outcome == "reproduced"


def test_the_decode_speedup_over_another_arm_has_three_parts(tmp_path):
    verdict = on_pair(tmp_path, beside(1.1, ours={"steps": 3}, theirs={"steps": 4}))
    found = verdict.decomposition
    ours_s, theirs_s = (VANILLA_S / speedup - PROMPT_S for speedup in (2.2, 2.0))
    assert (found.mat.value, found.mat_over.value) == (4, 3)
    assert found.step_cost.value == pytest.approx((ours_s / 3) / (theirs_s / 4))
    assert found.speedup_decode.value == pytest.approx(theirs_s / ours_s) == pytest.approx(4 / 3 / found.step_cost.value)
    assert found.decode_mat_for_low is not None
    assert found.decode_mat_for_low.value == pytest.approx(1.08 * found.step_cost.value * 3)
    table = next(part for part in text.parts(verdict) if isinstance(part, text.TextTable) and part.title == "What the speedup is made of")
    assert [row[0] for row in table.rows][:4] == ["MAT", "MAT of eagle3", "R", "Decode speedup"]
    assert table.rows[3][2] == "MAT / MAT of eagle3 / R"
