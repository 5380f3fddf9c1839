"""Hydra checkpoints as they are published, plain and Hydra++'s, through the path a user takes."""

import json

import pytest
import torch
from helpers.small_models import PROMPT, Beside, Oracle, features_of, run, watch_policy
from helpers.tiny_target import write_target
from safetensors.torch import save_file
from torch.nn import functional as F
from transformers import LlamaModel

from methods import registry
from methods.core.errors import UserError
from methods.core.target import Target
from methods.medusa import TEMPLATE
from specbench import targets

HEADS = 4
EMBEDDING = "input_embed_fn.weight"
CASES = [("mlp", 1), ("mlp", 3), ("prefix-mlp", 1), ("prefix-mlp", 4)]
RESOLVED = registry.resolve("hydra", {"nodes": "12"}, "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_target(tmp_path_factory.mktemp("target"))


def loaded(folder, drafter=None):
    return targets.load(str(folder), device="cpu", dtype="fp64", attention="sdpa", drafter_files={"hydra": drafter} if drafter else {})


def one_layer(config):
    return LlamaModel(type(config)(**{**config.to_dict(), "num_hidden_layers": 1})).double().eval()


def layout(arch, layers, model, heads=HEADS):
    """Return random tensors by their published names; a head's blocks after the first are equal."""
    rng, (vocab, width) = torch.Generator().manual_seed(5), model.get_input_embeddings().weight.shape

    def drawn(*shape):
        return torch.randn(*shape, generator=rng) * 0.3

    def linear(name, inputs, outputs):
        return {f"{name}.weight": drawn(outputs, inputs), f"{name}.bias": drawn(outputs)}

    dropout = arch == "prefix-mlp"
    places = [2 * i + 1 if dropout else i for i in range(layers)]
    tensors = {EMBEDDING: model.get_input_embeddings().weight.float()}
    if dropout:
        prefix = one_layer(model.config).state_dict()
        tensors |= {f"prefix_embeding_layer.{name}": drawn(*tensor.shape) + ("norm" in name) for name, tensor in prefix.items()}
        tensors["prefix_embeding_layer.layers.0.self_attn.rotary_emb.inv_freq"] = drawn(4)
    for head in range(heads):
        tensors |= linear(f"hydra_mlp.{head}.{places[0]}.linear", (head + 2) * width, width)
        tensors |= linear(f"hydra_mlp.{head}.{places[0]}.res_connection", (head + 2) * width, width)
        again = linear("", width, width)
        tensors |= {f"hydra_mlp.{head}.{i}.linear{name}": tensor.clone() for i in places[1:] for name, tensor in again.items()}
        tensors |= linear(f"hydra_lm_head.{head}{'.1' * dropout}", width, vocab)
    return tensors


def write(folder, tensors, arch, layers, suffix=".pt", **changes):
    folder.mkdir(exist_ok=True)
    facts = {"hydra_num_heads": HEADS, "hydra_num_layers": layers, "hydra_head_arch": arch, "grounded_heads": True}
    facts |= {"hidden_state_offset": 0, "base_model_name_or_path": "lmsys/vicuna-7b-v1.3", "transformers_version": "4.37.1"}
    (folder / "config.json").write_text(json.dumps(facts | changes))
    save = torch.save if suffix == ".pt" else save_file
    save(tensors, folder / f"hydra_lm_head{suffix}")
    return folder


def logits_of(tensors, arch, layers, model, tokens, path):
    """Return the logits of a head as the published code computes them from the file's tensors, over the whole text."""
    features_TD, dropout = features_of(model, tokens[:-1]), arch == "prefix-mlp"

    def linear(name, x):
        return tensors[f"{name}.weight"] @ x + tensors[f"{name}.bias"]

    if dropout:
        prefix = one_layer(model.config)
        prefix.load_state_dict({name: tensors[f"prefix_embeding_layer.{name}"] for name in prefix.state_dict()})
        with torch.no_grad():
            features_TD = prefix(inputs_embeds=features_TD[None]).last_hidden_state[0]
    read_X = torch.cat([features_TD[-1], *(tensors[EMBEDDING][token] for token in (tokens[-1], *path))])
    first, *further = [f"hydra_mlp.{len(path)}.{2 * i + 1 if dropout else i}" for i in range(layers)]
    state_D = linear(f"{first}.res_connection", read_X) + F.silu(linear(f"{first}.linear", read_X))
    for block in further:
        state_D = state_D + F.silu(linear(f"{block}.linear", state_D))
    return linear(f"hydra_lm_head.{len(path)}{'.1' * dropout}", state_D)


@pytest.mark.usefixtures("exact_math")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(("arch", "layers"), CASES)
def test_a_published_checkpoint_drafts_by_its_own_tensors_and_changes_no_text(arch, layers, suffix, folder, tmp_path):
    tensors = layout(arch, layers, loaded(folder).model)
    found = loaded(folder, write(tmp_path / "hydra", tensors, arch, layers, suffix))
    target, model = Target(found.model, capacity=100), found.model
    drafter, accept = registry.build(RESOLVED, target, found.drafter_for(RESOLVED))
    text = model.generate(torch.tensor([PROMPT]), do_sample=False, max_new_tokens=20, eos_token_id=None)[0].tolist()
    assert run(target, drafter, PROMPT, 20, accept).tokens == text[len(PROMPT) :]

    watched = watch_policy(drafter)
    exact, depths = {name: tensor.double() for name, tensor in tensors.items()}, []

    def check(tokens, tree):
        for path, logits_V in watched.logits.items():
            torch.testing.assert_close(logits_V, logits_of(exact, arch, layers, model, tokens, path), rtol=1e-9, atol=1e-9)
            depths.append(len(path))

    run(target, Beside(Oracle(text, (2, 0, 3)), [drafter], check), PROMPT, 10)
    assert max(depths) == 2


@pytest.mark.parametrize("heads", [4, 3, 1])
def test_published_weights_draft_medusas_tree_as_deep_as_they_have_heads(heads, folder, tmp_path):
    tensors = layout("mlp", 1, loaded(folder).model, heads)
    trained = loaded(folder, write(tmp_path / "hydra", tensors, "mlp", 1, hydra_num_heads=heads)).drafter_for(RESOLVED)
    assert trained.choices(63) == tuple(choice for choice in TEMPLATE if len(choice) <= heads)
    assert trained.static_tree(63).depth == heads


def test_an_embedding_stored_in_less_precision_is_still_the_targets(folder, tmp_path):
    tensors = layout("mlp", 1, loaded(folder).model)
    tensors[EMBEDDING] = tensors[EMBEDDING].bfloat16()
    assert loaded(folder, write(tmp_path / "hydra", tensors, "mlp", 1)).drafter_for(RESOLVED).source == str(tmp_path / "hydra")


def other(tensor):
    return tensor + 1


@pytest.mark.parametrize(
    ("config", "change", "complaint"),
    [
        ({"hydra_head_arch": "eagle-attn"}, {}, "has hydra_head_arch='eagle-attn'; drafters with mlp or prefix-mlp are supported"),
        ({"grounded_heads": False}, {}, "has grounded_heads=False; drafters with True are supported"),
        ({"hidden_state_offset": 1}, {}, "has hidden_state_offset=1; drafters with 0 are supported"),
        ({"hydra_num_heads": 9}, {}, "hydra_num_heads=9; it must be 1 to 5"),
        ({}, {EMBEDDING: other}, "hold a input_embed_fn.weight that is not its target's embedding"),
        ({}, {"hydra_mlp.2.7.linear.bias": other}, "hold a hydra_mlp.2.7.linear.bias that is not a repetition of the block before"),
        ({"hydra_num_layers": 3}, {}, "hydra_mlp.0.7.linear.bias (32,) is unexpected"),
        (
            {},
            {
                EMBEDDING: lambda tensor: tensor[:8],
                "hydra_lm_head.1.1.bias": lambda tensor: tensor[:9],
                "hydra_mlp.0.1.res_connection.weight": None,
                "hydra_mlp.3.3.linear.bias": None,
            },
            "do not fit the target: hydra_lm_head.1.1.bias is (9,), the target needs (259,); "
            "hydra_mlp.0.1.res_connection.weight (32, 64) is missing; hydra_mlp.3.3.linear.bias (32,) is missing; "
            "hydra_mlp.3.5.linear.bias (32,) is unexpected; hydra_mlp.3.7.linear.bias (32,) is unexpected; "
            "input_embed_fn.weight (8, 32) is unexpected; use",
        ),
    ],
)
def test_what_is_not_hydras_layout_is_refused_by_name(config, change, complaint, folder, tmp_path):
    tensors = layout("prefix-mlp", 4, loaded(folder).model)
    changed = {name: change[name](tensor) if change.get(name) else tensor for name, tensor in tensors.items()}
    kept = {name: tensor for name, tensor in changed.items() if change.get(name, other) is not None}
    with pytest.raises(UserError) as caught:
        loaded(folder, write(tmp_path / "hydra", kept, "prefix-mlp", 4, **config)).drafter_for(RESOLVED)
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)
