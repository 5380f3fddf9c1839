"""The gate passes equal runs, fails worse ones, and refuses or leaves open what it cannot judge."""

import json
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers.edited_runs import without_digests
from helpers.gated_runs import QUESTIONS, TOKENS, answers, call, outcomes, run
from helpers.scripted_records import failed

from methods.core.errors import UserError
from specbench.cli import check
from specbench.gate import baseline, snapshot
from specbench.store.manifest import ImportSource, Start, changed_facts
from specbench.store.records import Steps
from specbench.util.environment import Environment, GitState

ELSEWHERE: dict[str, Any] = {"python": "3.11", "torch": "2.13", "cpu": "Another", "threads": 2}


@pytest.fixture(scope="module")
def base(tmp_path_factory, _unsynced):
    return run(tmp_path_factory.mktemp("runs") / "base", answers(noise=0.02, repeats=2))


@pytest.fixture(autouse=True, scope="module")
def _unsynced():
    """Write records without syncing each to the disk, which would take most of the time here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("specbench.store.records.os.fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True)
def _no_target(monkeypatch):
    """Fail if the target is loaded: that is needed only where a text differs, and no test here has such a text."""
    monkeypatch.setattr(check, "explain", lambda run_dir: pytest.fail("the target was loaded"))


def test_a_run_passes_against_itself(base):
    code, found = outcomes(base, "--baseline", base)
    names = {"failed turns", "losslessness", "MAT: medusa", "acceptance by depth: medusa", "speedup: medusa"}
    assert (code, found) == (0, dict.fromkeys(names, "pass"))


def test_no_command_of_the_gate_writes_over_what_it_reads(base, tmp_path):
    file = tmp_path / "baseline.json"
    assert call("baseline", "set", base, "--out", file)[0] == 0
    before = {path: path.read_bytes() for path in (*(path for path in base.iterdir() if path.is_file()), file)}
    of_run, of_command = "is a file of the run in", "is a file that this command reads or writes otherwise"
    for arguments, said in (
        (("check", base, "--baseline", base, "--junit", base / "records.jsonl"), of_run),
        (("check", base, "--baseline", base, "--markdown", base / "manifest.json"), of_run),
        (("check", base, "--baseline", file, "--markdown", file), of_command),
        (("check", base, "--baseline", file, "--junit", tmp_path / "one", "--markdown", tmp_path / "one"), of_command),
        (("baseline", "set", base, "--out", base / "agreement.json"), of_run),
    ):
        code, printed = call(*arguments)
        assert (code, printed.count("\n")) == (2, 0)
        assert said in printed
    assert {path: path.read_bytes() for path in before} == before
    assert [path.name for path in tmp_path.iterdir()] == ["baseline.json"]


def test_equal_runs_under_noise_pass_and_ten_percent_less_speed_fails(base, tmp_path):
    same = run(tmp_path / "same", answers(noise=0.02, repeats=4, seed=1))
    slow = run(tmp_path / "slow", answers(noise=0.02, repeats=2, slower=1.13, seed=2))  # a tenth less end to end: a prefill is no step
    assert outcomes(same, "--baseline", base)[0] == 0
    code, found = outcomes(slow, "--baseline", base)
    assert code == 1
    assert [name for name, outcome in found.items() if outcome == "fail"] == ["speedup: medusa"]


def test_an_acceptance_bug_fails_mat_and_the_depths(base, tmp_path):
    wrong = run(tmp_path / "wrong", answers(rate=0.55, noise=0.02, repeats=2))
    code, found = outcomes(wrong, "--baseline", base)
    assert code == 1
    assert {name for name, outcome in found.items() if outcome == "fail"} >= {"MAT: medusa", "acceptance by depth: medusa"}


def test_five_questions_are_inconclusive(tmp_path):
    few = run(tmp_path / "few", answers(questions=5))
    code, found = outcomes(few, "--baseline", few)
    assert (code, found["speedup: medusa"]) == (3, "inconclusive")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"suite": {"sha256": "1" * 64}}, ["suite_sha256 ffffffffffff… -> 111111111111…"]),
        ({"settings": {"dtype": "fp16", "categories": ["qa"]}}, ["dtype bf16 -> fp16", "categories none -> qa"]),
        ({"settings": {"limit": 8, "attention": "eager"}}, ["limit none -> 8", "attention sdpa -> eager"]),
        ({"settings": {"temperature": 0.7, "max_new_tokens": 64}}, ["temperature 0.0 -> 0.7", "max_new_tokens 32 -> 64"]),
        ({"settings": {"turns": "shared", "device": "cuda"}}, ["turns own -> shared", "device cpu -> cuda"]),
        ({"target": {"weights_sha256": "2" * 64}, "template_sha256": "3" * 64}, ["target.weights_sha256", "template_sha256"]),
        ({"environment": ELSEWHERE}, ["cpu A CPU -> Another"]),
        ({"resumed": [Start("later", Environment(**ELSEWHERE), GitState(), [])]}, ["cpu A CPU -> A CPU then Another"]),
    ],
)
def test_incomparable_runs_are_refused_with_every_difference(base, tmp_path, changes, named):
    other = run(tmp_path / "other", answers(), **changes)
    code, complaint = call("check", other, "--baseline", base)
    assert code == 2
    assert "\n" not in complaint
    assert all(each in complaint for each in named), complaint


def test_other_arms_or_options_are_refused_and_more_arms_are_a_warning(base, tmp_path):
    alone = [record for record in answers() if record.arm == "vanilla"]
    assert "arm medusa is missing" in call("check", run(tmp_path / "alone", alone), "--baseline", base)[1]
    assert "no drafting arm" in call("check", base, "--baseline", tmp_path / "alone")[1]
    more = [*answers(), *(replace(record, arm="eagle2") for record in answers() if record.arm == "medusa")]
    code, printed = call("check", without_digests(run(tmp_path / "more", more)), "--baseline", base)
    assert code == 0
    assert "warning: Arm eagle2 has no baseline." in printed
    manifest = json.loads((tmp_path / "more" / "manifest.json").read_text())
    manifest["arms"]["eagle2"] = dict(manifest["arms"]["medusa"])
    manifest["arms"]["medusa"] |= {"config": {"nodes": 16}, "acceptance": "typical", "lossless": False}
    (tmp_path / "more" / "manifest.json").write_text(json.dumps(manifest | {"units_total": len(more)}))
    code, complaint = call("check", tmp_path / "more", "--baseline", base)
    assert code == 2
    assert "medusa: nodes 12 -> 16; medusa: acceptance match -> typical" in complaint


def test_other_versions_are_a_warning_between_runs_and_refused_by_a_baseline_file(base, tmp_path):
    environment = {"python": "3.11", "torch": "2.14", "cpu": "A CPU", "threads": 2}
    new = run(tmp_path / "new", answers(repeats=1), git={"sha": "a" * 40}, environment=environment)
    code, printed = call("check", new, "--baseline", base)
    assert code == 0
    assert "warning: Versions differ: torch 2.13 -> 2.14." in printed
    assert call("baseline", "set", base, "--out", tmp_path / "file.json")[0] == 0
    code, complaint = call("check", new, "--baseline", tmp_path / "file.json")
    assert code == 2
    assert "torch 2.13 -> 2.14" in complaint


def test_failed_turns_fail_and_unfinished_runs_are_refused(base, tmp_path):
    records = answers()
    broken = run(tmp_path / "broken", [*records[:-1], failed("medusa", records[-1].question_id, category="rag")])
    code, printed = call("check", broken, "--baseline", base)
    assert code == 1
    assert "failed turns: 1 of 96, the first: medusa, question q47, turn 1: out of memory" in printed
    assert "can be no baseline, failed turns" in call("check", base, "--baseline", broken)[1]
    never = run(tmp_path / "never", [r if r.arm == "vanilla" else failed("medusa", r.question_id, category=r.category) for r in records])
    code, found = outcomes(never, "--baseline", base)
    assert (code, found["MAT: medusa"], found["failed turns"]) == (1, "inconclusive", "fail")
    half = without_digests(run(tmp_path / "half", records[:-1]))
    manifest = json.loads((half / "manifest.json").read_text())
    (half / "manifest.json").write_text(json.dumps(manifest | {"units_total": 96}))
    for arguments in (["check", half, "--baseline", base], ["check", base, "--baseline", half], ["baseline", "set", half]):
        code, complaint = call(*arguments)
        assert (code, "is unfinished: 95 of 96 turns" in complaint) == (2, True)


def diverging(records):
    odd = next(index for index, record in enumerate(records) if record.arm == "medusa")
    return [*records[:odd], replace(records[odd], output_ids=[*range(TOKENS - 1), 999]), *records[odd + 1 :]]


@pytest.mark.parametrize(("violations", "code", "outcome"), [(["medusa"], 1, "fail"), (["lossy"], 0, "pass"), ([], 0, "pass")])
def test_a_diverging_text_is_judged_and_a_violation_fails(base, tmp_path, monkeypatch, violations, code, outcome):
    new = run(tmp_path / "new", diverging(answers(repeats=2)))
    asked = []

    def explain(run_dir):
        asked.append(run_dir)
        return SimpleNamespace(violations=[SimpleNamespace(arm=name, question_id="q0", turn=0, position=TOKENS - 1) for name in violations])

    monkeypatch.setattr(check, "explain", explain)
    ended, found = outcomes(new, "--baseline", base)
    assert (ended, found["losslessness"], asked) == (code, outcome, [new])
    ended, printed = call("check", new, "--baseline", base)
    assert ("1 of 96 turns: medusa, question q0, turn 1, token 30" in printed) == (outcome == "fail")
    assert ("95 of 96 turns equal vanilla's, 1 differ by a numeric tie" in printed) == (outcome == "pass")
    ended, complaint = call("baseline", "set", new, "--out", tmp_path / "file.json")
    assert (ended, "losslessness" in complaint) == ((2, True) if outcome == "fail" else (0, False))


def test_losslessness_is_inconclusive_or_not_applicable_without_evidence(tmp_path):
    sampled = run(tmp_path / "sampled", answers(), settings={"temperature": 0.7})
    assert outcomes(sampled, "--baseline", sampled)[1]["losslessness"] == "not applicable"
    lossy = run(tmp_path / "lossy", answers(), lossy=["medusa"])
    assert outcomes(lossy, "--baseline", lossy)[1]["losslessness"] == "not applicable"
    uncounted = run(tmp_path / "uncounted", [replace(record, output_ids=[], tokens=TOKENS) for record in answers()])
    assert outcomes(uncounted, "--baseline", uncounted)[1]["losslessness"] == "inconclusive"
    apart = [replace(record, prompt_sha256="other") if record.arm == "medusa" else record for record in answers()]
    other = run(tmp_path / "other", apart)
    code, found = outcomes(other, "--baseline", other)
    assert (code, found["losslessness"]) == (3, "inconclusive")


def test_losslessness_is_inconclusive_without_the_target(base, tmp_path, monkeypatch):
    def explain(run_dir):
        raise UserError("the suite is not here\nany more")

    monkeypatch.setattr(check, "explain", explain)
    new = run(tmp_path / "new", diverging(answers(repeats=2)))
    code, found = outcomes(new, "--baseline", base)
    assert code == 3
    assert {name for name, outcome in found.items() if outcome != "pass"} == {"losslessness"}
    assert "1 of 96 turns differ, and why is not known: the suite is not here any more" in call("check", new, "--baseline", base)[1]
    code, complaint = call("baseline", "set", new, "--out", tmp_path / "file.json")
    assert (code, "the suite is not here any more" in complaint, (tmp_path / "file.json").exists()) == (2, True, False)


def test_records_must_be_the_planned_ones_each_once(base, tmp_path):
    records = answers()
    asked = {
        "twice": ([*records[:-1], records[0]], "holds 1 turn(s) twice"),
        "more": (
            [*records, *(replace(record, question_id="q48") for record in records[:2])],
            "does not hold each of its 96 planned turns once",
        ),
        "uneven": ([*records[:-1], replace(records[0], question_id="q48")], "does not hold each of its 96 planned turns once"),
        "repeat": ([replace(record, repeat=1) for record in records], "does not hold each of its 96 planned turns once"),
        "stranger": ([*records[:-1], replace(records[-1], arm="eagle")], "holds records of eagle, no arm of its manifest"),
    }
    for name, (found, said) in asked.items():
        path = without_digests(run(tmp_path / name, found))
        manifest = json.loads((without_digests(base) / "manifest.json").read_text()) | {"units_total": 96}
        manifest["settings"]["repeats"] = 1
        (path / "manifest.json").write_text(json.dumps(manifest))
        code, complaint = call("check", path, "--baseline", base)
        assert (code, said in complaint, "\n" in complaint) == (2, True, False), (name, complaint)


def test_runs_with_other_questions_are_not_compared_or_pooled(base, tmp_path):
    renamed = {"q0": "x0", "q1": "x1"}
    records = [replace(record, question_id=renamed.get(record.question_id, record.question_id)) for record in answers()]
    other, same = run(tmp_path / "other", records), run(tmp_path / "same", answers())
    for arguments in ([other, "--baseline", base], [same, other, "--baseline", base]):
        code, complaint = call("check", *arguments)
        assert (code, "4 of 50 questions are not the same" in complaint) == (2, True)


def test_imported_runs_are_refused_in_one_sentence(base, tmp_path):
    path = run(tmp_path / "imported", answers(), imported=[ImportSource("medusa", "medusa.jsonl", "a" * 64, ["medusa"])])
    file = tmp_path / "file.json"
    for arguments in (["check", path, "--baseline", base], ["check", base, "--baseline", path], ["baseline", "set", path, "--out", file]):
        code, complaint = call(*arguments)
        assert (code, "is imported, so its settings" in complaint, "\n" in complaint, file.exists()) == (2, True, False, False)


def test_unknown_numbers_are_equal_and_refused_in_a_baseline(base, tmp_path):
    assert changed_facts({"a": float("nan"), "b": 1}, {"a": float("nan"), "b": float("nan")}) == ["b 1 -> nan"]
    file = tmp_path / "file.json"
    short = run(tmp_path / "short", [replace(record, output_ids=[0], steps=Steps()) for record in answers()])
    code, complaint = call("baseline", "set", short, "--out", file)
    assert (code, "medusa has no MAT" in complaint, file.exists()) == (2, True, False)
    assert call("baseline", "set", base, "--out", file)[0] == 0
    file.write_text(re.sub('"mat": [0-9.]+', '"mat": NaN', file.read_text()))
    assert "not a baseline (not JSON: expected value at line" in call("check", base, "--baseline", file)[1]


def test_several_runs_are_pooled_as_repeats_and_only_runs_of_one_kind(base, tmp_path):
    passes = [run(tmp_path / f"pass-{k}", answers(noise=0.02, seed=k)) for k in range(3)]
    whole = snapshot.read_runs(passes)
    assert sorted(whole.turns["repeat"].unique()) == [0, 1, 2]
    logs = [snapshot.take_snapshot(snapshot.read_runs([each])).arms["medusa"].log_speedups["q3"] for each in passes]
    assert snapshot.take_snapshot(whole).arms["medusa"].log_speedups["q3"] == pytest.approx(np.mean(logs))
    assert call("check", *passes[:2], "--baseline", passes[2], "--baseline", base)[0] == 0
    assert "named twice" in call("check", passes[0], passes[0], "--baseline", base)[1]
    other = run(tmp_path / "other", answers(), git={"sha": "a" * 40})
    assert "cannot be pooled: code cccc" in call("check", passes[0], other, "--baseline", base)[1]


@pytest.mark.parametrize("slower", [1.02, 1 / 1.02])
def test_the_noise_of_an_aa_run_is_its_widest_bound(tmp_path, slower):
    twice = answers(noise=0.02, repeats=2, again=True)
    aa = run(tmp_path / "aa", [replace(r, total_s=slower * r.total_s) if r.arm == "medusa#2" else r for r in twice])
    found = snapshot.take_snapshot(snapshot.read_runs([aa]))
    floor = snapshot.metrics.noise_floor(snapshot.read_runs([aa]).turns, "medusa")
    assert list(found.arms) == ["medusa"]
    assert found.noise == pytest.approx(max(abs(np.log(floor.low)), abs(np.log(floor.high))))
    assert f"2 x the A/A noise of {found.noise:.1%}" in call("check", aa, "--baseline", aa)[1]


def test_a_baseline_file_equals_its_run_and_lists_what_it_replaces(base, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, printed = call("baseline", "set", base)
    name = r"new: baselines/tiny-160m-ffffffff-bf16-a-cpu-2-threads-torch-2\.13-python-3\.11-[0-9a-f]{8}\.json\n"
    assert (code, bool(re.fullmatch(name, printed))) == (0, True), printed
    (file,) = (tmp_path / "baselines").iterdir()
    assert json.loads(file.read_text())["source"] == "base"
    assert str(tmp_path.parent) not in file.read_text()
    assert json.loads(file.read_text())["questions"]["q1"]["category"] == "rag"
    assert file.read_text().count("\n") > QUESTIONS  # a line a question
    read = baseline.read_baseline(file)
    whole = snapshot.take_snapshot(snapshot.read_runs([base]))
    assert read.arms["medusa"].mat == pytest.approx(whole.arms["medusa"].mat, abs=1e-6)
    assert read.arms["medusa"].log_speedups == pytest.approx(whole.arms["medusa"].log_speedups, abs=1e-6)
    assert (read.identity, read.versions, read.categories) == (whole.identity, whole.versions, whole.categories)
    code, found = outcomes(base, "--baseline", file)
    assert (code, set(found.values())) == (0, {"pass"})
    worse = run(tmp_path / "worse", answers(rate=0.5, noise=0.02, repeats=2))
    assert outcomes(worse, "--baseline", file)[0] == 1
    code, printed = call("baseline", "set", worse, "--out", file)
    assert code == 0
    assert printed.startswith(f"replaced: {file}\n")
    assert "medusa: MAT " in printed
    assert "medusa: acceptance at depth 1 " in printed
    assert outcomes(worse, "--baseline", file)[0] == 0
    longer = run(tmp_path / "longer", answers(), settings={"max_new_tokens": 64})
    assert call("baseline", "set", longer)[1].startswith("new: ")  # other settings, another file


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2}', '{"schema": 1, "questions": 3}'])
def test_a_file_that_is_no_baseline_is_refused_in_one_line(base, tmp_path, text):
    (tmp_path / "odd.json").write_text(text)
    for arguments in (["check", base, "--baseline", tmp_path / "odd.json"], ["baseline", "set", base, "--out", tmp_path / "odd.json"]):
        code, complaint = call(*arguments)
        assert code == 2
        assert "baseline set" in complaint
        assert "\n" not in complaint
    assert (tmp_path / "odd.json").read_text() == text


def test_misuse_exits_with_code_two(base, tmp_path):
    assert call("check", base)[0] == 2
    assert call("check", base, "--baseline", tmp_path / "none")[0] == 2
    assert call("check", tmp_path / "none", "--baseline", base)[0] == 2
    (tmp_path / "file").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshot, "read_runs", lambda runs: pytest.fail("judged before it was known where to write"))
        for option, place, reason in (
            ("--junit", tmp_path / "file" / "x", "choose another --junit"),
            ("--markdown", tmp_path, "name a file"),
        ):
            code, complaint = call("check", base, "--baseline", base, option, place)
            assert (code, str(place) in complaint, reason in complaint) == (2, True, True)
    assert call("check", tmp_path / "none", "--baseline", base, "--markdown", tmp_path / "left.md")[0] == 2
    assert not (tmp_path / "left.md").exists()
    assert "one baseline file, or run directories only" in call("check", base, "--baseline", base, "--baseline", tmp_path / "x.json")[1]


def test_files_are_written_and_the_terminal_ends_with_the_verdict(base, tmp_path):
    files = tmp_path / "junit.xml", tmp_path / "summary.md"
    code, printed = call("check", base, "--baseline", base, "--junit", files[0], "--markdown", files[1])
    assert code == 0
    assert printed.splitlines()[-1] == f"pass: {base} against {base}"
    assert len(ET.parse(files[0]).getroot().findall("testcase")) == 5
    assert files[1].read_text().startswith("## specbench check: pass")
