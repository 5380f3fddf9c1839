"""Hydra: what it begins with, that it learns, and its published layout, read back by its own arithmetic."""

import json

import pytest
import torch
from rich.console import Console
from safetensors.torch import save_file
from small_models import PROMPT, Beside, Oracle, Watched, features_of, greedy_text, run, small_model, small_target
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaModel

from methods import registry
from methods.core.errors import UserError
from methods.core.published import Checkpoint
from methods.core.training import Batch
from methods.hydra import Architecture, Module, published
from methods.medusa import TEMPLATE
from specbench.train import loop
from specbench.train.drafter import rank_accuracy

HEADS = 4
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
CASES = [("mlp", 1), ("mlp", 3), ("prefix-mlp", 1), ("prefix-mlp", 4)]


def begun(model, **architecture):
    torch.manual_seed(0)
    module = Module(model.config, Architecture(**architecture)).to(model.dtype)
    module.start_from(model.lm_head, model.model.norm.weight)
    return module


def text_batch(model):
    rows = torch.tensor([greedy_text()])
    answer = torch.ones_like(rows, dtype=torch.bool)
    return Batch(rows, features_of(model, rows[0].tolist())[None], answer, model.get_input_embeddings(), model.lm_head)


@pytest.mark.parametrize("layers", [1, 4])
def test_heads_begin_as_the_targets_own(layers):
    model, flat_P = small_model(), torch.tensor([3, 20])
    batch = text_batch(model)
    levels = list(begun(model, layers=layers, prefix="none").levels(batch, flat_P, 9))
    assert len(levels) == HEADS
    for level in levels:
        torch.testing.assert_close(level.logits_PV, model.lm_head(batch.features_at(flat_P)))


def test_the_prefix_layer_begins_at_the_features_size():
    model = small_model()
    features_BTD, module = text_batch(model).features_BTD, begun(model)
    size, expected = (float(x.detach().pow(2).mean().sqrt()) for x in (module.prefix(features_BTD), features_BTD))
    assert size == pytest.approx(expected, rel=0.15)


def hopping_batch(seed, follower_V, embed):
    """Text in which any token may come, and a target that knows what should follow each: its features say so, one-hot."""
    vocab = len(follower_V)
    tokens_BT = torch.randint(vocab, (8, 40), generator=torch.Generator().manual_seed(seed))
    lm_head = nn.Linear(vocab, vocab, bias=False).requires_grad_(False)
    lm_head.weight.copy_(torch.eye(vocab))
    features_BTD = 5.0 * F.one_hot(follower_V[tokens_BT], vocab)
    return Batch(tokens_BT, features_BTD, torch.ones_like(tokens_BT, dtype=torch.bool), embed, lm_head)


@pytest.mark.parametrize("architecture", [{}, {"layers": 1, "prefix": "none"}])
def test_training_improves_held_out_acceptance(architecture, tmp_path):
    """On other text, from chance to 0.8 at every level: a head reads the token before its guess, which no earlier feature tells."""
    torch.manual_seed(0)
    vocab = 16
    shape = LlamaConfig(
        vocab_size=vocab, hidden_size=vocab, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2
    )
    follower_V, embed = torch.randperm(vocab), nn.Embedding(vocab, vocab).requires_grad_(False)
    seen, held = hopping_batch(1, follower_V, embed), [hopping_batch(2, follower_V, embed)]
    module = Module(shape, Architecture(**architecture))
    module.start_from(seen.lm_head, torch.ones(vocab))
    before = rank_accuracy(module, held)
    loop.fit(
        module,
        loop.optimizers(module, 2e-2),
        lambda step: module.loss(seen, seen.positions(256)),
        steps=60,
        tokens_per_step=256,
        state_file=tmp_path / "state.pt",
        evaluate=str,
        evaluate_every=60,
        console=Console(quiet=True),
    )
    after = rank_accuracy(module, held)
    assert max(row[0] for row in before) < 0.3
    assert min(row[0] for row in after) > 0.8


