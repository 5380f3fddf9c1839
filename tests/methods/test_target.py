"""One forward over a tree says what one forward over each of its paths says; models that cannot do that are refused."""

import copy
from typing import Any

import pytest
import torch
from helpers.small_models import (
    CPU,
    FAMILIES,
    OTHER_PROMPT,
    PROMPT,
    SHAPE,
    Oracle,
    features_of,
    greedy_text,
    paths_of,
    plant,
    run,
    small_model,
    taken,
)
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPTQConfig, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen3Config

from methods.core import attention
from methods.core.errors import UserError
from methods.core.kv_cache import KVCache
from methods.core.target import Target, refuse
from methods.core.tree import DraftTree

BUSHY = plant([5, 9, 1, 9, 30, 22, 9, 63, 0], (-1, 0, 0, 1, 2, 2, 4, 4, 7))
CHAIN = DraftTree.chain([4, 4, 4, 17], CPU)
LONE = DraftTree.chain([6], CPU)

CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}


def check(model, scores, committed, tree):
    for node, path in enumerate(paths_of(tree)):
        text = [*committed, int(tree.tokens_N[0]), *path]
        feature_D = features_of(model, text)[-1]
        torch.testing.assert_close(scores.features_ND[node], feature_D, **CLOSE)
        torch.testing.assert_close(scores.logits_NV[node], model.lm_head(feature_D), **CLOSE)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.usefixtures("exact_math")
def test_tree_scores_are_those_of_each_path_alone(family, attention):
    """Each step reads the cache rows that earlier steps kept and moved, over paths that skip nodes, straight ones and lone roots."""
    model = small_model(family, attention)
    target = Target(model, capacity=100)
    for prompt in (PROMPT, OTHER_PROMPT):
        first, committed = target.prefill(prompt), list(prompt)
        torch.testing.assert_close(first.features_ND, features_of(model, prompt), **CLOSE)
        assert first.logits_NV.shape == (1, SHAPE["vocab_size"])
        for tree, path in ((BUSHY, [0, 2, 4, 7, 8]), (CHAIN, [0, 1, 2]), (BUSHY, [0, 1, 3]), (LONE, [0]), (BUSHY, [0])):
            scores = target.score(tree, len(committed))
            check(model, scores, committed, tree)
            target.commit(taken(tree, scores.logits_NV, path[-1], 0))
            committed += tree.tokens_N[path].tolist()
            assert target.cache.length == len(committed)


