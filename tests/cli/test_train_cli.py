"""The commands train, card and held-out on a user's own corpus: what they refuse, and what a model card claims."""

import json
from dataclasses import asdict
from typing import Any

import pytest
import torch
import typer
from helpers.small_models import RANK_ACCURACY, SHAPE, trained
from transformers import LlamaConfig, LlamaForCausalLM

from methods.core import weights
from methods.core.errors import UserError
from specbench import targets
from specbench.cli import app
from specbench.cli.app import main
from specbench.train import card
from specbench.train.data import corpus
from specbench.train.recipe import Recipe
from specbench.train.target import train_tokenizer
from specbench.util.terminal import Console


def write_corpus(path, count):
    turns = [[{"role": "user", "content": f"Question {i}?"}, {"role": "assistant", "content": f"{2 * i}."}] for i in range(count)]
    facts = {"category": "qa", "source": "own", "license": "MIT"}
    path.write_text("".join(json.dumps({"id": str(i), **facts, "messages": messages}) + "\n" for i, messages in enumerate(turns)))
    return path


def test_the_help_shows_the_defaults_of_a_recipe():
    """``--help`` imports no torch, which the recipe does, so that its defaults are written out there."""
    commands: Any = typer.main.get_command(app.app)
    train_command = commands.commands["train"]
    shown = {option.name: option.show_default for option in train_command.params if option.name in Recipe.__dataclass_fields__}
    assert {name: type(getattr(Recipe, name))(text) for name, text in shown.items()} == asdict(Recipe())


def refused(capsys, *arguments):
    """Return what a command prints that exits with code 2."""
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("count", [0, 5])
def test_held_out_of_a_corpus_without_held_out_prompts_is_refused(count, tmp_path, capsys):
    text = refused(capsys, "held-out", "--data", write_corpus(tmp_path / "c.jsonl", count), "--out", tmp_path / "out.jsonl")
    assert "has no held-out prompts of one user turn" in text
    assert not (tmp_path / "out.jsonl").exists()


def test_held_out_over_its_own_corpus_is_refused(tmp_path, capsys):
    corpus = write_corpus(tmp_path / "corpus.jsonl", 3)
    before = corpus.read_bytes()
    assert "is a file that this command reads" in refused(capsys, "held-out", "--data", corpus, "--out", corpus)
    assert corpus.read_bytes() == before


def test_held_out_into_a_folder_is_refused(tmp_path, capsys):
    records = write_corpus(tmp_path / "c.jsonl", 1000)
    assert "is a directory; name a file" in refused(capsys, "held-out", "--data", records, "--out", tmp_path)
    assert "cannot write to" in refused(capsys, "held-out", "--data", records, "--out", records / "below" / "out.jsonl")
    with pytest.raises(SystemExit) as stop:
        main(["held-out", "--data", str(records), "--out", str(tmp_path / "out.jsonl")])
    assert not stop.value.code
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) > 1


@pytest.mark.parametrize("option", ["--target tiny", "--template chat", "--set heads=3", "--tokens 5000", "--lr 0.1", "--work w"])
def test_train_target_refuses_options_of_drafters(option, tmp_path, capsys):
    records = write_corpus(tmp_path / "c.jsonl", 5)
    text = refused(capsys, "train", "target", "--data", records, "--out", tmp_path / "out", *option.split())
    assert f"{option.split()[0]} is for training a drafter, not for specbench train target" in text


def test_train_of_a_drafter_refuses_options_of_targets(tmp_path, capsys):
    text = refused(capsys, "train", "s4c", "--data", write_corpus(tmp_path / "c.jsonl", 5), "--preset", "micro")
    assert "--preset is for training a target, not for specbench train s4c" in text


def test_train_target_on_a_small_corpus_is_refused(tmp_path, capsys):
    text = refused(capsys, "train", "target", "--data", write_corpus(tmp_path / "c.jsonl", 5), "--out", tmp_path / "out")
    assert "has no held-out records" in text


@pytest.fixture(scope="module")
def trained_here(tmp_path_factory):
    """Train a target and a drafter, and return their folder with the corpus."""
    folder = tmp_path_factory.mktemp("trained")
    records = write_corpus(folder / "mine.jsonl", 400)
    tok = train_tokenizer(records, 300)
    ids = {"bos_token_id": tok.bos_token_id, "eos_token_id": tok.eos_token_id, "pad_token_id": tok.pad_token_id}
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**{**SHAPE, **ids, "vocab_size": len(tok), "max_position_embeddings": 4096}))
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    sha256 = targets.load(str(folder), device="cpu", dtype="fp32", attention="sdpa").weights_sha256
    module = trained("medusa", model).module
    (folder / "drafters").mkdir()
    facts = {"target_sha256": sha256, "tokens": 12345, "lr": 0.007, "options": {"heads": 4}}
    weights.save(folder / "drafters" / "medusa.safetensors", "medusa", module, module.architecture, RANK_ACCURACY, facts)
    return folder


def write_card(folder, monkeypatch, **facts):
    """Write the model card of a target that was trained with these facts, and return its text."""
    for name, value in {"WINDOW": 64, "PER_CATEGORY": 2, "ANSWER_TOKENS": 2, "SAMPLE_TOKENS": 2}.items():
        monkeypatch.setattr(card, name, value)
    monkeypatch.setattr(corpus, "HELD_OUT_SHARE", 0.1)
    made = {"preset": "micro", "steps": 3, "batch_tokens": 8192, "hardware": "a machine"}
    (folder / "training.json").write_text(json.dumps(made | facts))
    card.write_card(folder, folder / "mine.jsonl", Console(quiet=True))
    return (folder / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_card_of_a_users_corpus_claims_only_what_is_known(trained_here, monkeypatch):
    text = write_card(trained_here, monkeypatch)
    for claim in ("decontaminated", "nor tuned on", "two thirds", "core.jsonl", "Apache"):
        assert claim not in " ".join(text.split())
    assert "| medusa | heads=4 |" in text
    assert "| 12,345 | 0.007 |" in text
    assert "The corpus `mine.jsonl`" in text
    assert "training kept no record of its corpus" in text
    assert "| MIT | own |" in text


def test_card_of_the_shipped_corpus_names_its_checks(trained_here, monkeypatch):
    sha256 = corpus.sha256(trained_here / "mine.jsonl")
    monkeypatch.setattr(card, "SHIPPED_CORPUS_SHA256", sha256)
    text = write_card(trained_here, monkeypatch, corpus_sha256=sha256)
    assert "decontaminated against Spec-Bench's 480 items" in text
    assert "(the one trained on)" in text


def test_card_with_another_corpus_or_a_foreign_drafter_is_refused(trained_here, monkeypatch):
    with pytest.raises(UserError, match=r"was trained on another corpus .sha256 eeeeeeeeeeee"):
        write_card(trained_here, monkeypatch, corpus_sha256="e" * 64)
    monkeypatch.setattr(weights, "about", lambda path: {"target_sha256": "e" * 64})
    with pytest.raises(UserError, match=r"medusa\.safetensors were trained for another target"):
        write_card(trained_here, monkeypatch)
