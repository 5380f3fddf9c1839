"""The options of other engines, and settings that are refused before the target is loaded."""

import dataclasses
import json

import pytest
from helpers.tiny_target import write_suite, write_target

from methods.core.errors import UserError
from specbench.cli import app
from specbench.config.arm import Arm
from specbench.config.options import RunConfig
from specbench.engines.registry import ENGINES, resolve
from specbench.measure.resolve import split_arms
from specbench.measure.session import prepare
from specbench.store.records import Record, Steps


@pytest.fixture
def options(tmp_path):
    suite = write_suite(tmp_path / "suite.jsonl")
    return RunConfig(["hf-assisted"], str(write_target(tmp_path / "target")), suite_file=suite, dtype="fp64", device="cpu")


def ended(arguments):
    with pytest.raises(SystemExit) as end:
        app.main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


def refusal(function, *arguments):
    """Return the message of the UserError that a call raises."""
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_wrong_settings_are_refused_before_the_target_is_loaded(options, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("specbench.targets.load", None)
    assert "hf-assisted needs a draft model" in refusal(prepare, options)
    assert "hf-generate runs a target on one device" in refusal(
        prepare, dataclasses.replace(options, methods=["hf-generate"], device_map="auto")
    )
    assert "add --method endpoint" in refusal(prepare, dataclasses.replace(options, methods=["pld"], base_url="http://localhost"))
    assert "endpoint needs a server" in refusal(prepare, dataclasses.replace(options, methods=["endpoint"]))
    assert "did you mean 'hf-generate'?" in refusal(split_arms, RunConfig(methods=["hf-genrate"]))
    assert "--aa hf-pld" in refusal(split_arms, RunConfig(methods=["pld"], aa="hf-pld"))
    assert "hf-pld's nodes is 0" in refusal(resolve, Arm.parse("hf-pld:nodes=0"))
    assert "unknown option of hf-pld 'node'; did you mean 'nodes'?" in refusal(resolve, Arm.parse("hf-pld:node=3"))
    assert resolve(Arm.parse("hf-pld:nodes=3")).config.nodes == 3
    assert ended(["profile", "--method", "hf-pld"]) == 2
    assert "hf-pld is another engine, whose steps specbench cannot profile" in capsys.readouterr().err


def test_draft_model_with_another_tokenizer_is_refused(options, tmp_path):
    other = write_target(tmp_path / "other")
    facts = json.loads((other / "tokenizer.json").read_text())
    facts["model"]["vocab"] = {sign * 2 if sign in "abcd" else sign: index for sign, index in facts["model"]["vocab"].items()}
    (other / "tokenizer.json").write_text(json.dumps(facts))
    assisted = dataclasses.replace(options, methods=["hf-assisted"], drafters={"hf-assisted": other})
    assert "has another tokenizer" in refusal(prepare, assisted)
    assert "draft model" in refusal(prepare, dataclasses.replace(assisted, drafters={"hf-assisted": tmp_path}))


def test_methods_command_lists_engines_and_what_they_need(capsys, wide_terminal):
    assert ended(["methods"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ENGINES)
    assert "nodes, max_ngram" in shown
    assert "--base-url URL" in shown


def test_record_with_a_wrong_number_of_tokens_fails():
    with pytest.raises(AssertionError, match="the prefill's"):
        Record("hf-pld", "1", "c", 0, 0, "ok", output_ids=[1, 2, 3], total_s=1.0, timing="steps", steps=Steps(accepted=[0], emitted=[1]))
