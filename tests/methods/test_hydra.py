"""Hydra: the first values of its heads, and that they learn."""

import pytest
import torch
from helpers.small_models import features_of, greedy_text, small_model
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig

from methods.core.training import Batch
from methods.hydra import Architecture, Module
from specbench.train import loop
from specbench.train.drafter import rank_accuracy
from specbench.util.terminal import Console

HEADS = 4


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
        torch.testing.assert_close(level.logits_PU, model.lm_head(batch.features_at(flat_P)))


def test_the_prefix_layer_begins_at_the_features_size():
    model = small_model()
    features_BTD, module = text_batch(model).features_BTD, begun(model)
    size, expected = (float(x.detach().pow(2).mean().sqrt()) for x in (module.prefix(features_BTD), features_BTD))
    assert size == pytest.approx(expected, rel=0.15)


def hopping_batch(seed, follower_V, embed):
    """Return a batch of random text whose features are the one-hot vector of the token that should follow."""
    vocab = len(follower_V)
    tokens_BT = torch.randint(vocab, (8, 40), generator=torch.Generator().manual_seed(seed))
    lm_head = nn.Linear(vocab, vocab, bias=False).requires_grad_(False)
    lm_head.weight.copy_(torch.eye(vocab))
    features_BTD = 5.0 * F.one_hot(follower_V[tokens_BT], vocab)
    return Batch(tokens_BT, features_BTD, torch.ones_like(tokens_BT, dtype=torch.bool), embed, lm_head)


@pytest.mark.parametrize("architecture", [{}, {"layers": 1, "prefix": "none"}])
def test_training_improves_held_out_acceptance(architecture, tmp_path):
    """Accuracy on other text rises from chance to 0.8 at every level, because a head reads the token before its guess."""
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
        lambda step: [module.loss(seen, seen.positions(256))],
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
