"""Targets and their drafters: the shipped ones, and checkpoints and drafters that are refused."""

import json
import shutil

import pytest
import torch
from helpers.small_models import RANK_ACCURACY, plant, trained
from helpers.tiny_target import write_suite, write_target
from safetensors.torch import load_file, save_file

from methods.core import weights
from methods.core.acceptance import Sampling, match, noise_for, speculative_sampling
from methods.core.errors import UserError
from methods.core.policies import GrownTree
from methods.registry import METHODS, SHIPPED_WEIGHTS, resolve
from specbench import targets
from specbench.cli.app import main
from specbench.targets import checkpoint, drafters
from specbench.train import card, drafter
from specbench.train.recipe import Job, Recipe
from specbench.util.terminal import Console


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_target(tmp_path_factory.mktemp("target"))


def loaded(folder, **files):
    return targets.load(str(folder), device="cpu", dtype="fp32", attention="sdpa", drafter_files=files)


def save(path, kind, model, target_sha256):
    module = trained(kind, model).module
    path.parent.mkdir(exist_ok=True)
    weights.save(path, kind, module, module.architecture, RANK_ACCURACY, {"target_sha256": target_sha256})


def test_the_shipped_target_has_its_drafters_and_a_model_card():
    shipped = targets.load("tiny", device="cpu", dtype="bf16", attention="sdpa")
    for name, row in METHODS.items():
        assert (shipped.drafter_for(resolve(name, {}, "cpu")) is not None) == (row.weights in SHIPPED_WEIGHTS)
    text = (shipped.folder / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert shipped.weights_sha256 in text
    sizes = [path.stat().st_size for path in shipped.folder.rglob("*.safetensors")]
    assert max(sizes) <= 15 * 2**20
    assert sum(sizes) <= 40 * 2**20


def test_methods_with_the_same_weights_share_them_in_memory():
    shipped = targets.load("tiny", device="cpu", dtype="bf16", attention="sdpa")
    assert shipped.drafter_for(resolve("eagle", {}, "cpu")) is shipped.drafter_for(resolve("eagle2", {}, "cpu"))


def test_a_drafter_trained_for_another_target_is_refused(folder, tmp_path):
    target = loaded(folder)
    save(tmp_path / "s4c.safetensors", "s4c", target.model, "e" * 64)
    with pytest.raises(UserError, match=r"trained for another target .sha256 eeeeeeeeeeee, this one is"):
        loaded(folder, s4c=tmp_path / "s4c.safetensors").drafter_for(resolve("s4c", {}, "cpu"))


def test_a_drafter_given_for_an_arm_precedes_one_for_its_kind(folder, tmp_path):
    sha256 = loaded(folder).weights_sha256
    for name in ("kind", "arm"):
        save(tmp_path / f"{name}.safetensors", "eagle", loaded(folder).model, sha256 if name == "kind" else "e" * 64)
    files = {"eagle": tmp_path / "kind.safetensors", "eagle2": tmp_path / "arm.safetensors"}
    target = loaded(folder, **files)
    assert target.drafter_for(resolve("eagle", {}, "cpu")) is not None
    with pytest.raises(UserError, match=r"arm.safetensors were trained for another target"):
        target.drafter_for(resolve("eagle2", {}, "cpu"))


def test_a_drafter_given_for_an_unknown_kind_is_refused(folder, tmp_path, capsys):
    suite = write_suite(tmp_path / "suite.jsonl")
    arguments = ["run", "--target", str(folder), "--method", "pld", "--suite-file", str(suite), "--out", str(tmp_path / "run")]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--drafter", "medsua=weights.safetensors"])
    assert stop.value.code == 2
    assert "unknown kind or arm in --drafter 'medsua'" in capsys.readouterr().err


@pytest.mark.parametrize("device", ["gpu", "cudax", "cuda:x"])
def test_an_unknown_device_is_refused(device):
    with pytest.raises(UserError, match=f"unknown device '{device}'"):
        targets.use_device(device)


@pytest.mark.parametrize("lost", ["model.safetensors", "tokenizer.json"])
def test_an_incomplete_checkpoint_is_refused(folder, tmp_path, lost):
    incomplete = shutil.copytree(folder, tmp_path / "incomplete")
    (incomplete / lost).unlink()
    with pytest.raises(UserError, match=r"cannot be loaded .* it must be a whole transformers checkpoint"):
        loaded(incomplete)


def test_an_unsupported_model_type_is_refused(folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(UserError, match="'gpt2' is not supported"):
        loaded(other)


@pytest.mark.parametrize("what", ["target", "draft model"])
def test_quantised_weights_are_refused_in_one_line(folder, tmp_path, what):
    other = altered(folder, tmp_path, quantization_config={"quant_method": "fp8", "weight_block_size": [128, 128]})
    with pytest.raises(UserError, match=rf"the weights of {what} .* are quantised .*method fp8.*; use the checkpoint") as refused:
        loaded(other) if what == "target" else drafters.load_draft_model(loaded(folder), str(other))
    assert "\n" not in str(refused.value)


def altered(folder, tmp_path, tensors=lambda kept: kept, **config):
    other = shutil.copytree(folder, tmp_path / "altered")
    save_file(tensors(load_file(other / "model.safetensors")), other / "model.safetensors", metadata={"format": "pt"})
    facts = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(facts | config))
    return other


def without(*parts):
    return lambda tensors: {name: tensor for name, tensor in tensors.items() if not any(part in name for part in parts)}


@pytest.mark.parametrize(
    ("tensors", "config", "named"),
    [
        (without("lm_head", "layers.1."), {}, r"lm_head\.weight is missing; 10 of its tensors"),
        (without("norm.weight"), {}, r"layers\.0\.input_layernorm\.weight is missing"),
        (lambda tensors: tensors | {"model.layers.0.more": torch.ones(2)}, {}, r"model\.layers\.0\.more is unexpected"),
        (without(), {"intermediate_size": 99}, r"down_proj\.weight is \(32, 64\), the config needs \(32, 99\)"),
        (without(), {"hidden_size": "abc"}, r"hidden_size.* expected int, got str"),
        (without(), {"intermediate_size": -4}, "negative dimension"),
        (without(), {"num_attention_heads": 0}, "zero"),
    ],
)
def test_weights_that_do_not_match_the_config_are_refused_in_one_line(folder, tmp_path, tensors, config, named):
    with pytest.raises(UserError, match=f"cannot be loaded .*{named}"):
        loaded(altered(folder, tmp_path, tensors, **config))


def test_tied_embeddings_are_not_reported_as_missing(folder, tmp_path):
    model = loaded(altered(folder, tmp_path, without("lm_head"), tie_word_embeddings=True)).model
    assert torch.equal(model.get_output_embeddings().weight, load_file(folder / "model.safetensors")["model.embed_tokens.weight"])


@pytest.mark.parametrize("template", ["{% for m in %}", "{{ raise_exception('only with tools') }}", "{{ messages + 1 }}"])
def test_a_chat_template_that_does_not_render_is_refused_at_load(folder, tmp_path, template):
    other = altered(folder, tmp_path)
    (other / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match=r"the chat template of .* cannot be rendered"):
        loaded(other)


def test_added_tokens_beyond_the_models_rows_are_refused_only_in_a_prompt(folder, tmp_path):
    other = altered(folder, tmp_path)
    padded = loaded(folder).tokenizer
    padded.add_special_tokens({"pad_token": "[PAD]"})
    padded.save_pretrained(other)
    chat = loaded(other).chat
    assert chat.encode(["a"], []) == loaded(folder).chat.encode(["a"], [])
    with pytest.raises(UserError, match=r"token '\[PAD\]' has the id 259"):
        chat.encode(["a [PAD]"], [])


def test_a_draft_model_with_a_renamed_token_is_taken_with_a_warning(folder, tmp_path, capsys):
    other = altered(folder, tmp_path)
    file = other / "tokenizer.json"
    file.write_text(file.read_text().replace("<|user|>", "<|human|>"))
    assert drafters.load_draft_model(loaded(folder), str(other)).module.config.vocab_size == 259
    warning = capsys.readouterr().err
    assert "of 259 ids 1 differ, the first is 257, '<|human|>' there and '<|user|>' here" in warning
    assert warning.count("\n") == 1


def test_a_prompt_that_ends_in_a_stop_token_is_refused(folder, tmp_path):
    other = altered(folder, tmp_path)
    (other / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}<|end|>{% endfor %}")
    with pytest.raises(UserError, match=r"a prompt of .* ends in '<\|end\|>', which ends an answer"):
        loaded(other)


def test_the_end_of_a_turn_that_is_no_stop_is_told_and_stops_are_added(folder, tmp_path):
    other = altered(folder, tmp_path)
    template = (other / "chat_template.jinja").read_text()
    (other / "chat_template.jinja").write_text(template.replace("<|end|>", "<|user|>"))
    told = loaded(other)
    assert told.prompt_note.endswith("answers may run on after it (add it with --stop '<|user|>').")
    assert "\n" not in told.prompt_note
    mended = targets.load(str(other), device="cpu", dtype="fp32", attention="sdpa", stops=["<|user|>", "\n"])
    assert mended.stop_ids == told.stop_ids | {257, mended.tokenizer.convert_tokens_to_ids("Ċ")}
    assert mended.prompt_note == loaded(folder).prompt_note == ""


@pytest.mark.parametrize(
    "error", [RuntimeError("DefaultCPUAllocator: can't allocate memory"), torch.OutOfMemoryError("CUDA"), MemoryError()]
)
def test_a_target_larger_than_memory_is_refused(folder, monkeypatch, error):
    def full(*_, **__):
        raise error

    monkeypatch.setattr(checkpoint.AutoModelForCausalLM, "from_pretrained", full)
    with pytest.raises(UserError, match=r"in fp32 with its drafters does not fit the memory of cpu; choose a smaller --target"):
        loaded(folder)


def train(folder, tmp_path, kind="s4c", target=None, **options):
    (tmp_path / "corpus.jsonl").write_text("")
    job = Job(kind, target or str(folder), tmp_path / "corpus.jsonl", tmp_path / "out.safetensors", tmp_path, options, Recipe(seq=64))
    drafter.train(job, Console(quiet=True))


def test_a_training_with_bad_options_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="unknown trainable method 's4'; did you mean 's4c'"):
        train(folder, tmp_path, "s4")
    with pytest.raises(UserError, match="tiny-7b is a cost-matched target"):
        train(folder, tmp_path, target="tiny-7b")
    with pytest.raises(UserError, match=r"corpus\.jsonl has no held-out prompts"):
        train(folder, tmp_path)
    with pytest.raises(UserError, match="s4c's depth is 'deep'; it must be a whole number"):
        train(folder, tmp_path, depth="deep")
    with pytest.raises(UserError, match="unknown value of s4c's heads 'hydro'; did you mean 'hydra'"):
        train(folder, tmp_path, heads="hydro")
    with pytest.raises(UserError, match="depth is 9; choose 2 to 5"):
        train(folder, tmp_path, depth="9")


def test_a_model_card_needs_a_target_trained_by_specbench(folder, tmp_path):
    with pytest.raises(UserError, match=r"holds no training.json: a card is written for a target trained by"):
        card.write_card(folder, tmp_path / "corpus.jsonl", Console(quiet=True))


def test_nan_logits_deep_in_the_tree_fail_the_turn():
    logits_NV = torch.zeros(2, 5)
    logits_NV[1, 2] = torch.nan
    tree = plant([1, 2], (-1, 0), torch.full((2, 5), 0.2))
    accepted = speculative_sampling(tree, logits_NV, 1.0, noise_for(tree, 5, Sampling(4, temperature=1.0), torch.Generator()))
    with pytest.raises(FloatingPointError, match="the target's logits are NaN"):
        accepted.read()


def test_nan_logits_of_a_drafter_fail_the_turn():
    rows = torch.full((1, 9), torch.nan)
    tree = GrownTree(4, 2, 2).grow(torch.tensor(1), rows, None, lambda tokens, rows, level, _: (torch.full((2, 9), torch.nan), None))
    accepted = match(tree, torch.zeros(5, 9), 0.0, None)
    with pytest.raises(FloatingPointError, match="the drafter's logits are NaN"):
        accepted.read()