def layout(arch, layers, model):
    """Tensors of a published file, by name, in the order its modules were made; blocks after a head's first are one, repeated."""
    rng, config = torch.Generator().manual_seed(5), model.config
    width, vocab = config.hidden_size, config.vocab_size

    def drawn(*shape):
        return torch.randn(*shape, generator=rng, dtype=torch.float64) * 0.3

    def linear(name, inputs, outputs):
        return {f"{name}.weight": drawn(outputs, inputs), f"{name}.bias": drawn(outputs)}

    dropout = arch == "prefix-mlp"
    tensors = {"input_embed_fn.weight": model.get_input_embeddings().weight.clone()}
    if dropout:
        torch.manual_seed(5)
        prefix = LlamaModel(type(config)(**{**config.to_dict(), "num_hidden_layers": 1})).double()
        tensors |= {f"prefix_embeding_layer.{name}": drawn(*tensor.shape) for name, tensor in prefix.state_dict().items()}
        tensors["prefix_embeding_layer.layers.0.self_attn.rotary_emb.inv_freq"] = drawn(4)
    for head in range(HEADS):
        places = [2 * i + 1 if dropout else i for i in range(layers)]
        tensors |= linear(f"hydra_mlp.{head}.{places[0]}.linear", (head + 2) * width, width)
        tensors |= linear(f"hydra_mlp.{head}.{places[0]}.res_connection", (head + 2) * width, width)
        again = linear("", width, width)
        tensors |= {f"hydra_mlp.{head}.{i}.linear{name}": tensor.clone() for i in places[1:] for name, tensor in again.items()}
    for head in range(HEADS):
        tensors |= linear(f"hydra_lm_head.{head}{'.1' * dropout}", width, vocab)
    return tensors


def config_of(arch, layers, **changes):
    facts = {"hydra_num_heads": HEADS, "hydra_num_layers": layers, "hydra_head_arch": arch, "grounded_heads": True}
    facts |= {"hidden_state_offset": 0, "base_model_name_or_path": "lmsys/vicuna-7b-v1.3", "transformers_version": "4.37.1"}
    return facts | changes


def write(folder, tensors, config, suffix=".pt"):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save = torch.save if suffix == ".pt" else save_file
    save(tensors, folder / f"hydra_lm_head{suffix}")
    return Checkpoint.read(folder, "a/hydra")


def logits_of(tensors, arch, layers, model, tokens, features_TD, path):
    """A head of the published code, from the file's own tensors, over the text from its beginning."""
    first, step = (1, 2) if arch == "prefix-mlp" else (0, 1)

    def linear(name, x):
        return tensors[f"{name}.weight"] @ x + tensors[f"{name}.bias"]

    if arch == "prefix-mlp":
        prefix = LlamaModel(type(model.config)(**{**model.config.to_dict(), "num_hidden_layers": 1})).double().eval()
        own = {name.removeprefix("prefix_embeding_layer."): tensor for name, tensor in tensors.items() if name.startswith("prefix")}
        prefix.load_state_dict({name: tensor for name, tensor in own.items() if "inv_freq" not in name})
        with torch.no_grad():
            features_TD = prefix(inputs_embeds=features_TD[None]).last_hidden_state[0]
    read_X = torch.cat([features_TD[-1], *(model.get_input_embeddings().weight[token] for token in (tokens[-1], *path))])
    block = f"hydra_mlp.{len(path)}"
    state_D = linear(f"{block}.{first}.res_connection", read_X) + F.silu(linear(f"{block}.{first}.linear", read_X))
    for i in range(1, layers):
        state_D = state_D + F.silu(linear(f"{block}.{first + i * step}.linear", state_D))
    return linear(f"hydra_lm_head.{len(path)}{'.1' if arch == 'prefix-mlp' else ''}", state_D)


