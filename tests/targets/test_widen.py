"""A widened target or drafter gives the small one's logits, in fp64 to 1e-9."""

import copy
from typing import Any

import pytest
import torch
from helpers.small_models import (
    OTHER_PROMPT,
    PROMPT,
    RANK_ACCURACY,
    SHAPE,
    Beside,
    Oracle,
    run,
    spread,
    told,
    trained,
    watch_policy,
)
from transformers import LlamaConfig, LlamaForCausalLM

from methods import registry
from methods.core.acceptance import probabilities
from methods.core.errors import UserError
from methods.core.target import Target
from methods.core.weights import Trained
from specbench.targets.widen import AXES, SHAPES, ModelShape, fill, wide_config, widened
from specbench.train.architecture import KINDS

CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
V = SHAPE["vocab_size"]
PAD = 60
SHAPES_OF = {  # small key/value heads (of 4 query heads, 8 wide) -> large shapes
    "mha": (4, ModelShape("", hidden=80, layers=4, query=64, key=64, intermediate=100, vocab=90)),
    "mha-to-gqa": (4, ModelShape("", hidden=96, layers=3, query=96, key=48, intermediate=64, vocab=64)),
    "gqa": (2, ModelShape("", hidden=48, layers=2, query=96, key=24, intermediate=130, vocab=128)),
    "same": (2, ModelShape("", hidden=32, layers=2, query=32, key=16, intermediate=64, vocab=64)),
}
DRAFTERS = [
    ("medusa", {}),
    ("medusa", {"vocabulary": 40, "output": "target"}),
    ("eagle2", {"vocabulary": 40}),
    ("hydra", {"prefix": "layer", "layers": 3}),
    ("hydra", {"prefix": "none", "layers": 1}),
    ("eagle", {}),
    ("eagle2", {}),
    ("eagle3", {}),
    *(("s4c", {"heads": heads, "prefix": prefix}) for heads in ("recurrent", "hydra", "independent") for prefix in ("layer", "none")),
]

pytestmark = pytest.mark.usefixtures("exact_math")


def both_models(case):
    kv_heads, shape = SHAPES_OF[case]
    config = LlamaConfig(**{**SHAPE, "num_key_value_heads": kv_heads, "pad_token_id": PAD, "rms_norm_eps": 1e-2})
    small = spread(LlamaForCausalLM._from_config(config, attn_implementation="sdpa").double(), seed=3)
    return small, widened(small, shape, case, device="cpu", dtype=torch.float64)


@pytest.mark.parametrize("case", SHAPES_OF)
def test_a_widened_target_has_the_small_ones_logits(case):
    small, large = both_models(case)
    text = torch.tensor([[*PROMPT, *OTHER_PROMPT, 63, 0, 1]])
    small_logits, large_logits = (model(text).logits[0] for model in (small, large))
    torch.testing.assert_close(large_logits[:, :V], small_logits, **CLOSE)
    assert (large_logits[:, V:] < small_logits.min() - 1000).all()
    assert (probabilities(large_logits, 5.0)[:, V:] == 0).all()


@pytest.mark.parametrize("case", ["mha", "gqa"])
def test_filler_weights_are_random_and_not_zero(case):
    """Filler weights must cost as much as real ones; an all-zero matrix could be skipped or compressed."""
    _, large = both_models(case)
    shape = SHAPES_OF[case][1]
    attention, mlp = large.model.layers[-1].self_attn, large.model.layers[-1].mlp
    sizes = [attention.q_proj.weight, attention.k_proj.weight, mlp.gate_proj.weight, large.lm_head.weight]
    assert [tuple(w.shape) for w in sizes] == [(n, shape.hidden) for n in (shape.query, shape.key, shape.intermediate, shape.vocab)]
    assert all((w != 0).all() for w in (attention.q_proj.weight[-1], attention.k_proj.weight[-1], mlp.gate_proj.weight[-1]))


@pytest.mark.parametrize("case", ["mha", "gqa"])
@pytest.mark.parametrize(("name", "options"), DRAFTERS)
def test_a_widened_drafter_drafts_the_small_ones_trees(name, options, case):
    """Each drafter, on its own target, gives equal logits for every draft and equal trees on the same conversation."""
    small, large = both_models(case)
    resolved = registry.resolve(name, options if name == "s4c" else {}, "cpu")
    narrow = trained(resolved.method.weights, small, **options)
    wide_module = copy.deepcopy(type(narrow.module))(large.config, narrow.module.architecture).double()
    fill(wide_module, narrow.module, large.config, small.config, seed=1)
    wide = Trained(wide_module.eval().requires_grad_(False), RANK_ACCURACY, narrow.sha256)
    text = small.generate(torch.tensor([PROMPT]), do_sample=False, max_new_tokens=20, pad_token_id=PAD)[0].tolist()

    steps = []
    for model, weights in ((small, narrow), (large, wide)):
        target = Target(model, capacity=100)
        seen: list[tuple] = []
        drafter, _ = registry.build(resolved, target, weights)
        watched = watch_policy(drafter)

        def note(tokens, tree, watched=watched, seen=seen):
            seen.append((told(tree), watched.logits))

        assert run(target, Beside(Oracle(text, (2, 0, 1)), [drafter], note), PROMPT, 14).tokens == text[len(PROMPT) :][:14]
        steps.append(seen)

    assert len(steps[0]) == len(steps[1]) > 4
    for (small_tree, small_logits), (large_tree, large_logits) in zip(*steps, strict=True):
        assert large_tree == small_tree
        assert list(large_logits) == list(small_logits)
        for path, logits_V in small_logits.items():
            torch.testing.assert_close(large_logits[path][:V], logits_V, **CLOSE)


@pytest.mark.parametrize(
    "shape",
    [
        ModelShape("", hidden=16, layers=2, query=32, key=16, intermediate=64, vocab=64),
        ModelShape("", hidden=32, layers=2, query=32, key=32, intermediate=64, vocab=64),  # groups of one query head, too small for two
        ModelShape("", hidden=32, layers=2, query=32, key=16, intermediate=64, vocab=63),
    ],
)
def test_a_shape_smaller_than_the_model_is_refused(shape):
    with pytest.raises(UserError, match="does not fit into narrow"):
        wide_config(LlamaConfig(**SHAPE), shape, "narrow")


@pytest.mark.parametrize("name", SHAPES)
def test_the_listed_shapes_hold_the_shipped_target(name):
    """The head widths of both presets divide each shape's, and the shipped target's vocabulary and layers fit."""
    shape = SHAPES[name]
    assert all(width % 64 == 0 for width in (shape.query, shape.key))
    assert shape.query % shape.key == 0
    assert shape.layers >= 12
    assert shape.vocab >= 4096


def test_every_parameter_of_every_drafter_has_axes():
    small, _ = both_models("same")
    for kind in KINDS:
        for name, _ in trained(kind, small).module.named_parameters():
            assert any(name.endswith(suffix) for suffix in AXES), name


def test_a_shape_with_fewer_layers_takes_the_small_models():
    shape = ModelShape("", hidden=64, layers=1, query=64, key=32, intermediate=96, vocab=80)
    assert wide_config(LlamaConfig(**SHAPE), shape, "shallow").num_hidden_layers == SHAPE["num_hidden_layers"] == 2
