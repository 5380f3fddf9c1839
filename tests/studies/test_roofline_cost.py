import pytest
import torch
from helpers.small_models import CAPACITY, CPU, FAMILIES, PROMPT, SHAPE, V, build, small_model, small_target
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from methods.core.target import Target
from specbench.engines.own import OwnEngine
from specbench.studies.roofline.cost import (
    COUNTED_TOKENS,
    KNEE,
    NOTHING,
    Cost,
    Device,
    attention_cost,
    draft_cost,
    knee,
    linear_cost,
    target_cost,
    verify_ratio,
)
from specbench.studies.roofline.measure import binary_tree

torch.set_num_threads(1)
D, MLP, HEADS, KV_HEADS, WIDTH, LAYERS = 32, 64, 4, 2, 8, 2  # of small_models.SHAPE
QUERY, KEY = HEADS * WIDTH, KV_HEADS * WIDTH
LAYER = 2 * D * QUERY + 2 * D * KEY + 3 * D * MLP  # of one decoder layer's matrices


def built(name, target, **options):
    return OwnEngine(name, target, *build(name, target, **options))


def parameters(model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_a_plain_step_by_hand():
    config = LlamaConfig(**SHAPE)
    weights = LAYERS * (LAYER + 2 * D) + D + D * V  # norms and head; the embedding table is looked up, not streamed
    cost = target_cost(config, weights + D * V, tree_size=1, past=9, dtype_bytes=4)
    assert cost.bytes == 4 * (weights + D + LAYERS * 2 * 10 * KEY)
    assert cost.flops == 2 * weights + LAYERS * 4 * 10 * QUERY


def test_a_head_that_is_the_embedding_table_is_streamed():
    tied = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True))
    apart = LlamaForCausalLM(LlamaConfig(**SHAPE))
    assert parameters(apart) - parameters(tied) == D * V
    assert target_cost(tied.config, parameters(tied), 3, 5, 2) == target_cost(apart.config, parameters(apart), 3, 5, 2)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_flops_are_those_torch_counts(family):
    model, nodes, past = small_model(family, "eager"), 7, len(PROMPT)
    target = Target(model, capacity=CAPACITY)
    target.prefill(PROMPT)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        target.score(binary_tree(nodes, CPU), past)
    vectors = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 1)  # norms, biases: no products
    predicted = target_cost(model.config, parameters(model), nodes, past, 8)
    # transformers 5.17 makes the rotary angles by a product, which the cost model leaves out: nodes by half a head, 2 FLOPs each.
    assert counter.get_total_flops() + 2 * nodes * vectors - predicted.flops in (0, nodes * WIDTH)


def test_shared_key_heads_are_read_once():
    assert attention_cost(query=64, key=16, rows=3, seen=10, dtype_bytes=2) == Cost(2 * 10 * 16 * 2, 4 * 3 * 10 * 64)


def test_the_slower_of_memory_and_arithmetic_counts():
    device = Device(bandwidth=10.0, rate=100.0)
    assert (Cost(20, 100).seconds(device), Cost(20, 100).bound(device)) == (2.0, "memory")
    assert (Cost(20, 500).seconds(device), Cost(20, 500).bound(device)) == (5.0, "arithmetic")
    assert Cost(20, 100).plus(Cost(1, 400)) == Cost(21, 500)


def test_verifying_is_free_until_arithmetic_takes_longer_than_memory():
    model = small_model()
    device = Device(bandwidth=1.0, rate=4.0)  # at 8 bytes a weight, arithmetic catches up at 16 nodes
    ratios = {n: verify_ratio(model.config, parameters(model), n, 0, 8, device) for n in (1, 8, 32, 64)}
    assert ratios[1] == 1
    assert ratios[8] < 1.2
    assert 1.5 < ratios[32] < 2.5
    assert 3 < ratios[64] < 6  # of weights alone 4; the tree's own attention grows with its square


def test_the_knee_ends_at_the_first_tree_that_costs_too_much():
    assert knee({0: 1.0, 1: 1.02, 3: KNEE, 7: KNEE + 0.01, 15: 1.0}) == 3
    assert knee({7: 1.5, 0: 1.0}) == 0


def test_medusas_step_calls_its_heads():
    target = small_target()
    engine = built("medusa", target, nodes=6)
    head = linear_cost(D * D + D + D * V, 1, 8)
    depth = engine.drafter.policy.depth
    assert depth > 1
    assert draft_cost(engine, PROMPT) == Cost(depth * head.bytes, depth * head.flops)


def test_eagle2s_step_calls_its_layer_and_the_targets_head_at_every_level():
    target, depth, width = small_target(), 3, 3
    cost = draft_cost(built("eagle2", target, nodes=8, depth=depth, width=width), PROMPT)
    layer, head = 2 * D * D + D + LAYER, D * V  # the fold of embedding and feature, and a decoder layer
    rows = [(depth + 1, 1), (width, width), (width, width)]  # of layer and head: what a step left, padded, then two levels
    calls = [linear_cost(layer, read, 8).plus(linear_cost(head, guessed, 8)) for read, guessed in rows]
    seen = (cost.bytes - sum(call.bytes for call in calls)) / (depth * 2 * KEY * 8)  # a call reads every cached row once
    assert len(PROMPT) < seen < len(PROMPT) + COUNTED_TOKENS
    assert (2 * seen).is_integer(), "the median of whole numbers"
    assert cost.flops == sum(call.flops for call in calls) + 4 * seen * QUERY * (depth + 1 + 2 * width)


def test_drafting_without_a_model_costs_nothing():
    target = small_target()
    assert draft_cost(built("pld", target), PROMPT) == NOTHING


def test_what_hides_its_calls_is_not_counted():
    target = small_target(back_end="static")
    with pytest.raises(AssertionError, match="hide their calls"):
        draft_cost(built("pld", target), PROMPT)
