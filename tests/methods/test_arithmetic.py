"""Drafters' logits recomputed from the papers' formulas, path by path, without a cache: losslessness does not show a wrong drafter."""

from typing import Any

import pytest
import torch
from helpers.small_models import (
    PROMPT,
    Beside,
    Follow,
    Oracle,
    Watched,
    begun,
    build,
    features_of,
    greedy_text,
    narrow,
    run,
    small_model,
    small_target,
    told,
    trained,
    watch_policy,
)
from torch.nn import functional as F

from methods.core.training import Batch

CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}
S4C = [{"heads": heads, "prefix": prefix} for heads in ("recurrent", "hydra", "independent") for prefix in ("layer", "none")]
HYDRA = [{"prefix": "layer", "layers": 3}, {"prefix": "none", "layers": 1}]
VARIANTS = [
    *(("medusa", {}), ("eagle", {}), ("eagle2", {})),
    *(("hydra", options) for options in HYDRA),
    *(("s4c", options) for options in S4C),
    *((name, narrow(name)) for name in ("medusa", "hydra", "eagle", "eagle2", "s4c")),
    ("medusa", {"vocabulary": 40}),
    ("hydra", {"vocabulary": 40}),
]
GROWN = {"nodes": 12, "depth": 4, "width": 4}
DEEP = {"medusa": {"nodes": 12}, "hydra": {"nodes": 24}, "eagle": {"nodes": 12}, "eagle2": GROWN, "s4c": GROWN}
RIGHTS = (2, 0, 3, 1)

pytestmark = pytest.mark.usefixtures("exact_math")


def embed(model, tokens):
    return model.get_input_embeddings()(torch.tensor(tokens))


def layer_output(layer, model, tokens, features_TD):
    """Run the feature layer over all rows at once and return its last estimate; row i reads token i + 1 and feature i."""
    return layer(embed(model, tokens[1:])[None], features_TD[None])[0, -1]


def medusa_logits(module, model, tokens, features_TD, path):
    head, feature_D = module.heads[len(path)], features_TD[-1]
    return (head.out or model.lm_head).weight @ (feature_D + F.silu(head.linear.weight @ feature_D + head.linear.bias))


def hydra_logits(module, model, tokens, features_TD, path):
    def linear(layer, x):
        return layer.weight @ x + layer.bias

    seen_TD = module.prefix(features_TD[None])[0] if module.prefix else features_TD
    head, read_X = module.heads[len(path)], torch.cat([seen_TD[-1], *(embed(model, token) for token in (tokens[-1], *path))])
    state_D = linear(head.residual, read_X) + F.silu(linear(head.linear, read_X))
    for _ in range(module.architecture.layers - 1):
        state_D = state_D + F.silu(linear(head.again, state_D))
    return linear(head.out, state_D) if head.out else model.lm_head.weight @ state_D


def eagle_logits(module, model, tokens, features_TD, path):
    estimate_D = layer_output(module.layer, model, tokens, features_TD)
    for token in path:
        tokens, features_TD = [*tokens, token], torch.cat([features_TD, estimate_D[None]])
        estimate_D = layer_output(module.layer, model, tokens, features_TD)
    return model.lm_head.weight @ estimate_D


def s4c_logits(module, model, tokens, features_TD, path):
    def mixed(head, state_D, inputs):
        return state_D + head.project.weight @ F.silu(head.mix.weight @ torch.cat(inputs) + head.mix.bias)

    last_D = features_TD[-1]
    if module.architecture.prefix == "layer":
        first_D = layer_output(module.first, model, tokens, features_TD)
    else:
        first_D = mixed(module.first, last_D, [last_D, embed(model, tokens[-1])])

    def read_out(head, state_D):
        return model.lm_head.weight @ (head.norm.weight * state_D / (state_D.pow(2).mean() + head.norm.eps).sqrt())

    if not path:
        return model.lm_head.weight @ first_D if module.architecture.prefix == "layer" else read_out(module.first, first_D)
    state_D, guessed = first_D, [embed(model, token) for token in path]
    for level, head in enumerate(module.heads[: len(path)], start=1):
        state_D = {
            "recurrent": lambda level, head, before: mixed(head, before, [before, guessed[level - 1]]),
            "hydra": lambda level, head, before: mixed(head, first_D, [first_D, *guessed[:level]]),
            "independent": lambda level, head, before: mixed(head, first_D, [first_D]),
        }[module.architecture.heads](level, head, state_D)
    return read_out(module.heads[len(path) - 1], state_D)


REFERENCE = {"medusa": medusa_logits, "hydra": hydra_logits, "eagle": eagle_logits, "eagle2": eagle_logits, "s4c": s4c_logits}
KIND = {"medusa": "medusa", "hydra": "hydra", "eagle": "eagle", "eagle2": "eagle", "s4c": "s4c"}


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_every_guess_of_a_tree_is_recomputed_from_scratch(name, options, attention):
    model, target = small_model(attention=attention), small_target(attention=attention)
    module = trained(KIND[name], model, **options).module
    drafter, _ = build(name, target, **options, **DEEP.get(name, {}))
    watched = watch_policy(drafter)
    checked, guessed = [], range(64) if module.tokens_U is None else module.tokens_U.tolist()

    def check(tokens, tree):
        features_TD = features_of(model, tokens[:-1])
        assert set(told(tree)[0][1:]) <= set(guessed)
        for path, logits_U in watched.logits.items():
            expected_U = REFERENCE[name](module, model, tokens, features_TD, path)
            if len(expected_U) > len(logits_U):  # by the target's own matrix
                expected_U = expected_U[guessed]
            torch.testing.assert_close(logits_U, expected_U, **CLOSE)
            checked.append(len(path))

    run(target, Beside(Oracle(greedy_text(), RIGHTS), [drafter], check), PROMPT, 14)
    assert max(checked) == watched.depth - 1 >= 2


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_what_training_shows_a_drafter_is_what_it_sees_when_it_drafts(name, options):
    """The logits of ``levels`` on a text equal those of drafting at each of its places after right guesses.

    EAGLE's own recipe trains one level; from the second on its training-time ``levels`` are an approximation.
    """
    model, target, text = small_model(), small_target(), greedy_text()[:30]
    module = trained(KIND[name], model, **options).module
    rows = torch.tensor([text[::-1], text])
    features_BTD = torch.stack([features_of(model, row) for row in rows.tolist()])
    batch = Batch(rows, features_BTD, torch.ones_like(rows, dtype=torch.bool), model.get_input_embeddings(), model.lm_head)
    places = [3, 11, 20]
    levels = list(module.levels(batch, torch.tensor([len(text) + place for place in places]), 4))
    count = 1 if name.startswith("eagle") else len(levels)
    assert len(levels) == 4
    for i, place in enumerate(places):
        drafter, _ = build(name, target, **options, **DEEP.get(name, {}))
        committed, guesses = text[: place + 2], text[place + 2 : place + 1 + count]
        drafter.policy = watched = Watched(Follow(guesses))
        begun(drafter, target, committed).draft(committed)
        for level in range(count):
            torch.testing.assert_close(levels[level].logits_PU[i], watched.logits[tuple(guesses[:level])], **CLOSE)
