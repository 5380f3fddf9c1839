"""Conditions of a claim compared with those of a run."""

from dataclasses import replace
from math import nan

import pytest
from helpers.claimed_runs import answer, manifest, records, verdict_on
from helpers.scripted_records import arm_facts, failed, frame

from specbench.claims import text
from specbench.claims.claim import claim_named
from specbench.claims.verdict import judge
from specbench.store.manifest import Start, TargetFacts
from specbench.util.environment import Environment, GitState


def status(verdict):
    return {each.name: each.status for each in verdict.conditions}


MEDUSA = {"vanilla": "V", "medusa": "Medusa"}


def matching_claim():
    """Return a claim of Medusa that states every condition a claim can, each as ``matching_manifest`` has it."""
    return replace(
        claim_named("medusa-vicuna-7b"), low=2.26, high=2.6, value=None, questions=36,
        drafter_sha256="a" * 64, template_sha256="d" * 64, torch="2.13",
    )  # fmt: skip


def matching_manifest(tmp_path):
    written = manifest(
        tmp_path,
        methods=MEDUSA,
        settings={"dtype": "fp16", "max_new_tokens": 1024, "device": "cuda"},
        target={"name": "models/Vicuna-7B-v1.3", "parameters": 6738415616},
        environment={"torch": "2.13+cu128", "gpu": "NVIDIA A100-SXM4-80GB"},
    )
    facts = arm_facts("Medusa", config={"nodes": 63}, weights_sha256="a" * 64)
    return replace(written, arms=written.arms | {"medusa": facts})


def test_conditions_match_only_when_every_one_is_the_same(tmp_path):
    turns = frame(records(2.4, "medusa"))
    verdict = judge(matching_claim(), matching_manifest(tmp_path), turns)
    assert set(status(verdict).values()) == {"same"}
    assert verdict.matching
    assert text.sentence(verdict).startswith("reproduced, under matching conditions: Medusa measured 2.40x [")
    assert "Every condition is the same." in text.parts(verdict)


def test_a_drafter_of_another_target_is_another_drafter(tmp_path):
    claim, run = replace(matching_claim(), drafter_sha256=None), matching_manifest(tmp_path)
    turns = frame(records(2.4, "medusa"))
    assert status(judge(claim, run, turns))["drafter's weights"] == "unknown"
    assert status(judge(claim, replace(run, target=TargetFacts("tiny-7b")), turns))["drafter's weights"] == "differs"


def settings(**changes):
    return lambda run: replace(run, settings=replace(run.settings, **changes))


def facts(**changes):
    return lambda run: replace(run, arms=run.arms | {"medusa": replace(run.arms["medusa"], **changes)})


def suite(**changes):
    return lambda run: replace(run, suite=replace(run.suite, **changes))


def environment(**changes):
    return lambda run: replace(run, environment=replace(run.environment, **changes))


def resumed(**changes):
    return lambda run: replace(run, resumed=[Start("later", replace(run.environment, **changes), GitState(), [])])


def target(**changes):
    return lambda run: replace(run, target=replace(run.target, **changes))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("suite", suite(sha256="0" * 64)),
        ("turns recorded", lambda run: replace(run, units_total=100)),
        ("target", target(name="tiny-7b")),
        ("target", target(parameters=1000)),
        ("target is cost-matched", target(label="cost-matched")),
        ("method", facts(reconstruction=True)),
        ("draft tree", facts(config={"nodes": 3})),
        ("drafter's weights", facts(weights_sha256="b" * 64)),
        ("prompt template", lambda run: replace(run, template_sha256="0" * 64)),
        ("history of later turns", settings(turns="shared")),
        ("GPU", environment(gpu="NVIDIA H100 80GB")),
        ("GPU", lambda run: settings(device="cpu")(environment(gpu=None)(run))),
        ("GPU", resumed(gpu="NVIDIA H100 80GB")),
        ("PyTorch", environment(torch="2.12")),
        ("dtype", settings(dtype="bf16")),
        ("temperature", settings(temperature=1.0)),
        ("max_new_tokens", settings(max_new_tokens=128)),
        ("back end", facts(backend="static")),
        ("back end", lambda run: replace(run, arms=run.arms | {"vanilla": replace(run.arms["vanilla"], backend="static")})),
        ("acceptance rule", facts(lossless=False, acceptance="typical")),
    ],
)
def test_one_difference_makes_the_conditions_different(tmp_path, name, change):
    verdict = judge(matching_claim(), change(matching_manifest(tmp_path)), frame(records(2.4, "medusa")))
    assert status(verdict)[name] == "differs"
    assert not verdict.matching
    assert ", under different conditions: " in text.sentence(verdict)


