"""What can be asked of a peer, and what is refused before anything large is loaded."""

import dataclasses
import json

import pytest
from helpers.tiny_target import write_suite, write_target

from methods.core.errors import UserError
from specbench.cli import app
from specbench.config.options import Options
from specbench.engines.registry import PEERS, apart, resolve
from specbench.measure.session import prepare
from specbench.store import records
from specbench.store.records import Record, Steps


@pytest.fixture
def options(tmp_path):
    suite = write_suite(tmp_path / "suite.jsonl")
    return Options(["hf-assisted"], str(write_target(tmp_path / "target")), suite_file=suite, dtype="fp64", device="cpu")


def ended(arguments):
    with pytest.raises(SystemExit) as end:
        app.main([str(each) for each in arguments])
    return int(end.value.code or 0)


def refusal(act, *given, **named):
    with pytest.raises(UserError) as caught:
        act(*given, **named)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_cannot_be_is_refused_before_anything_is_loaded(options, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("specbench.targets.load", None)
    assert "hf-assisted needs a draft model" in refusal(prepare, options)
    assert "hf-generate runs a target on one device" in refusal(
        prepare, dataclasses.replace(options, methods=["hf-generate"], device_map="auto")
    )
    assert "add --method endpoint" in refusal(prepare, dataclasses.replace(options, methods=["pld"], base_url="http://localhost"))
    assert "endpoint needs a server" in refusal(prepare, dataclasses.replace(options, methods=["endpoint"]))
    assert "did you mean 'hf-generate'?" in refusal(apart, ["hf-genrate"], None)
    assert "--aa hf-pld" in refusal(apart, ["pld"], "hf-pld")
    assert "hf-pld's nodes is 0" in refusal(resolve, "hf-pld:nodes=0")
    assert "unknown option of hf-pld 'node'; did you mean 'nodes'?" in refusal(resolve, "hf-pld:node=3")
    assert resolve("hf-pld:nodes=3").config.nodes == 3
    assert ended(["profile", "--method", "hf-pld"]) == 2
    assert "hf-pld is another engine, whose rounds specbench cannot profile" in capsys.readouterr().err


def test_a_draft_model_of_another_vocabulary_is_refused(options, tmp_path):
    other = write_target(tmp_path / "other")
    facts = json.loads((other / "tokenizer.json").read_text())
    facts["model"]["vocab"] = {f"{sign}{sign}" if sign == "a" else sign: place for sign, place in facts["model"]["vocab"].items()}
    (other / "tokenizer.json").write_text(json.dumps(facts))
    asked = dataclasses.replace(options, methods=["hf-assisted"], drafter_files={"hf-assisted": other})
    assert "has another tokenizer" in refusal(prepare, asked)
    assert "draft model" in refusal(prepare, dataclasses.replace(asked, drafter_files={"hf-assisted": tmp_path}))


def test_methods_lists_the_peers_and_what_they_need(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert ended(["methods"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in PEERS)
    assert "nodes, max_ngram" in shown
    assert "--base-url URL" in shown


def test_records_of_before_there_were_peers_are_read():
    old = {"schema": 1, "method": "vanilla", "question_id": "1", "category": "c", "turn": 0, "repeat": 0, "status": "ok"}
    steps = {"nodes": [1], "depth": [0], "accepted": [0], "emitted": [1], "draft_s": [0.0], "verify_s": [0.1], "commit_s": [0.0]}
    found = records.from_fields({**old, "output_ids": [1, 2], "total_s": 1.0, "steps": steps}, "here")
    assert (found.timing, found.prefill_tokens, found.drafting, found.steps.round_s) == ("parts", 1, None, [])
    with pytest.raises(AssertionError, match="the prefill's"):
        Record("hf-pld", "1", "c", 0, 0, "ok", output_ids=[1, 2, 3], total_s=1.0, timing="rounds", steps=Steps(accepted=[0], emitted=[1]))