@pytest.mark.usefixtures("exact_math")
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(("arch", "layers"), CASES)
def test_a_published_layout_is_lossless_and_guesses_as_published(arch, layers, suffix, tmp_path):
    model, target, checked = small_model(), small_target(), []
    tensors = layout(arch, layers, model)
    trained = published(write(tmp_path / "hydra", tensors, config_of(arch, layers), suffix), model)
    drafter, accept = registry.build(registry.resolve("hydra", {"nodes": "12"}, "cpu"), target, trained)
    drafter.policy = watched = Watched(drafter.policy)

    def check(tokens, tree):
        features_TD = features_of(model, tokens[:-1])
        for path, logits_V in watched.logits.items():
            torch.testing.assert_close(logits_V, logits_of(tensors, arch, layers, model, tokens, features_TD, path), **CLOSE)
            checked.append(len(path))

    run(target, Beside(Oracle(greedy_text(), (2, 0, 3)), [drafter], check), PROMPT, 10)
    assert max(checked) == 2
    assert run(target, drafter, PROMPT, 30, accept).tokens == greedy_text()[len(PROMPT) :][:30]


@pytest.mark.parametrize(("heads", "deepest"), [(4, 4), (3, 3), (2, 2)])
def test_published_weights_draft_medusas_tree_as_deep_as_they_have_heads(heads, deepest, tmp_path):
    tensors = layout("mlp", 1, small_model())
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("hydra_") or int(name.split(".")[1]) < heads}
    trained = published(write(tmp_path / "hydra", kept, config_of("mlp", 1, hydra_num_heads=heads)), small_model())
    assert trained.static_tree(63).depth == deepest
    assert trained.choices(63) == tuple(choice for choice in TEMPLATE if len(choice) <= heads)


def other(tensor):
    return tensor + 1


@pytest.mark.parametrize(
    ("config", "change", "complaint"),
    [
        ({"hydra_head_arch": "eagle-attn"}, {}, "has hydra_head_arch=eagle-attn; drafters with mlp or prefix-mlp are supported"),
        ({"grounded_heads": False}, {}, "has grounded_heads=False; drafters with True are supported"),
        ({"hidden_state_offset": 1}, {}, "has hidden_state_offset=1; drafters with 0 are supported"),
        ({"hydra_num_heads": 9}, {}, "hydra_num_heads=9; it must be 1 to 5"),
        ({}, {"input_embed_fn.weight": other}, "hold a input_embed_fn.weight that is not its target's embedding"),
        ({}, {"hydra_mlp.2.7.linear.bias": other}, "hold a hydra_mlp.2.7.linear.bias that is not a repetition of the block before"),
        ({"hydra_num_layers": 3}, {}, "hydra_mlp.0.7.linear.bias (32,) is unexpected"),
        (
            {},
            {
                "hydra_lm_head.1.1.bias": lambda tensor: tensor[:9],
                "hydra_mlp.0.1.res_connection.weight": None,
                "hydra_mlp.3.3.linear.bias": None,
            },
            "do not fit the target: hydra_lm_head.1.1.bias is (9,), the target needs (64,); "
            "hydra_mlp.0.1.res_connection.weight (32, 64) is missing; hydra_mlp.3.3.linear.bias (32,) is missing; "
            "hydra_mlp.3.5.linear.bias (32,) is unexpected; hydra_mlp.3.7.linear.bias (32,) is unexpected; use",
        ),
    ],
)
def test_what_is_not_hydras_layout_is_refused_by_name(config, change, complaint, tmp_path):
    tensors = layout("prefix-mlp", 4, small_model())
    for name, made in change.items():
        tensors |= {name: made(tensors[name])} if made else {}
    kept = {name: tensor for name, tensor in tensors.items() if change.get(name, other) is not None}
    with pytest.raises(UserError) as caught:
        published(write(tmp_path / "hydra", kept, config_of("prefix-mlp", 4, **config)), small_model())
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_embedding_stored_in_less_precision_is_still_the_targets(tmp_path):
    tensors = layout("mlp", 1, small_model())
    tensors["input_embed_fn.weight"] = tensors["input_embed_fn.weight"].bfloat16()
    assert isinstance(published(write(tmp_path / "hydra", tensors, config_of("mlp", 1)), small_model()).module, nn.Module)
