"""Verdicts on claims, and the claims in the package."""

from dataclasses import fields, replace
from datetime import date
from pathlib import Path

import pytest
from helpers.claimed_runs import PROMPT_S, S4C, VANILLA_S, answer, manifest, records, verdict_on
from helpers.scripted_records import frame

from methods.core.errors import UserError
from specbench import claims
from specbench.analysis import metrics
from specbench.analysis.quantities import QUANTITIES
from specbench.analysis.stats import Estimate
from specbench.claims import text
from specbench.claims.claim import claim_named, load_claims, parse_claims
from specbench.claims.verdict import judge, outcome
from specbench.config.arm import AGAIN, Arm
from specbench.suites import spec_bench


@pytest.mark.parametrize(
    ("speedup", "wobble", "expected", "why"),
    [
        (1.39, 0.01, "below", "the interval lies below the range"),
        (3.0, 0.01, "above", "the interval lies above the range"),
        (2.4, 0.01, "reproduced", "the interval lies inside the range"),
        (2.26, 0.01, "reproduced", "the interval only overlaps the range"),
        (2.6, 0.01, "reproduced", "the interval only overlaps the range"),
        (2.4, 0.35, "inconclusive", "the interval is wider than the range"),
    ],
)
def test_an_interval_against_the_range(tmp_path, speedup, wobble, expected, why):
    verdict = verdict_on(tmp_path, records(speedup, wobble=wobble))
    assert (verdict.outcome, verdict.judged.why) == (expected, why)
    assert verdict.judged.definition == "speedup_specbench_legacy"
    assert verdict.exit_code == {"below": 1, "inconclusive": 3}.get(expected, 0)


def test_an_interval_off_the_range_is_clear_however_wide_it_is():
    assert outcome(Estimate(1.5, 1.0, 2.0), 2.26, 2.6) == ("below", "the interval lies below the range")
    assert outcome(Estimate(3.5, 3.0, 4.0), 2.26, 2.6) == ("above", "the interval lies above the range")


def test_a_lower_bound_is_reached_or_missed_by_the_whole_interval():
    assert outcome(Estimate(1.4, 1.3, 1.5), 1.3, None) == ("reproduced", "the interval lies inside the range")
    assert outcome(Estimate(1.2, 1.1, 1.29), 1.3, None)[0] == "below"
    assert outcome(Estimate(1.4, 1.29, 1.5), 1.3, None) == ("inconclusive", "the interval holds the lower bound")


def test_bounds_belong_to_the_range():
    assert outcome(Estimate(2.4, 2.26, 2.6), 2.26, 2.6) == ("reproduced", "the interval lies inside the range")
    assert outcome(Estimate(2.2, 2.1, 2.26), 2.26, 2.6)[0] == outcome(Estimate(2.7, 2.6, 2.8), 2.26, 2.6)[0] == "reproduced"


@pytest.mark.parametrize(("questions", "expected"), [(29, "inconclusive"), (30, "reproduced")])
def test_too_few_questions_are_inconclusive(tmp_path, questions, expected):
    verdict = verdict_on(tmp_path, records(2.4, questions=questions), questions=questions)
    assert verdict.outcome == expected
    assert ("29 questions were compared, fewer than 30" in verdict.judged.why) == (questions == 29)


@pytest.mark.parametrize(("compared", "expected"), [(35, "inconclusive"), (36, "reproduced")])
def test_a_verdict_needs_nine_tenths_of_the_questions_asked(tmp_path, compared, expected):
    verdict = verdict_on(tmp_path, records(2.4, questions=compared), questions=40)
    assert verdict.outcome == expected
    assert ("only 35 of the 40 questions asked were compared" in verdict.judged.why) == (compared == 35)


def test_a_verdict_says_where_answers_differ(tmp_path):
    found = [replace(record, output_ids=[7] * len(record.output_ids)) if record.question_id == "q3" else record for record in records(2.4)]
    caveats = " ".join(verdict_on(tmp_path / "equal", records(2.4)).caveats)
    assert "differ from vanilla's" not in caveats
    both = found[:7] + [replace(each, output_ids=list(range(13))) if each.arm == "s4c" else each for each in found[7:]]
    assert "1 of 36 answers differ from vanilla's, and longer" in " ".join(verdict_on(tmp_path / "other", both).caveats)


def test_a_verdict_without_an_interval_is_inconclusive(tmp_path):
    verdict = verdict_on(tmp_path, records(2.4, vanilla_text_tokens=None))
    assert (verdict.outcome, verdict.judged.why) == ("inconclusive", "no interval could be formed")
    assert "has no measured speedup" in text.sentence(verdict)


def only(method):
    return (record for record in records(2.4) if record.arm == method)