@pytest.mark.parametrize("field", ["covers", "target", "tree", "drafter", "drafter_sha256", "template_sha256", "turns", "gpu", "torch",
                                   "dtype", "temperature", "max_new_tokens", "batch_size", "backend", "lossless", "metric"])  # fmt: skip
def test_an_open_condition_of_a_claim_is_unknown(tmp_path, field):
    claim = replace(matching_claim(), **{field: None})
    verdict = judge(claim, matching_manifest(tmp_path), frame(records(2.4, "medusa")))
    assert verdict.conditions_with("differs") == []
    assert len(verdict.conditions_with("unknown")) == 1
    assert f"Unknown, counted as different: {verdict.conditions_with('unknown')[0]}." in text.parts(verdict)
    assert not verdict.matching


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("suite", suite(sha256="unknown")),
        ("target", target(name="unknown", parameters=None)),
        ("target", target(parameters=None)),
        ("draft tree", facts(config={})),
        ("drafter's weights", facts(weights_sha256=None)),
        ("prompt template", lambda run: replace(run, template_sha256="unknown")),
        ("GPU", lambda run: replace(run, environment=Environment(torch="2.13"))),
        ("PyTorch", lambda run: replace(run, environment=Environment(gpu="NVIDIA A100 80GB PCIe"))),
        ("dtype", settings(dtype="unknown")),
        ("temperature", settings(temperature=nan)),
        ("max_new_tokens", settings(max_new_tokens=0)),
        ("back end", facts(backend="unknown")),
    ],
)
def test_a_missing_fact_of_a_run_is_unknown(tmp_path, name, change):
    verdict = judge(matching_claim(), change(matching_manifest(tmp_path)), frame(records(2.4, "medusa")))
    assert (verdict.conditions_with("differs"), verdict.conditions_with("unknown")) == ([], [name])


def test_method_and_acceptance_rule_of_an_imported_arm_are_unknown(tmp_path):
    run = facts(acceptance="unknown", lossless=None)(matching_manifest(tmp_path))
    verdict = judge(matching_claim(), run, frame(records(2.4, "medusa")))
    assert verdict.conditions_with("unknown") == ["method", "acceptance rule"]
    assert "medusa, imported" in [each.measured for each in verdict.conditions]


def test_a_part_of_the_suite_or_a_failed_question_is_a_difference(tmp_path):
    run = matching_manifest(tmp_path)
    part = judge(replace(matching_claim(), questions=480), run, frame(records(2.4, "medusa")))
    assert part.conditions_with("differs") == ["questions"]
    found = [*records(2.4, "medusa", questions=35), answer("vanilla", 35), failed("medusa", "q35", category="rag")]
    short = judge(matching_claim(), run, frame(found))
    assert short.conditions_with("differs") == ["questions"]
    assert next(each.measured for each in short.conditions if each.name == "questions") == "35 compared of 36 asked, 1 left out"


def test_s4c_is_a_reconstruction_whose_conditions_are_mostly_unknown(tmp_path):
    verdict = verdict_on(tmp_path, records(1.39), target={"label": "cost-matched"})
    assert text.sentence(verdict).startswith("below, under different conditions: S4C (reconstruction) measured 1.39x [1.3")
    assert text.sentence(verdict).endswith("(speedup_specbench_legacy), claimed 2.26x-2.60x")
    assert {"method", "target is cost-matched", "questions"} <= set(verdict.conditions_with("differs"))
    assert {"target", "GPU", "dtype", "temperature", "definition of speedup", "acceptance rule"} <= set(verdict.conditions_with("unknown"))
    assert verdict.caveats[0].startswith("Cost-matched target tiny-160m")
    assert "does not define its speedup" in verdict.caveats[1]
    assert "verified" not in "\n".join(text.markdown(verdict)).lower()


def test_a_variant_of_the_arm_and_another_method_can_be_judged(tmp_path):
    arms = {"vanilla": "V", "s4c:nodes=8": "S4C nodes=8", "medusa": "Medusa"}
    found = [*records(2.4, "s4c:nodes=8"), *records(2.4, "medusa")]
    variant = verdict_on(tmp_path / "a", found, matching_claim(), "s4c:nodes=8", methods=arms)
    assert next(each.measured for each in variant.conditions if each.name == "method").startswith("s4c, ")
    assert status(variant)["method"] == "differs"
    other = verdict_on(tmp_path / "b", found, arm="medusa", methods=arms)
    assert status(other)["method"] == "differs"
