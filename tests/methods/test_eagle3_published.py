"""EAGLE-3 checkpoints as they are published, through the path a user takes."""

import json
from typing import Any

import pytest
import torch
from helpers.eagle3_reference import reference_logits
from helpers.published_drafters import SHAPE
from helpers.published_drafters import eagle3_tensors as tensors_of
from helpers.small_models import PROMPT, Beside, Oracle, run, trained, watch_policy
from helpers.tiny_target import write_target
from safetensors.torch import save_file

from methods import registry
from methods.core.errors import UserError
from methods.core.target import Target
from specbench import targets

V, READS = 259, (0, 1)  # of the tiny target: two layers
CONFIG = {"architectures": ["LlamaForCausalLM"], **SHAPE}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_target(tmp_path_factory.mktemp("target"))


def write(folder, tensors, file="model.safetensors", **config):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **config}))
    if file.endswith(".safetensors"):
        save_file(tensors, folder / file, metadata={"format": "pt"})
    else:
        torch.save(tensors, folder / file)
    return folder


def loaded(folder, drafter):
    return targets.load(str(folder), device="cpu", dtype="fp64", attention="sdpa", drafter_files={"eagle3": drafter} if drafter else {})


CASES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "all tokens, safetensors": ({}, {}, "model.safetensors"),
    "all tokens, named": ({}, {"draft_vocab_size": V}, "model.safetensors"),
    "a pickle of a draft vocabulary": ({"drafted": 40}, {"draft_vocab_size": 40}, "pytorch_model.bin"),
    "a rope of its own": ({"drafted": 40}, {"draft_vocab_size": 40, "rope_theta": 500.0}, "model.safetensors"),
    "a width and an embedding of its own": (
        {"width": 64, "embeds": True},
        {"hidden_size": 64, "head_dim": 8, "target_hidden_size": 32},
        "pytorch_model.bin",
    ),
}


@pytest.mark.usefixtures("exact_math")
@pytest.mark.parametrize("case", CASES)
def test_a_published_checkpoint_drafts_by_its_own_tensors_and_changes_no_text(case, folder, tmp_path):
    made, config, file = CASES[case]
    tensors = tensors_of(**made)
    found = loaded(folder, write(tmp_path / "drafter", tensors, file, **config))
    resolved = registry.resolve("eagle3", {"nodes": "12", "depth": "3", "width": "4"}, "cpu")
    target = Target(found.model, capacity=100)
    drafter, accept = registry.build(resolved, target, found.drafter_for(resolved))
    text = found.model.generate(torch.tensor([PROMPT]), do_sample=False, max_new_tokens=12, eos_token_id=None)[0].tolist()
    assert run(target, drafter, PROMPT, 12, accept).tokens == text[len(PROMPT) :]

    watched = watch_policy(drafter)
    exact = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    theta, depths = config.get("rope_theta", 10000.0), []

    def check(tokens, tree):
        for path, logits in watched.logits.items():
            expected = reference_logits(exact, found.model, READS, tokens, path, eps=1e-3, theta=theta)
            torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
            depths.append(len(path))

    run(target, Beside(Oracle(text, (2, 0, 3, 1)), [drafter], check), PROMPT, 8)
    assert max(depths) == 2


def altered(**changes):
    tensors = {**tensors_of(drafted=40), **changes}
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


@pytest.mark.parametrize(
    ("tensors", "config", "said"),
    [
        (altered(d2t=None), {"draft_vocab_size": 40}, r"d2t \(40,\) is missing"),
        (
            altered(**{"norm.weight": None, "extra": torch.ones(2)}),
            {"draft_vocab_size": 40},
            r"extra \(2,\) is unexpected; norm.weight \(32,\) is missing",
        ),
        (
            altered(),
            {"draft_vocab_size": 41},
            r"d2t is \(40,\), the target needs \(41,\); lm_head.weight is \(40, 32\), the target needs \(41, 32\)",
        ),
        (altered(t2d=torch.ones(V, dtype=torch.bool)), {"draft_vocab_size": 40}, "name other tokens in t2d than in d2t; fetch"),
        (altered(d2t=torch.full((40,), 400), t2d=None), {"draft_vocab_size": 40}, "d2t names tokens 400 to 439, the target has 259"),
        (altered(), {"target_hidden_size": 48}, "has target_hidden_size=48, this target is 32 wide; use its own target"),
        (altered(), {"draft_vocab_size": 300}, "has draft_vocab_size=300; it must be 1 to 259"),
        (altered(), {"hidden_size": 64, "draft_vocab_size": 40}, r"embed_tokens.weight \(259, 64\) is missing"),
    ],
)
def test_every_tensor_is_accounted_for(tensors, config, said, folder, tmp_path):
    found = loaded(folder, write(tmp_path / "drafter", tensors, **config))
    resolved = registry.resolve("eagle3", {}, "cpu")
    with pytest.raises(UserError, match=said) as caught:
        registry.build(resolved, Target(found.model, capacity=64), found.drafter_for(resolved))
    assert "\n" not in str(caught.value)


def test_our_own_tensors_have_the_published_names():
    names = trained("eagle3", targets.load("tiny", device="cpu", dtype="fp32", attention="sdpa").model, vocabulary=40).module.state_dict()
    assert set(names) == set(tensors_of(drafted=40)) - {"t2d"}


def test_without_weights_a_line_says_how_to_get_them(folder):
    found = loaded(folder, None)
    resolved = registry.resolve("eagle3", {}, "cpu")
    with pytest.raises(UserError, match="train them with: specbench train eagle3, or give published ones: --drafter eagle3="):
        found.build(resolved, Target(found.model, capacity=64))