@pytest.mark.parametrize(
    ("found", "changes", "why"),
    [
        (
            records(2.4),
            {"suite": {"name": "mini", "sha256": "f" * 64}},
            "the sha256 of the run's suite, mini, is not that of the claim's, spec-bench",
        ),
        (only("s4c"), {}, "no answered turn of vanilla is recorded"),
        (only("vanilla"), {}, "no answered turn of s4c is recorded"),
        ([], {}, "no answered turn of vanilla is recorded"),
        (records(4.5), {}, "accounting error: the decode speedup of s4c exceeds its MAT beyond its interval; times or counts are wrong"),
    ],
    ids=["suite", "no vanilla", "no arm", "no records", "accounting"],
)
def test_runs_that_do_not_fit_the_claim_are_not_comparable(tmp_path, found, changes, why):
    verdict = verdict_on(tmp_path, found, **changes)
    assert (verdict.outcome, verdict.judged.why, verdict.exit_code) == ("not comparable", why, 3)
    assert {each.outcome for each in verdict.by_definition} == {"not comparable"}
    assert text.sentence(verdict).startswith("not comparable, under different conditions: ")


def test_every_definition_is_judged_and_disagreement_is_reported(tmp_path):
    agreed = verdict_on(tmp_path / "a", records(2.4))
    assert [each.definition for each in agreed.by_definition] == [each.__name__ for each in metrics.SPEEDUPS]
    assert "All definitions agree on the outcome." in text.parts(agreed)
    split = verdict_on(tmp_path / "b", records(2.1, vanilla_text_tokens=11))
    legacy = "reproduced by speedup_specbench_legacy"
    others = "below by speedup, speedup_specbench, speedup_micro, latency_ratio"
    assert f"The definitions disagree: {others}; {legacy}." in text.parts(split)


def test_the_decomposition_of_the_speedup_by_hand(tmp_path):
    found = verdict_on(tmp_path, records(1.5, wobble=0.0)).decomposition
    step_s = VANILLA_S / 1.5 - PROMPT_S
    assert found.mat.value == 12.0
    assert found.step_cost.value == pytest.approx(step_s / 0.010)
    assert found.speedup_decode.value == pytest.approx(0.12 / step_s) == pytest.approx(12 / found.step_cost.value)
    assert found.decode_mat_for_low.value == pytest.approx(2.26 * found.step_cost.value)
    assert found.decode_mat_for_high.value == pytest.approx(2.6 * found.step_cost.value)
    assert found.mat_for_low.value == pytest.approx(12 * step_s / (VANILLA_S / 2.26 - PROMPT_S))
    assert found.mat_for_high.value == pytest.approx(12 * step_s / (VANILLA_S / 2.6 - PROMPT_S))


def test_a_tree_too_shallow_for_the_range_is_named(tmp_path):
    def caveats(depth):
        run = manifest(tmp_path / str(depth))
        facts = replace(run.arms["s4c"], config={"depth": depth})
        found = judge(S4C, replace(run, arms=run.arms | {"s4c": facts}), frame(records(1.5, wobble=0.0)))
        return [line for line in found.caveats if "deep" in line]

    assert 15 < 2.26 * (VANILLA_S / 1.5 - PROMPT_S) / 0.010 < 16  # the MAT that the range begins at
    assert "14 deep, so its MAT cannot exceed 15" in caveats(14)[0]
    assert caveats(15) == []


def test_the_noise_floor_is_that_of_the_arm(tmp_path):
    assert "noise floor is unknown" in "".join(str(part) for part in text.parts(verdict_on(tmp_path / "a", records(2.4))))
    again = [answer(f"s4c{AGAIN}", i, 2.4 * 1.02) for i in range(36)]
    arms = {"vanilla": "V", "s4c": "S4C", f"s4c{AGAIN}": "S4C, again"}
    verdict = verdict_on(tmp_path / "b", [*records(2.4, wobble=0.0), *again], methods=arms, arms=3)
    assert verdict.noise_floor.value == pytest.approx(1.02)
    assert "s4c, run twice in this run, has a speedup over itself of 1.020x [1.020, 1.020]" in "".join(
        str(part) for part in text.parts(verdict)
    )


def test_context_is_the_same_method_and_the_same_target(tmp_path):
    everything = verdict_on(tmp_path / "a", records(2.4)).context
    assert len(everything) == 10
    rows = verdict_on(tmp_path / "b", records(2.4), claim_named("medusa-vicuna-7b"), "s4c").context
    assert [row.name for row in rows] == [
        "medusa-vicuna-7b", "medusa-vicuna-13b", "medusa-vicuna-33b", "eagle-vicuna-7b", "eagle2-vicuna-7b",
    ]  # fmt: skip


LEADERBOARD = {  # Leaderboard.md at fd2c1cd: overall speedup, mean accepted tokens
    "medusa-vicuna-7b": (1.71, 2.31), "medusa-vicuna-13b": (1.80, 2.39), "medusa-vicuna-33b": (1.76, 2.33),
    "eagle-vicuna-7b": (2.10, 3.58), "eagle-vicuna-13b": (2.16, 3.64), "eagle-vicuna-33b": (2.43, 3.39),
    "eagle2-vicuna-7b": (2.36, 4.34), "eagle2-vicuna-13b": (2.46, 4.43), "eagle2-vicuna-33b": (2.59, 4.05),
    "eagle3-vicuna-13b": (3.02, 5.71),
}  # fmt: skip


