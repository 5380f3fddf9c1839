"""EAGLE-3 drafters as each known program writes them: configs, tensor names and layers, held against their arithmetic."""

import dataclasses
import json
import re
from typing import Any

import pytest
import torch
from helpers.eagle3_reference import reference_logits
from helpers.published_drafters import SHAPE, eagle3_tensors
from helpers.small_models import PROMPT, Beside, Oracle, run, watch_policy
from helpers.tiny_target import write_target
from safetensors.torch import save_file

from methods import registry
from methods.core.errors import UserError
from methods.core.target import Target
from specbench import targets

LAYERS, IDS = 8, "eagle_aux_hidden_state_layer_ids"
SPECFORGE = {
    "architectures": ["LlamaForCausalLMEagle3"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "head_dim": 8,
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_window_layers": 8,
    "pretraining_tp": 1,
    "rope_scaling": None,
    "rope_theta": 500.0,
    "sliding_window": 128,
    "target_model_type": "some_vl",
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.51.0",
    "use_cache": True,
    "use_sliding_window": False,
}
MODELOPT = {
    IDS: [1, 3, 4],
    "use_aux_hidden_state": True,
    "use_input_layernorm_in_first_layer": True,
    "use_last_layernorm": True,
    "use_mtp_layernorm": False,
    "next_layer_regular": True,
    "parallel_draft_step": 1,
    "parallel_draft_heads_num_layers": None,
}
DEFAULT = (2, 4, 5)
QKV, MLP = tuple(f"self_attn.{name}_proj" for name in "qkv"), tuple(f"mlp.{name}_proj" for name in ("gate", "up", "down"))


def speculators(layer=(), **own):
    """A config of the speculators library, with the layer's keys one level deeper."""
    around = {
        "architectures": ["Eagle3Speculator"],
        "speculators_model_type": "eagle3",
        "speculators_version": "0.5.0",
        "speculators_config": {"algorithm": "eagle3", "proposal_methods": [{}], "verifier": {"name_or_path": "some/target"}},
        "draft_vocab_size": 259,
        "norm_before_residual": False,
        "norm_before_fc": False,
        "embed_requires_grad": False,
        "target_hidden_size": None,
        "has_no_defaults_at_init": False,
        "transformer_layer_config": {**SHAPE, **dict(layer)},
    }
    return {"speculators": True, **around, **own}


# what config.json holds beside the shape, how the tensors are made, and the target's layers that are read
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[int, ...]]] = {
    "no layers named": ({}, {}, DEFAULT),
    "the inputs of the layers named": ({IDS: [2, 3, 6]}, {}, (2, 3, 6)),
    "the outputs of the layers named, since the first is 1": ({IDS: [1, 3, 5]}, {}, (2, 4, 6)),
    "layers named in eagle_config": ({"eagle_config": {IDS: [1, 3, 4], "use_aux_hidden_state": True}}, {}, (2, 4, 5)),
    "layers named twice": ({IDS: [3, 4, 6], "eagle_config": {IDS: [3, 4, 6]}}, {}, (3, 4, 6)),
    "five layers": ({IDS: [0, 2, 4, 6, 7], "num_aux_hidden_states": 5}, {"features": 5}, (0, 2, 4, 6, 7)),
    "one layer": ({"eagle_config": {IDS: [5]}}, {"features": 1}, (5,)),
    "the output of the last layer": ({IDS: [3, 6, 8]}, {}, (3, 6, 8)),
    "the output of the last layer, counted by outputs": ({IDS: [1, 7]}, {"features": 2}, (2, 8)),
    "an empty list": ({"eagle_config": {IDS: []}}, {}, DEFAULT),
    "no layers of the target": ({"eagle_config": {"use_aux_hidden_state": False, IDS: []}}, {"features": 0}, ()),
    "no layers of the target, at top level": ({"use_aux_hidden_state": False}, {"features": 0}, ()),
    "the residual normed": ({"norm_before_residual": True}, {}, DEFAULT),
    "attention biases": ({"attention_bias": True}, {"biases": QKV}, DEFAULT),
    "attention biases, the output's too": ({"attention_bias": True}, {"biases": (*QKV, "self_attn.o_proj")}, DEFAULT),
    "EAGLE's key for biases": ({"qkv_bias": True}, {"biases": QKV}, DEFAULT),
    "a config that is wrong about biases": ({"attention_bias": True, "mlp_bias": True, "bias": True}, {}, DEFAULT),
    "MLP and fc biases": ({"mlp_bias": True, "bias": True}, {"biases": (*MLP, "fc")}, DEFAULT),
    "normed queries and keys": ({"model_type": "qwen3"}, {"norms": "qk"}, DEFAULT),
    "normed queries and keys of a layer called llama": ({"head_dim": 8}, {"norms": "qk"}, DEFAULT),
    "layers.0": ({}, {"layer": "layers.0"}, DEFAULT),
    "layers.0 with all else": (
        {IDS: [1, 2, 3, 4], "attention_bias": True, "norm_before_residual": True, "draft_vocab_size": 40},
        {"layer": "layers.0", "features": 4, "biases": QKV, "norms": "qk", "drafted": 40},
        (2, 3, 4, 5),
    ),
    "SpecForge's keys": ({**SPECFORGE, "draft_vocab_size": 40, "eagle_config": {IDS: [1, 3, 4]}}, {"drafted": 40}, (2, 4, 5)),
    "ModelOpt's keys": ({**SPECFORGE, "eagle_config": MODELOPT, "mlp_bias": False}, {}, (2, 4, 5)),
    "AngelSlim's keys": ({**SPECFORGE, "architectures": ["Eagle3LlamaForCausalLM"], "use_mrope": False}, {"norms": "qk"}, DEFAULT),
    "speculators": (speculators(), {"layer": "layers.0"}, DEFAULT),
    "speculators, whose first layer is 1": (speculators(**{IDS: [1, 3, 5]}), {"layer": "layers.0"}, (1, 3, 5)),
    "speculators with normed queries and keys": (
        speculators({"model_type": "qwen3", "attention_bias": True, "head_dim": 8}, norm_before_residual=True, draft_vocab_size=40),
        {"layer": "layers.0", "norms": "qk", "biases": (*QKV, "self_attn.o_proj"), "drafted": 40, "embeds": True},
        DEFAULT,
    ),
    "speculators of rope parameters": (
        speculators({"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}, eagle_aux_hidden_state_layer_ids=[2, 7]),
        {"layer": "layers.0", "features": 2},
        (2, 7),
    ),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = write_target(tmp_path_factory.mktemp("target"), layers=LAYERS)
    return targets.load(str(folder), device="cpu", dtype="fp64", attention="sdpa")


@pytest.fixture(scope="module")
def text(found):
    return found.model.generate(torch.tensor([PROMPT]), do_sample=False, max_new_tokens=8, eos_token_id=None)[0].tolist()


def write(folder, tensors, config):
    folder.mkdir(exist_ok=True)
    own = dict(config)
    (folder / "config.json").write_text(json.dumps(own if own.pop("speculators", False) else {**SHAPE, **own}))
    save_file(tensors, folder / "model.safetensors")
    return folder


def with_drafter(found, drafter):
    return dataclasses.replace(found, drafter_files={"eagle3": drafter}, _drafters={})


def drafter_of(found, drafter):
    return with_drafter(found, drafter).drafter_for(registry.resolve("eagle3", {}, "cpu"))


@pytest.mark.usefixtures("exact_math")
@pytest.mark.parametrize("case", CASES)
def test_a_layout_drafts_what_its_tensors_say_and_changes_no_text(case, found, text, tmp_path):
    config, made, reads = CASES[case]
    tensors = eagle3_tensors(**{"features": 3, **made})
    found = with_drafter(found, write(tmp_path / "drafter", tensors, config))
    resolved = registry.resolve("eagle3", {"nodes": "12", "depth": "3", "width": "4"}, "cpu")
    target = Target(found.model, capacity=100)
    drafter, accept = registry.build(resolved, target, found.drafter_for(resolved))
    assert drafter.reads == reads
    assert run(target, drafter, PROMPT, 8, accept).tokens == text[len(PROMPT) :]

    watched = watch_policy(drafter)
    exact = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    layer, depths = config.get("transformer_layer_config", config), []
    theta = layer.get("rope_theta", layer.get("rope_parameters", {}).get("rope_theta", 10000.0))
    how = {"eps": 1e-3, "theta": theta, "norm_before_residual": config.get("norm_before_residual", False)}

    def check(tokens, tree):
        for path, logits in watched.logits.items():
            torch.testing.assert_close(logits, reference_logits(exact, found.model, reads, tokens, path, **how), rtol=1e-9, atol=1e-9)
            depths.append(len(path))

    run(target, Beside(Oracle(text, (2, 0, 3, 1)), [drafter], check), PROMPT, 5)
    assert max(depths) == 2


KNOWN = "a key that is not known here; remove it from config.json if it does not change what the drafter computes"


@pytest.mark.parametrize(
    ("config", "made", "said"),
    [
        ({"some_scale": 2.0}, {}, f"config.json of drafter PATH has some_scale=2.0, {KNOWN}"),
        ({"two\nlines": "x\ny"}, {}, rf"has 'two\nlines'='x\ny', {KNOWN}"),
        ({"list": list(range(99))}, {}, "has list=[0, 1, 2, 3, 4"),
        ({"eagle_config": {"some_norm": True}}, {}, f"config.json of drafter PATH, eagle_config, has some_norm=True, {KNOWN}"),
        ({"eagle_config": [1]}, {}, "has eagle_config=[1], which is no JSON object; fetch it again"),
        ({"fc_norm": True}, {}, "has fc_norm=True; drafters with False are supported"),
        ({"norm_before_fc": True}, {}, "has norm_before_fc=True; drafters with False are supported"),
        ({"eagle_config": {"norm_output": True}}, {}, "eagle_config, has norm_output=True; drafters with False are supported"),
        ({"eagle_config": {"use_last_layernorm": False}}, {}, "has use_last_layernorm=False; drafters with True are supported"),
        ({"eagle_config": {"parallel_draft_step": 4}}, {}, "has parallel_draft_step=4; drafters with 1 are supported"),
        ({"quantization_config": {"quant_method": "fp8"}}, {}, "has quantization_config={'quant_method': 'fp8'}; only drafters without it"),
        ({"use_sliding_window": True}, {}, "has use_sliding_window=True; drafters with False are supported"),
        ({"layer_types": ["sliding_attention"]}, {}, "has sliding_attention layers"),
        ({"partial_rotary_factor": 0.5}, {}, "has partial_rotary_factor=0.5; drafters with 1.0 are supported"),
        ({"rope_theta": 0}, {}, "has rope_theta=0; it must be above 0"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}, {}, "no drafter can be built as its config.json says"),
        ({"norm_before_residual": "yes"}, {}, "has norm_before_residual='yes'; it must be true or false"),
        ({"use_aux_hidden_state": 0}, {}, "has use_aux_hidden_state=0; it must be true or false"),
        ({IDS: [3, 2, 5]}, {}, f"has {IDS}=[3, 2, 5]; it must be a list of layers in ascending order"),
        ({IDS: [2, 2, 5]}, {}, "it must be a list of layers in ascending order"),
        ({IDS: [2, 4.0, 5]}, {}, "it must be a list of layers in ascending order"),
        ({IDS: "2, 4"}, {}, "it must be a list of layers in ascending order"),
        ({IDS: [2, 4, 9]}, {}, f"has {IDS}=[2, 4, 9], this target has 8 layers; use its own target"),
        ({IDS: [1, 4, 8]}, {}, f"has {IDS}=[1, 4, 8], this target has 8 layers; use its own target"),
        ({IDS: [-1, 4, 5]}, {}, f"has {IDS}=[-1, 4, 5], this target has 8 layers; use its own target"),
        (
            {IDS: [2, 3, 4], "eagle_config": {IDS: [1, 2, 3]}},
            {},
            f"has {IDS}=[2, 3, 4], and [1, 2, 3] in eagle_config; remove the wrong one",
        ),
        ({IDS: [2, 3], "num_aux_hidden_states": 3}, {}, "has num_aux_hidden_states=3 and names 2 layers; correct one of them"),
        ({"num_aux_hidden_states": 5}, {"features": 5}, "has num_aux_hidden_states=5 and names 3 layers; correct one of them"),
        ({IDS: [2, 3, 4, 5]}, {}, "fc.weight is (32, 96), the target needs (32, 128)"),
        ({"use_aux_hidden_state": False}, {}, "fc.weight (32, 96) is unexpected"),
        (
            {"use_aux_hidden_state": False, "hidden_size": 64, "head_dim": 8},
            {"width": 64},
            "has use_aux_hidden_state=False and hidden_size=64",
        ),
        ({}, {"biases": QKV}, "midlayer.self_attn.k_proj.bias (8,) is unexpected"),
        ({"attention_bias": True}, {"biases": QKV[:2]}, "midlayer.self_attn.v_proj.bias (8,) is missing"),
        ({"qkv_bias": True}, {}, "midlayer.self_attn.q_proj.bias (32,) is missing"),
        ({"qkv_bias": True}, {"biases": (*QKV, "self_attn.o_proj")}, "midlayer.self_attn.o_proj.bias (32,) is unexpected"),
        ({}, {"biases": MLP}, "midlayer.mlp.up_proj.bias (48,) is unexpected"),
        ({}, {"biases": ("fc",)}, "fc.bias (32,) is unexpected"),
        ({}, {"norms": "q"}, "midlayer.self_attn.k_norm.weight (8,) is missing"),
        (
            speculators({"model_type": "gemma3"}),
            {"layer": "layers.0"},
            "transformer_layer_config, has model_type='gemma3'; drafters with llama or",
        ),
        (speculators({"some_scale": 2}), {"layer": "layers.0"}, f"transformer_layer_config, has some_scale=2, {KNOWN}"),
        (speculators({"num_hidden_layers": 2}), {"layer": "layers.0"}, "has num_hidden_layers=2; it must be 1 to 1"),
        (speculators({"model_type": "qwen3"}), {"layer": "layers.0"}, "layers.0.self_attn.q_norm.weight (8,) is missing"),
        (speculators(hidden_act="gelu"), {"layer": "layers.0"}, f"has hidden_act='gelu', {KNOWN}"),
        (
            speculators(speculators_model_type="eagle"),
            {"layer": "layers.0"},
            "has speculators_model_type='eagle'; drafters with eagle3 are",
        ),
        (speculators(norm_before_residual=None), {"layer": "layers.0"}, "has no norm_before_residual, whose default differs"),
        (speculators(norm_before_fc=True), {"layer": "layers.0"}, "has norm_before_fc=True; drafters with False are supported"),
        ({**speculators(), "transformer_layer_config": "llama"}, {}, "has transformer_layer_config='llama', which is no JSON object"),
    ],
)
def test_what_a_layout_says_is_honoured_or_refused_by_name(config, made, said, found, tmp_path):
    write(tmp_path / "drafter", eagle3_tensors(**{"features": 3, **made}), config)
    with pytest.raises(UserError, match=re.escape(said.replace("PATH", str(tmp_path / "drafter")))) as caught:
        drafter_of(found, tmp_path / "drafter")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("config", "layer", "warned"),
    [({"base_model_name_or_path": "other/model"}, "midlayer", "'other/model'"), (speculators(), "layers.0", "'some/target'")],
)
def test_a_drafter_that_names_another_target_is_warned_of(config, layer, warned, found, tmp_path, capsys):
    drafter_of(found, write(tmp_path / "drafter", eagle3_tensors(features=3, layer=layer), config))
    assert f"says it is for {warned}, and the target is {found.name}" in capsys.readouterr().err
