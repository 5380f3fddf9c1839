"""EAGLE-3 against plain torch on its published tensors, its draft vocabulary, and its effect on other arms' steps."""

from functools import lru_cache
from typing import Any

import pytest
import torch
from helpers.eagle3_reference import reference_logits
from helpers.small_models import (
    OTHER_PROMPT,
    PROMPT,
    RANK_ACCURACY,
    SHAPE,
    Beside,
    Oracle,
    build,
    greedy_text,
    paths_of,
    run,
    small_model,
    small_target,
    spread,
    told,
    trained,
    watch_policy,
)
from transformers import LlamaConfig, LlamaForCausalLM

from methods import eagle3, registry
from methods.core.errors import UserError
from methods.core.stack import Stack
from methods.core.target import Target
from methods.core.weights import Trained
from specbench.targets.widen import ModelShape, fill, widened

CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
GROWN = {"nodes": 12, "depth": 4, "width": 4}
RIGHTS = (2, 0, 3, 1)
LAYERS, READS, EPS = 8, (2, 4, 5), 1e-3


@lru_cache
def deep_model(attention="sdpa"):
    config = LlamaConfig(**{**SHAPE, "num_hidden_layers": LAYERS, "rms_norm_eps": EPS})
    return spread(LlamaForCausalLM._from_config(config, attn_implementation=attention).double(), seed=5)


@lru_cache
def deep_text(attention="sdpa"):
    return deep_model(attention).generate(torch.tensor([PROMPT]), do_sample=False, max_new_tokens=20)[0].tolist()


@pytest.mark.usefixtures("exact_math")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("vocabulary", [0, 40])
def test_every_guess_of_a_tree_is_recomputed_from_the_published_tensors(vocabulary, attention):
    model = deep_model(attention)
    tensors = trained("eagle3", model, vocabulary=vocabulary).module.state_dict()
    target = Target(model, capacity=100)
    drafter, _ = build("eagle3", target, vocabulary=vocabulary, **GROWN)
    assert drafter.reads == READS
    watched = watch_policy(drafter)
    depths = []

    def check(tokens, tree):
        for path, logits in watched.logits.items():
            torch.testing.assert_close(logits, reference_logits(tensors, model, READS, tokens, path, eps=EPS), **CLOSE)
            depths.append(len(path))
        best = watched.logits[()].topk(GROWN["width"]).indices.tolist()
        offset = tensors["d2t"].tolist() if vocabulary else [0] * len(watched.logits[()])
        assert {path[0] for path in paths_of(tree) if path} <= {draft + offset[draft] for draft in best}

    run(target, Beside(Oracle(deep_text(attention), RIGHTS), [drafter], check), PROMPT, 10)
    assert max(depths) == 3


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_small_draft_vocabulary_changes_no_text(attention):
    model = deep_model(attention)
    target = Target(model, capacity=100)
    drafter, accept = build("eagle3", target, vocabulary=40, **GROWN)
    drafted = set()
    result = run(
        target, Beside(Oracle(deep_text(attention), RIGHTS), [drafter], lambda _, tree: drafted.update(told(tree)[0][1:])), PROMPT, 20
    )
    assert result.tokens == deep_text(attention)[len(PROMPT) :]
    assert run(target, drafter, PROMPT, 20, accept).tokens == deep_text(attention)[len(PROMPT) :]
    assert drafted <= set(trained("eagle3", model, vocabulary=40).module.tokens_U.tolist())
    assert max(drafted) > 40 > len(drafted) > 10


def test_the_draft_vocabulary_is_the_most_frequent_tokens():
    module = eagle3.Module(small_model().config, eagle3.Architecture(vocabulary=32))
    counts_V = torch.zeros(64, dtype=torch.long)
    counts_V[[63, 5, 40]] = torch.tensor([9, 7, 8])
    module.choose_vocabulary(counts_V)
    assert module.tokens_U is not None
    assert module.d2t is not None
    assert module.tokens_U.tolist() == [*range(30), 40, 63]
    assert module.d2t.tolist() == [0] * 30 + [10, 32]
    assert eagle3.Module(small_model().config, eagle3.Architecture()).tokens_U is None


