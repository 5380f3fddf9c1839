"""Other engines in the gate and in the metrics: no check is about them, and they are in no baseline."""

import json
from dataclasses import replace

import pytest
from helpers.edited_runs import without_digests
from helpers.gated_runs import answers, call, outcomes, run
from helpers.scripted_records import arm_facts, failed, frame, turn

from specbench.analysis.agreement import arms_without_ids
from specbench.analysis.frames import turns_frame
from specbench.analysis.metrics import measure
from specbench.store.records import Drafting, Steps

ENGINE = "transformers generate 5.23.0"


def beside(found, name="hf-pld", *, slower=1.0, spoilt=False):
    """Return the records with one of another engine for each of medusa's; spoilt ones fail or differ."""
    theirs = []
    for place, record in enumerate(each for each in found if each.arm == "medusa"):
        steps = Steps(accepted=record.steps.accepted, emitted=record.steps.emitted)
        one = replace(record, arm=name, total_s=slower * record.total_s, steps=steps, timing="steps")
        other = replace(failed(name, record.question_id, category=record.category), repeat=record.repeat)
        theirs.append(one if not spoilt else other if place % 3 == 0 else replace(one, output_ids=record.output_ids[::-1]))
    return [*found, *theirs]


def with_engine(run_dir, name="hf-pld", **changes):
    manifest = json.loads((without_digests(run_dir) / "manifest.json").read_text())
    manifest["arms"][name] |= {"engine": ENGINE, **changes}
    (run_dir / "manifest.json").write_text(json.dumps(manifest))
    return run_dir


@pytest.fixture
def base(tmp_path):
    return with_engine(run(tmp_path / "base", beside(answers())))


def test_another_engine_never_fails_the_gate(base, tmp_path):
    found = beside(answers(seed=1), slower=9.0, spoilt=True)
    new = with_engine(run(tmp_path / "new", found), lossless=None)
    code, checks = outcomes(new, "--baseline", base)
    assert code == 0
    assert set(checks.values()) == {"pass"}
    assert not [name for name in checks if "hf-pld" in name]
    code, _ = outcomes(run(tmp_path / "worse", answers(slower=1.3)), "--baseline", base)
    assert code == 1, "a run without the other engine is compared too"


def test_another_engine_is_in_no_baseline(base, tmp_path):
    code, printed = call("baseline", "set", base, "--out", tmp_path / "baseline.json")
    assert code == 0, printed
    assert "hf-pld" not in (tmp_path / "baseline.json").read_text()


def test_a_speedup_beyond_mat_is_no_error_of_another_engine():
    step_s = {"vanilla": (0.0, 0.1, 0.0), "pld": (0.0, 0.01, 0.0)}
    found = [turn(name, f"q{i}", [0] * 9, step_s=each) for i in range(30) for name, each in step_s.items()]
    assert measure(frame(found), "pld")["accounting_error"]
    theirs = [replace(record, arm="hf-pld") if record.arm == "pld" else record for record in found]
    arms = {"vanilla": arm_facts("Vanilla"), "hf-pld": arm_facts("generate, prompt lookup", engine=ENGINE)}
    assert not measure(turns_frame(theirs, arms), "hf-pld")["accounting_error"]


def served(question, text, **changes):
    """Return an endpoint's answer of four tokens, sent as text."""
    whole = turn("endpoint", question, [0, 0, 0])
    return replace(whole, output_ids=[], tokens=4, output_text=text, steps=Steps(), timing="answer", peak_bytes=0, **changes)


def test_numbers_that_a_server_does_not_report_are_absent():
    vanilla = [replace(turn("vanilla", name, [0, 0, 0]), output_text="same") for name in ("a", "b", "c")]
    found = [served("a", "same", drafting=Drafting(2, 3, 8)), served("b", "other", drafting=Drafting(2, 1, None)), served("c", "same")]
    turns = frame([*vanilla, *found])
    row = measure(turns, "endpoint")
    assert (row["mat"], row["tokens_per_s"] > 0, row["speedup"] > 0) == ((5 + 3) / (2 + 2), True, True)
    assert not [name for name in ("step_cost", "speedup_decode", "tokens_per_s_decode", "peak_mib", "repetition") if row[name] == row[name]]
    assert (row["comparable_turns"], row["compared_by_text"], row["diverging_turns"]) == (3, 3, 1)
    assert row["first_divergence"] != row["first_divergence"]
    ours = turns[turns["arm"] == "endpoint"]
    assert (ours["prefill_s"] == vanilla[0].prefill_s).all()
    assert arms_without_ids([*vanilla, *found]) == {"endpoint"}
    unknown = measure(frame([*vanilla, *(replace(each, drafting=None) for each in found)]), "endpoint")
    assert unknown["mat"] != unknown["mat"]
