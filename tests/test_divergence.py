"""A divergence is told apart: the target torn between two tokens, or a wrong one."""

import json

import pytest
import torch
from tiny_target import write_suite, write_target

from methods.core.errors import UserError
from specbench import divergence
from specbench.cli import main
from specbench.divergence import Divergence
from specbench.session import Options, prepare


def cli(*arguments):
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    return stop.value.code


@pytest.fixture
def run(tmp_path):
    target, suite, out = write_target(tmp_path / "target"), write_suite(tmp_path / "suite.jsonl"), tmp_path / "run"
    asked = ["--target", target, "--suite-file", suite, "--method", "pld", "--dtype", "fp32", "--max-new-tokens", 9]
    assert cli("run", *asked, "--limit", 1, "--out", out) == 0
    return out


def change(run, change_fields):
    path = run / "records.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for fields in lines:
        change_fields(fields)
    path.write_text("".join(json.dumps(fields) + "\n" for fields in lines))


def test_an_honest_run_agrees(run, capsys):
    explained = divergence.explain(run)
    assert explained.compared == {"pld": 5}
    assert explained.divergences == []
    assert cli("agree", run) == 0


def test_a_wrong_token_is_a_violation_with_the_targets_gap(run, capsys):
    def break_it(fields):
        if (fields["method"], fields["question_id"], fields["turn"]) == ("pld", "a1", 0):
            fields["output_ids"][4] = (fields["output_ids"][4] + 1) % 200

    change(run, break_it)
    [found] = divergence.explain(run).divergences
    assert (found.method, found.question_id, found.turn, found.position) == ("pld", "a1", 0, 4)
    vanilla = next(json.loads(line) for line in (run / "records.jsonl").read_text().splitlines())
    assert found.tokens == (vanilla["output_ids"][4], (vanilla["output_ids"][4] + 1) % 200)
    with torch.inference_mode():
        session = prepare(Options.of(divergence.RunManifest.read(run)))
        prompt = divergence.prompts.encode(session.tokenizer, ["Say a b c."], [])
        logits_V = session.target.model(torch.tensor([prompt + vanilla["output_ids"][:4]])).logits[0, -1]
    top = logits_V.topk(2).values
    assert found.gap == pytest.approx(float(top[0] - top[1]), rel=1e-4)
    assert not found.is_tie
    assert cli("agree", run) == 1
    assert "violation: pld, question a1, turn 1, token 4" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("gap", "between", "tie"), [(0.1, True, True), (0.3, True, False), (0.1, False, False)], ids=["near", "far", "neither is on top"]
)
def test_a_tie_is_a_small_gap_between_the_targets_top_two(gap, between, tie):
    assert Divergence("s4c", "1", 0, 0, 3, (5, 6), gap, tolerance=0.2, between_top_two=between).is_tie == tie


def test_a_sampled_run_is_refused(run):
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["settings"]["temperature"] = 0.7
    (run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"sampled at temperature 0\.7; only greedy runs"):
        divergence.explain(run)