@pytest.mark.parametrize(
    ("layers", "reads"), [(1, (0,)), (2, (0, 1)), (4, (1, 2, 3)), (6, (3, 4, 5)), (7, (2, 3, 4)), (32, (2, 16, 29)), (40, (2, 20, 37))]
)
def test_three_layers_are_read_where_there_are_three(layers, reads):
    assert eagle3.layers_read(layers) == reads


@pytest.mark.parametrize(
    ("architecture", "said"),
    [
        ({"vocabulary": 31}, "vocabulary is 31; choose 0 for all of the target's tokens, or at least 32"),
        ({"vocabulary": 65}, "vocabulary is 65, more than the target's 64"),
        ({"target_layers": -1}, "target_layers is -1; choose 0"),
        ({"target_layers": 3}, "it was trained for a target of 3 layers, this one has 2"),
    ],
)
def test_an_architecture_that_does_not_fit_is_refused(architecture, said):
    with pytest.raises(UserError, match=said):
        eagle3.Module(small_model().config, eagle3.Architecture(**architecture))


def test_tokens_the_target_does_not_have_are_refused():
    weights = trained("eagle3", small_model(), vocabulary=40)
    weights.module.d2t += 30
    with pytest.raises(UserError, match=r"d2t names tokens \d+ to \d\d, the target has 64; use weights"):
        registry.build(registry.resolve("eagle3", {}, "cpu"), small_target(), weights)


def test_other_arms_steps_are_as_without_it(monkeypatch):
    """Arms take turns on one target, and the layers that one drafter reads are read for that arm only."""
    asked, run_layers = [], Stack._run

    def noted(stack, vectors, positions, places, mask, layers, reads):
        asked.append((stack, reads))
        return run_layers(stack, vectors, positions, places, mask, layers, reads)

    monkeypatch.setattr(Stack, "_run", noted)
    target, text = small_target(), greedy_text(prompt=tuple(OTHER_PROMPT))
    arms = {name: build(name, target) for name in ("eagle3", "vanilla", "eagle2")}
    for _ in range(2):
        for name, (drafter, accept) in arms.items():
            asked.clear()
            assert run(target, drafter, OTHER_PROMPT, 20, accept).tokens == text[len(OTHER_PROMPT) :][:20]
            assert {reads for stack, reads in asked if stack is target.stack} == {(0, 1) if name == "eagle3" else ()}
            assert {reads for stack, reads in asked if stack is not target.stack} <= {()}


@pytest.mark.usefixtures("exact_math")
@pytest.mark.parametrize("vocabulary", [0, 40])
def test_a_widened_one_reads_the_small_targets_layers(vocabulary):
    """The large shape's extra layers add nothing, so the layers to read are the small target's, not the large one's."""
    small = deep_model()
    shape = ModelShape("", hidden=64, layers=12, query=64, key=32, intermediate=96, vocab=90)
    large = widened(small, shape, "deep", device="cpu", dtype=torch.float64)
    narrow = trained("eagle3", small, vocabulary=vocabulary)
    wide = eagle3.Module(large.config, narrow.module.architecture).double()
    fill(wide, narrow.module, large.config, small.config, seed=1)
    assert wide.reads == narrow.module.reads == READS
    assert wide.lm_head is not None
    assert wide.lm_head.out_features == (vocabulary or 90)
    trees = []
    for model, weights in ((small, narrow), (large, Trained(wide.eval().requires_grad_(False), RANK_ACCURACY, narrow.sha256))):
        target = Target(model, capacity=100)
        seen: list[tuple[list[int], list[int]]] = []
        drafter, _ = registry.build(registry.resolve("eagle3", {"nodes": "12", "depth": "4", "width": "4"}, "cpu"), target, weights)
        run(target, Beside(Oracle(deep_text(), RIGHTS), [drafter], lambda _, tree, seen=seen: seen.append(told(tree))), PROMPT, 14)
        trees.append(seen)
    assert trees[0] == trees[1]
    assert len(trees[0]) > 4