PAPERS = ["confu", "confu-mat", "gbv", "gbv-mat", "longspec", "ltd", "ltd-over-eagle3", "quasar", "rasd-cnn-dm", "rasd-humaneval",
          "rasd-medqa", "rasd-multifieldqa", "s4c", "specblock", "specblock-drafting"]  # fmt: skip


def test_the_shipped_claims_are_these():
    assert set(load_claims()) == {*PAPERS, *LEADERBOARD}
    assert {name for name, claim in load_claims().items() if claim.leaderboard} == set(LEADERBOARD)


@pytest.mark.parametrize("name", [*PAPERS, *LEADERBOARD])
def test_every_shipped_claim_is_complete(name):
    claim = claim_named(name)
    assert 1 < claim.low < (claim.high or 99)
    assert claim.judged_by in {each.__name__ for each in QUANTITIES[claim.quantity]}
    assert claim.confirmed
    assert claim.second_hand
    assert claim.suite_sha256 in (None, spec_bench.SHA256)
    assert claim.address.startswith("https://")
    assert isinstance(claim.date, date)
    assert "unknown" not in [getattr(claim, field.name) for field in fields(claim)]
    for arm in (claim.arm, claim.over):
        assert Arm.parse(arm).method
    texts = (claim.confirmed, claim.second_hand, claim.range_from, claim.judged_because)
    assert not any(text.endswith(".") for text in texts), "the verdict ends these with a period"


def test_s4c_is_claimed_by_its_abstract():
    assert (S4C.low, S4C.high, S4C.metric, S4C.target, S4C.gpu) == (2.26, 2.60, None, None, None)
    assert (S4C.suite_sha256, S4C.questions, S4C.over) == (spec_bench.SHA256, 480, "vanilla")


@pytest.mark.parametrize("name", LEADERBOARD)
def test_leaderboard_rows_are_points_with_a_stated_spread(name):
    claim = claim_named(name)
    assert claim.value is not None
    assert claim.spread is not None
    assert claim.high is not None
    assert (claim.value, claim.mat) == LEADERBOARD[name]
    assert claim.arm == name.split("-")[0]
    assert (claim.suite_sha256, claim.questions) == (spec_bench.SHA256, 480)
    assert claim.target == name.partition("-")[2] + "-v1.3"
    assert (claim.high + claim.low) / 2 == pytest.approx(claim.value)
    assert (claim.high - claim.low) / 2 == pytest.approx(2 * 0.038 * claim.value)
    assert f"{100 * claim.spread:.1f} %" in claim.range_from
    assert (claim.metric, claim.dtype, claim.temperature, claim.gpu) == ("speedup_specbench_legacy", "fp16", 0.0, "A100 80GB")


SOUND = (Path(claims.__file__).parent / "s4c.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("low = 2.26", 'low = "2.26"', "low: Input should be a valid number"),
        ("low = 2.26", "low = inf", "low: Input should be a finite number"),
        ("low = 2.26", "value = [1]\nspread = 0.1", "value: Input should be a valid number"),
        ("low = 2.26", "value = 1.7", "spread: Input should be a valid number"),
        ("questions = 480", "questions = 480.5", "questions: Input should be a valid integer"),
        ('tree = "unknown"', "tree = { nodes = 1.5 }", "tree.nodes: Input should be a valid integer"),
        ("date = 2025-06-17", 'date = "soon"', "date: Input should be a valid date"),
        ('title = "S4C"', "", "title: Field required"),
        ('title = "S4C"', 'titel = "S4C"\ntitle = "S4C"', "titel: Unexpected keyword argument"),
        ('title = "S4C"', 'title = "S4C"\nquantity = "cost"', "quantity: Input should be 'speedup', 'MAT' or 'drafting time'"),
        (
            'title = "S4C"',
            'title = "S4C"\nquantity = "MAT"',
            'judged_by: "speedup_specbench_legacy" does not define MAT; choices: mat_ratio, ',
        ),
        ("[claims.s4c]", "[claim.s4c]", "it needs tables [claims.NAME]"),
        ("[claims.s4c]", "claims = 3\n[s4c]", "it needs tables [claims.NAME]"),
        ("[claims.s4c]", "[claims.s4c", "Expected ']'"),
        ("low = 2.26", f"low = {'[' * 5000}", "recursion"),
    ],
)
def test_a_claim_of_another_type_is_one_line(old, new, why):
    assert SOUND.count(old) == 1
    with pytest.raises(UserError) as refusal:
        parse_claims(SOUND.replace(old, new), "s4c.toml")
    assert str(refusal.value).startswith("s4c.toml")
    assert "\n" not in str(refusal.value)
    assert why in str(refusal.value)