class Largest(TorchDispatchMode):
    """Notes the most elements that any tensor has which an operation makes."""

    elements = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        self.elements = max(self.elements, *(leaf.numel() for leaf in pytree.tree_leaves(out) if isinstance(leaf, torch.Tensor)), 0)
        return out


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.usefixtures("exact_math")
def test_a_prompt_makes_nothing_that_grows_with_its_square(family):
    """Four query heads share two key heads; a mask of 2 x 200 rows and 200 columns was made in every layer."""
    model, prompt = small_model(family), torch.arange(200).remainder(SHAPE["vocab_size"]).tolist()
    target, largest = Target(model, capacity=256), Largest()
    with torch.inference_mode(), largest:
        scores = target.prefill(prompt)
    assert largest.elements < len(prompt) ** 2
    torch.testing.assert_close(scores.features_ND, features_of(model, prompt), **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("at_hand", [True, False])
def test_prompts_of_shared_key_heads_are_causal_in_every_dtype(at_hand, dtype, monkeypatch):
    """Where the length is not at hand, as on a GPU, wide dtypes take another way to the kernel."""
    monkeypatch.setattr(attention, "length_is_at_hand", lambda device: at_hand)
    query, key, value = (torch.randn(1, heads, 50, 8, generator=torch.Generator().manual_seed(heads)) for heads in (8, 2, 2))
    rows = torch.zeros(2, 1, 2, 64, 8, dtype=dtype)
    out = attention.attend(query.to(dtype), key.to(dtype), value.to(dtype), rows[0], rows[1], torch.arange(50), None, False)
    scores = query @ key.repeat_interleave(4, dim=1).transpose(2, 3) / 8**0.5
    causal = scores.masked_fill(torch.ones(50, 50).triu(1).bool(), -torch.inf).softmax(-1) @ value.repeat_interleave(4, dim=1)
    torch.testing.assert_close(
        out.float(), causal.transpose(1, 2), rtol=1e-5 if dtype == torch.float32 else 0.1, atol=1e-5 if dtype == torch.float32 else 0.1
    )


def test_sliding_window_targets_are_refused_by_name():
    model = MistralForCausalLM._from_config(MistralConfig(**SHAPE, sliding_window=64), attn_implementation="sdpa")
    with pytest.raises(UserError, match=r"'mistral' has sliding_attention layers.*rolled back"):
        Target(model, capacity=64)


@pytest.mark.parametrize("config", [Qwen2Config, Qwen3Config])
def test_single_sliding_layers_are_refused_by_name(config):
    mixed = config(**SHAPE, layer_types=["full_attention", "sliding_attention"])
    with pytest.raises(UserError, match=f"'{mixed.model_type}' has sliding_attention layers"):
        refuse(mixed)


def test_linear_attention_layers_are_refused_by_name():
    config = LlamaConfig(**SHAPE)
    config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(UserError, match="linear_attention layers"):
        refuse(config)


def test_other_model_types_are_refused_by_name():
    with pytest.raises(UserError, match="'gpt2' is not supported; supported types: llama, mistral, qwen2, qwen3"):
        refuse(GPT2Config())


@pytest.mark.parametrize("rope", [{"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}, {"rope_type": "dynamic"}])
def test_rotary_factors_that_switch_with_the_length_are_refused_by_name(rope):
    config = LlamaConfig(**SHAPE, rope_parameters={"rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 256, **rope})
    with pytest.raises(UserError, match=f"'llama' has {rope['rope_type']} rotary factors"):
        refuse(config)


@pytest.mark.parametrize("rope", [{"rope_type": "default"}, {"rope_type": "linear", "factor": 2.0}])
def test_rotary_factors_that_do_not_are_not(rope):
    model = LlamaForCausalLM._from_config(LlamaConfig(**SHAPE, rope_parameters={"rope_theta": 1e4, **rope}), attn_implementation="sdpa")
    refuse(model.config)


@pytest.mark.parametrize(
    ("quantisation", "how"),
    [
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"bits": 4}, "an unnamed method"),
        (GPTQConfig(bits=4), "GPTQConfig"),
    ],
)
def test_quantised_checkpoints_are_refused_by_name(quantisation, how):
    config = LlamaConfig(**SHAPE)
    config.quantization_config = quantisation
    with pytest.raises(
        UserError, match=rf"'llama' is quantised with {how} \(quantization_config\).*choose its checkpoint in bf16"
    ) as caught:
        refuse(config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("theta", [0, 0.0, -1e4, float("nan")])
def test_a_rotary_base_that_is_not_above_0_is_refused(theta):
    config = LlamaConfig(**SHAPE)
    config.rope_parameters = {"rope_type": "default", "rope_theta": theta}
    with pytest.raises(UserError, match=f"'llama' has rope_theta={theta!r}; it must be above 0, correct its config.json"):
        refuse(config)


def test_attention_without_a_tree_mask_is_refused_by_name():
    config = LlamaConfig(**SHAPE)
    config._attn_implementation = "flash_attention_2"
    with pytest.raises(UserError, match=r"'flash_attention_2'.*sdpa or eager"):
        refuse(config)


def test_the_context_is_the_smaller_of_what_is_asked_for_and_what_the_model_has():
    assert Target(small_model(), capacity=100).context == 100
    assert Target(small_model(), capacity=10_000).context == SHAPE["max_position_embeddings"]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bf16_decodes(attention):
    model = copy.deepcopy(small_model(attention=attention)).to(torch.bfloat16)
    result = run(Target(model, capacity=64), Oracle(greedy_text(), (3, 1)), PROMPT, 20)
    assert len(result.tokens) == 20
    assert max(step.accepted for step in result.steps) >= 1


def test_the_cache_keeps_the_path_in_order_and_forgets_the_rest():
    cache = KVCache(LlamaConfig(**SHAPE), 10, dtype=torch.float64, device=CPU)
    rows = torch.arange(8.0, dtype=torch.float64)[:, None]
    for layer, (keys, values) in enumerate(cache.layers):
        keys[:, :, :8], values[:, :, :8] = rows + layer, -rows
    cache.truncate(3)
    cache.commit(torch.tensor([0, 2, 4, 4]), torch.tensor(3))  # the last place is filler
    assert int(cache.length) == 6
    for layer, (keys, values) in enumerate(cache.layers):
        assert keys[0, 1, :6, 0].tolist() == [row + layer for row in (0, 1, 2, 3, 5, 7)]
        assert values[0, 0, :6, 5].tolist() == [-row for row in (0, 1, 2, 3, 5, 7)]
