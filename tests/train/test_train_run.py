"""Drafters trained from the command line on a small target: they learn, are found by `run`, and stay lossless."""

import json
import sys

import pytest
import torch
from helpers.chat_records import write_corpus
from helpers.tiny_target import write_suite, write_target
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from methods.core import weights
from methods.registry import METHODS
from specbench import targets
from specbench.cli import run as run_command
from specbench.cli.app import main
from specbench.store import records
from specbench.train import architecture, card, drafter, features
from specbench.train.architecture import KINDS
from specbench.train.data import corpus, texts
from specbench.train.data.chat import ChatFormat
from specbench.train.data.texts import Windows

STEPS, BETTER, TAUGHT = 60, 0.4, 150
RECIPE = ["--seq", "64", "--rows", "4", "--lr", "0.01", "--regenerate", "40", "--max-new-tokens", "40"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Train a target with another chat template to answer; return its folder with the records it was trained on."""
    folder = tmp_path_factory.mktemp("train")
    write_corpus(folder / "c.jsonl", 200)
    teach(write_target(folder / "target"), folder / "c.jsonl")
    return folder


def teach(target, source):
    loaded = targets.load(str(target), device="cpu", dtype="fp32", attention="sdpa")
    windows = Windows(texts.of_corpus(source, ChatFormat(loaded.chat, loaded.stop_ids), held_out=False), 64)
    model = loaded.model.train().requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(TAUGHT):
        rows_BT = windows.tokens(windows.numbers(step * 16, 16), extra=1)
        loss = cross_entropy(model(rows_BT[:, :-1]).logits.flatten(0, 1), rows_BT[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(target)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Hold out more of the small corpus, evaluate only at the end, and write no report of a run."""
    monkeypatch.setattr(corpus, "HELD_OUT_SHARE", 0.1)
    monkeypatch.setattr(drafter, "EVALUATIONS", 1)
    monkeypatch.setattr(run_command, "write_report", lambda *asked, **options: None)


def train(place, kind, *more, steps=STEPS):
    tokens = str(steps * 64 * 4)
    base = ["train", kind, "--target", str(place / "target"), "--data", str(place / "c.jsonl"), "--work", str(place / "work")]
    with pytest.raises(SystemExit) as end:
        main([*base, *RECIPE, "--tokens", tokens, *map(str, more)])
    return int(end.value.code or 0)


def assert_same(one, two):
    assert weights.about(one) == weights.about(two)
    for name, tensor in load_file(one).items():
        assert torch.equal(tensor, load_file(two)[name]), name


def first_ranks(path):
    return [ranks[0] for ranks in weights.about(path)["rank_accuracy"]]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_drafter_guesses_better_and_runs_losslessly(kind, place, tmp_path, capsys):
    assert train(place, kind, "--lr", "0", "--out", tmp_path / "before.safetensors", steps=1) == 0
    assert train(place, kind) == 0
    trained = place / "target" / "drafters" / f"{kind}.safetensors"
    assert f"wrote {trained}" in capsys.readouterr().out.replace("\n", "")
    before, after = first_ranks(tmp_path / "before.safetensors"), first_ranks(trained)
    assert after[0] > before[0] + BETTER, (before, after)
    assert sum(after) > sum(before) + BETTER, (before, after)
    methods = [name for name, row in METHODS.items() if row.weights == kind]
    suite = write_suite(tmp_path / "suite.jsonl")
    run = [
        "run",
        "--target",
        str(place / "target"),
        "--suite-file",
        str(suite),
        "--dtype",
        "fp64",
        "--device",
        "cpu",
        "--max-new-tokens",
        "16",
    ]
    with pytest.raises(SystemExit) as end:
        main([*run, "--out", str(tmp_path / "run"), *(f"--method={name}" for name in methods)])
    assert not end.value.code
    outputs: dict[tuple[str, int], dict[str, list[int]]] = {}
    for record in records.read(tmp_path / "run")[0]:
        outputs.setdefault((record.question_id, record.turn), {})[record.arm] = record.output_ids
    assert all(len(answers) == 1 + len(methods) and len(set(map(tuple, answers.values()))) == 1 for answers in outputs.values())


def test_repeating_a_finished_training_takes_no_step(place, tmp_path, monkeypatch, capsys):
    assert train(place, KINDS[0], "--out", tmp_path / "one.safetensors", steps=3) == 0
    monkeypatch.setattr("specbench.train.loop.train_step", None)
    assert train(place, KINDS[0], "--out", tmp_path / "two.safetensors", steps=3) == 0
    assert_same(tmp_path / "one.safetensors", tmp_path / "two.safetensors")


def test_cached_features_train_the_same_drafter_up_to_bf16(place, tmp_path, capsys):
    found = []
    for name, more in (("computed", []), ("cached", ["--cache-features"])):
        assert (
            train(place, "eagle", *more, "--accumulate", 2, "--out", tmp_path / f"{name}.safetensors", "--work", tmp_path / name, steps=8)
            == 0
        )
        [state] = (tmp_path / name).glob("*.pt")
        found.append(torch.load(state, weights_only=True)["module"])
    assert "features take 0.00 GiB" in capsys.readouterr().out
    assert all(torch.allclose(one, found[1][name], atol=2e-2) for name, one in found[0].items())
    assert not all(torch.equal(one, found[1][name]) for name, one in found[0].items())
    assert first_ranks(tmp_path / "cached.safetensors")[0] == pytest.approx(first_ranks(tmp_path / "computed.safetensors")[0], abs=0.05)


def test_a_training_on_the_corpus_alone_records_its_options(place, tmp_path, capsys):
    options = ["--regenerate", "0", "--schedule", "cosine", "--set", "depth=3"]
    assert train(place, "s4c", *options, "--out", tmp_path / "s.safetensors", steps=2) == 0
    about = weights.about(tmp_path / "s.safetensors")
    assert (about["recipe"]["regenerate"], about["recipe"]["schedule"], about["tokens"]) == (0, "cosine", 512)
    assert about["options"] == {"heads": "recurrent", "prefix": "layer", "depth": 3, "vocabulary": 0}
    assert about["coverage"] == {}
    assert "own:" not in capsys.readouterr().out


def test_a_large_vocabulary_is_cut_to_the_frequent_tokens(place, tmp_path, monkeypatch, capsys):
    """The file has no output matrix; what the draft vocabulary covers is printed and recorded, by category, and in the card's row."""
    monkeypatch.setattr(architecture, "LARGE_VOCABULARY", 100)
    monkeypatch.setattr(architecture, "DRAFT_VOCABULARY", 40)
    (tmp_path / "drafters").mkdir()
    path = tmp_path / "drafters" / "medusa.safetensors"
    assert train(place, "medusa", "--out", path, "--work", tmp_path / "work", steps=2) == 0
    about, tensors = weights.about(path), load_file(path)
    assert about["options"] == {"heads": 4, "blocks": 1, "vocabulary": 40, "output": "target"}
    assert {tuple(tensor.shape) for tensor in tensors.values()} == {(40,), (32,), (32, 32)}
    coverage = about["coverage"]
    assert list(coverage) == ["all", "qa", "rag"]
    answers = [json.loads(file.read_text()) for file in (tmp_path / "work").rglob("held_out/*.json")]
    answered = [token for batch in answers for answer in batch for token in answer]
    known = (tensors["d2t"] + torch.arange(40)).tolist()
    assert coverage["all"] == pytest.approx(sum(token in known for token in answered) / len(answered), abs=1e-5)
    assert min(coverage["qa"], coverage["rag"]) <= coverage["all"] <= max(coverage["qa"], coverage["rag"])
    said = f"draft vocabulary of 40 tokens: {coverage['all']:.1%} (qa {coverage['qa']:.1%}, rag {coverage['rag']:.1%})"
    assert f"{said} of held-out answers" in " ".join(capsys.readouterr().out.split())
    [row] = card._drafter_rows(tmp_path, about["target_sha256"])
    assert f"| {coverage['all']:.1%} (qa" in row


def test_a_target_with_a_device_map_trains_the_same_drafter(place, tmp_path, capsys, monkeypatch):
    """On a CPU the hooks that move tensors between GPUs are in place and change nothing."""
    pytest.importorskip("accelerate")
    hooked, compute = [], features.compute

    def watched(model, reads, tokens_BT):
        hooked.append(all(hasattr(layer, "_hf_hook") for layer in model.model.layers))
        return compute(model, reads, tokens_BT)

    monkeypatch.setattr(features, "compute", watched)
    (tmp_path / "map.json").write_text('{"0": "cpu", "1": "cpu"}')
    for name, more in (("whole", []), ("spread", ["--device-map", tmp_path / "map.json"])):
        work = ["--work", tmp_path / name, "--out", tmp_path / f"{name}.safetensors"]
        assert train(place, "eagle", *more, *work, steps=3) == 0
    assert_same(tmp_path / "whole.safetensors", tmp_path / "spread.safetensors")
    assert hooked == [False] * (len(hooked) // 2) + [True] * (len(hooked) // 2)


def test_numbers_are_written_for_tensorboard(place, tmp_path, capsys, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setattr(drafter, "EVALUATIONS", 4)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train(place, "medusa", "--log-dir", tmp_path / "log", "--out", tmp_path / "m.safetensors", steps=9) == 0
    events = EventAccumulator(str(tmp_path / "log")).Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 10))
    assert [event.step for event in events.Scalars("held-out acceptance/level 1")] == [2, 4, 6, 8, 9]


def test_bad_options_are_refused_before_training(place, tmp_path, capsys, monkeypatch):
    def refused(*arguments):
        assert train(place, *arguments) == 2
        return " ".join(capsys.readouterr().err.split())

    assert "--seq takes 1024 tokens, more than the target's context of 512" in refused("medusa", "--seq", "1024")
    assert "--tokens is 15,360, less than a step's 25,600" in refused("medusa", "--accumulate", "100")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    assert "--log-dir needs the package tensorboard" in refused("medusa", "--log-dir", str(tmp_path / "log"))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("MASTER_PORT", "29500")
    assert "accelerate launch was asked for several processes and started one; add --multi_gpu" in refused("medusa")
