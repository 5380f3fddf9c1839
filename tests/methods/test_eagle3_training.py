"""EAGLE-3 learns at training time what it will see when it drafts."""

import copy
from typing import Any

import pytest
import torch
from helpers.small_models import Follow, Watched, begun, build, entered, features_of, greedy_text, small_model, small_target, trained

from methods import eagle3
from methods.core.training import Batch
from specbench.train import loop

READS = (0, 1)  # of a target of two layers
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}


def batch_of(model, rows, answer_BT=None):
    tokens_BT = torch.tensor(rows)
    features_BTD = torch.stack([features_of(model, row) for row in rows])
    deep_BTD = torch.stack([entered(model, row, READS) for row in rows])
    answer_BT = torch.ones_like(tokens_BT, dtype=torch.bool) if answer_BT is None else answer_BT
    return Batch(tokens_BT, features_BTD, answer_BT, model.get_input_embeddings(), model.lm_head, deep_BTD)


@pytest.mark.usefixtures("exact_math")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("vocabulary", [0, 40])
def test_every_level_of_training_is_what_it_sees_when_it_drafts(vocabulary, attention):
    """Training is exact, unlike EAGLE's: at each place of a text, ``levels`` equal the logits while drafting after right guesses."""
    model, target, text = small_model(attention=attention), small_target(attention=attention), greedy_text(attention=attention)[:30]
    module = trained("eagle3", model, vocabulary=vocabulary).module
    places, depth = [3, 11, 20], 5
    batch = batch_of(model, [text[::-1], text])
    levels = list(module.levels(batch, torch.tensor([len(text) + place for place in places]), depth))
    for i, place in enumerate(places):
        drafter, _ = build("eagle3", target, vocabulary=vocabulary)
        committed, guesses = text[: place + 2], text[place + 2 : place + 1 + depth]
        drafter.policy = watched = Watched(Follow(guesses))
        begun(drafter, target, committed).draft(committed)
        for level, (_, logits_PU) in enumerate(levels):
            torch.testing.assert_close(logits_PU[i], watched.logits[tuple(guesses[:level])], **CLOSE)
            assert logits_PU.shape[1] == (vocabulary or 64)


def test_the_loss_is_over_the_draft_vocabulary_and_leaves_out_what_is_not_in_it():
    """The loss is recomputed from ``levels``: p is the target's over the draft vocabulary, and places whose best token is outside add 0."""
    model = small_model()
    module, batch = trained("eagle3", model, vocabulary=40).module, batch_of(model, [greedy_text()[:30]])
    places, tokens_U = [4, 9, 15], module.tokens_U
    expected, outside = 0.0, 0
    for k, (_, logits_PU) in enumerate(module.levels(batch, torch.tensor(places), module.lookahead - 1)):
        for i, place in enumerate(places):
            wanted_V = model.lm_head(batch.features_BTD[0, place + k + 1])
            if int(wanted_V.argmax()) in tokens_U.tolist():
                p_U = wanted_V[tokens_U].softmax(-1)
                expected += 0.8**k * -(p_U * logits_PU[i].log_softmax(-1)).sum() / len(places)
            else:
                outside += 1
    assert 0 < outside < len(places) * (module.lookahead - 1)
    assert float(module.loss(batch, torch.tensor(places))) == pytest.approx(float(expected), rel=1e-5)


def fresh(model, vocabulary, rows):
    torch.manual_seed(0)
    module = eagle3.Module(model.config, eagle3.Architecture(vocabulary=vocabulary)).to(model.dtype)
    module.choose_vocabulary(torch.bincount(torch.tensor(rows).flatten(), minlength=64))
    module.start_from(model.get_output_embeddings(), model.base_model.get_parameter("norm.weight"))
    return module


def test_it_starts_from_the_targets_own_head_and_norm():
    model = copy.deepcopy(small_model())
    for vocabulary in (0, 40):
        module = fresh(model, vocabulary, [greedy_text()])
        rows = range(64) if vocabulary == 0 else module.tokens_U.tolist()
        assert torch.equal(module.lm_head.weight, model.lm_head.weight[list(rows)])
        assert torch.equal(module.norm.weight, model.model.norm.weight)
        assert torch.equal(module.fc.weight[:, -32:], torch.eye(32).double())


def habitual():
    """Return a target whose choice depends on the newest token alone and is certain, so that a drafter learns it within seconds."""
    model = copy.deepcopy(small_model()).float()
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    model.model.norm.weight.mul_(3)
    return model


def right(module, batch):
    """Return how often the first guess of each level is the target's choice."""
    places = torch.cat([torch.arange(8, 40) + row * batch.tokens_BT.shape[1] for row in range(len(batch.tokens_BT))])
    with torch.no_grad():
        wanted = batch.lm_head(batch.features_BTD).argmax(-1).flatten()
        levels = enumerate(module.levels(batch, places, module.lookahead - 1), start=1)
        tokens_U = torch.arange(64) if module.tokens_U is None else module.tokens_U
        return [float((tokens_U[guess.logits_PU.argmax(-1)] == wanted[places + level]).float().mean()) for level, guess in levels]


@pytest.mark.parametrize("vocabulary", [0, 48])
def test_training_raises_held_out_acceptance(vocabulary):
    """Acceptance on texts that were not trained on rises by at least 0.3 at the first level and 0.1 at the third."""
    model, rng = habitual(), torch.Generator().manual_seed(1)
    texts = [torch.randint(0, 64, (12, 48), generator=rng).tolist() for _ in range(6)]
    module, (held_out, *batches) = fresh(model, vocabulary, texts), [batch_of(model, rows) for rows in texts]
    before, optimizers = right(module, held_out), loop.optimizers(module, 2e-2)
    for step in range(40):
        batch = batches[step % len(batches)]
        module.loss(batch, batch.positions(128)).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    after = right(module, held_out)
    assert len(before) == len(after) == module.lookahead - 1
    assert after[0] > before[0] + 0.3
    assert after[2] > before[2] + 0.1


def test_it_trains_in_bf16():
    model = copy.deepcopy(small_model()).float()
    module, batch = fresh(model, 40, [greedy_text()]), batch_of(model, [greedy_text()[:40], greedy_text()[20:60]])
    places = torch.arange(6, 30)
    with torch.autocast("cpu", torch.bfloat16):
        rough = module.loss(batch, places)
    rough.backward()
    assert rough.item() == pytest.approx(module.loss(batch, places).item(), rel=0.02)
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in module.parameters())
