"""Drafters' batches, losses, held-out accuracies, and the training loop that all kinds share."""

import copy
import dataclasses
import importlib

import pytest
import torch
from helpers.small_models import entered, features_of, greedy_text, narrow, small_model, trained
from torch import nn
from transformers import LlamaConfig

from methods.core.errors import UserError
from methods.core.training import LOOKAHEAD, Batch, DrafterModule, Level, feature_loss, hard_cross_entropy, soft_cross_entropy
from specbench.train import drafter, loop
from specbench.train.architecture import KINDS
from specbench.train.drafter import RANKS, rank_accuracy
from specbench.util.terminal import Console

QUIET = Console(quiet=True)
ARCHITECTURES = [
    ("medusa", {}),
    ("eagle", {}),
    *(("hydra", {"layers": n, "prefix": p}) for n, p in ((4, "layer"), (1, "none"))),
    ("eagle3", {}),
    *(("s4c", {"heads": h, "prefix": p}) for h, p in (("recurrent", "layer"), ("hydra", "none"))),
    *((kind, narrow(kind)) for kind in KINDS),
]


def test_every_trainable_kind_is_tried_here():
    assert {kind for kind, _ in ARCHITECTURES} == set(KINDS)


def text_batch():
    model = copy.deepcopy(small_model()).float()
    rows = [greedy_text(prompt=(seed, seed + 1, 5), new=45) for seed in (1, 20, 40)]
    features_BTD = torch.stack([features_of(model, row) for row in rows])
    deep_BTD = torch.stack([entered(model, row, (0, 1)) for row in rows])  # both of its layers: whatever a module reads
    tokens_BT = torch.tensor(rows)
    answer_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
    return Batch(tokens_BT, features_BTD, answer_BT, model.get_input_embeddings(), model.lm_head, deep_BTD)


def fresh_module(kind, architecture):
    torch.manual_seed(0)
    module = copy.deepcopy(trained(kind, small_model(), **architecture).module).float()
    for parameter in module.parameters():
        parameter.requires_grad_(True)
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.1)
    return module.train()


def fit(module, batch, steps, state_file, loss_at=None):
    def loss_of(step):
        return module.loss(batch, batch.positions(24))

    losses = []

    def evaluate(step):
        losses.append(step)
        return ""

    loop.fit(
        module,
        loop.optimizers(module, 1e-2),
        lambda step: [(loss_at or loss_of)(step)],
        steps=steps,
        tokens_per_step=24,
        state_file=state_file,
        evaluate=evaluate,
        evaluate_every=5,
        console=QUIET,
    )
    return losses


def held_loss(module, batch):
    torch.manual_seed(0)
    with torch.no_grad():
        return float(module.loss(batch, batch.positions(1000)))


@pytest.mark.parametrize(("kind", "architecture"), ARCHITECTURES)
def test_the_loss_goes_down(kind, architecture, tmp_path):
    module, batch = fresh_module(kind, architecture), text_batch()
    before = held_loss(module, batch)
    assert len(fit(module, batch, 39, tmp_path / "state.pt")) == 8  # every fifth step and the last
    assert held_loss(module, batch) < 0.9 * before


@pytest.mark.parametrize(("kind", "architecture"), ARCHITECTURES)
def test_the_loss_is_the_recipes(kind, architecture, monkeypatch):
    """The loss is recomputed position by position from the guesses of ``levels``, without feature noise."""
    code, batch = importlib.import_module(f"methods.{kind}"), text_batch()
    if hasattr(code, "FEATURE_NOISE"):
        monkeypatch.setattr(code, "FEATURE_NOISE", 0.0)
    module, width = fresh_module(kind, architecture), batch.tokens_BT.shape[1]
    tokens_U = torch.arange(64) if module.tokens_U is None else module.tokens_U
    columns = {token: column for column, token in enumerate(tokens_U.tolist())}
    places, tokens, features = [2, width + 7, 2 * width + 30], batch.tokens_BT.flatten(), batch.features_BTD.flatten(0, 1)
    count = {"medusa": 4, "eagle": 1, "eagle3": 5, "hydra": 4, "s4c": 5}[kind]
    expected = torch.zeros(())
    with torch.no_grad():
        for level, guess in enumerate(module.levels(batch, torch.tensor(places), count), start=1):
            for i, t in enumerate(places):
                logq_U = torch.log_softmax(guess.logits_PU[i], dim=-1)
                if kind == "medusa":
                    following = int(tokens[t + level + 1])
                    if following in columns:
                        expected += 0.8**level * -logq_U[columns[following]] / 3
                    continue
                wanted_V = batch.lm_head(features[t + level])
                p_U = torch.softmax(wanted_V[tokens_U], dim=-1) * (int(wanted_V.argmax()) in columns)
                if kind == "eagle3":
                    expected += 0.8 ** (level - 1) * -(p_U * logq_U).sum() / 3
                elif kind == "hydra":
                    expected -= (p_U * logq_U).sum() / 3
                else:
                    apart_D = (guess.state_PD[i] - features[t + level]).abs()
                    smooth_l1 = torch.where(apart_D < 1, 0.5 * apart_D**2, apart_D - 0.5).mean()
                    expected += 0.35 ** (level - 1) * (smooth_l1 - (p_U * logq_U).sum()) / 3
        assert float(module.loss(batch, torch.tensor(places))) == pytest.approx(float(expected), rel=1e-4)


class Deaf(nn.Linear):
    """An output layer that nothing may be multiplied with; its rows may be read."""

    def forward(self, rows):
        raise AssertionError


@pytest.mark.parametrize("kind", KINDS)
def test_the_targets_own_text_needs_no_whole_output_matrix(kind, monkeypatch):
    """In text that the target wrote greedily, its likeliest token is the next one."""
    monkeypatch.setattr(importlib.import_module(f"methods.{kind}"), "FEATURE_NOISE", 0.0, raising=False)
    module, batch = fresh_module(kind, narrow(kind)), text_batch()
    batch.answer_BT[:, :3] = False  # the prompts
    positions = batch.positions(1000)
    deaf = Deaf(32, 64, bias=False)
    deaf.weight = batch.lm_head.weight
    own = dataclasses.replace(batch, lm_head=deaf, greedy=True)
    with torch.no_grad():
        assert torch.equal(batch.likeliest_at(positions + 1), own.likeliest_at(positions + 1))
        assert float(module.loss(own, positions)) == float(module.loss(batch, positions))


@pytest.mark.parametrize(("kind", "architecture"), ARCHITECTURES)
def test_an_interrupted_training_resumes_to_the_same_weights(kind, architecture, tmp_path, monkeypatch):
    batch, undisturbed, interrupted = text_batch(), fresh_module(kind, architecture), fresh_module(kind, architecture)
    fit(undisturbed, batch, 12, tmp_path / "one.pt")
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", -1.0)
    monkeypatch.setattr(loop, "SAVE_TIME_FACTOR", 0.0)

    def cut(step):
        if step == 7:
            raise KeyboardInterrupt
        return interrupted.loss(batch, batch.positions(24))

    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, batch, 12, tmp_path / "two.pt", cut)
    resumed, steps = fresh_module(kind, architecture), []
    torch.manual_seed(99)

    def noted(step):
        steps.append(step)
        return resumed.loss(batch, batch.positions(24))

    fit(resumed, batch, 12, tmp_path / "two.pt", noted)
    assert steps == list(range(7, 12))
    for name, parameter in undisturbed.named_parameters():
        assert torch.equal(parameter, dict(resumed.named_parameters())[name]), name


def test_a_finished_training_is_not_run_again(tmp_path):
    module, batch = fresh_module("medusa", {}), text_batch()
    fit(module, batch, 3, tmp_path / "state.pt")

    def never(step):
        raise AssertionError

    fit(module, batch, 3, tmp_path / "state.pt", never)


def test_a_loss_that_is_not_finite_ends_the_training(tmp_path):
    module = fresh_module("medusa", {})
    with pytest.raises(UserError, match="nan at step 0; lower --lr"):
        fit(module, text_batch(), 3, tmp_path / "state.pt", lambda step: module.heads[0].linear.weight.sum() * float("nan"))
    assert not (tmp_path / "state.pt").exists()


def test_the_rate_warms_up_holds_and_decays():
    rates = [loop.rate_factor(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.5)
    assert rates[2:60] == [1.0] * 58
    assert rates[80] == pytest.approx(0.1 + 0.9 * 0.5)
    assert rates[60:] == sorted(rates[60:], reverse=True)
    assert 0.1 < rates[-1] < 0.13


def test_a_cosine_falls_to_nothing():
    rates = [loop.rate_factor(step, 100, "cosine") for step in range(101)]
    assert rates[0] == pytest.approx(0.5)
    assert rates[50] == pytest.approx(0.5)
    assert rates[25] == pytest.approx(0.5 + 0.5 * 2**-0.5)
    assert rates[100] == pytest.approx(0.0)


def test_matrices_between_hidden_states_go_to_muon_and_the_rest_to_adamw():
    module = fresh_module("medusa", {})
    muon, adam = (sum(p.numel() for group in o.param_groups for p in group["params"]) for o in loop.optimizers(module, 1e-3))
    assert (muon, adam) == (4 * 32 * 32, 4 * (32 + 32 * 64))


def line_batch(width=20, vocab=12, answer=None):
    """Return a batch whose token t is t; the target's feature is the one-hot vector of the next token."""
    tokens_BT = torch.arange(width)[None]
    answer_BT = torch.ones(1, width, dtype=torch.bool) if answer is None else answer
    embed, lm_head = nn.Embedding(width, vocab), nn.Linear(vocab, vocab, bias=False)
    lm_head.weight.data = torch.eye(vocab)
    features_BTD = torch.zeros(1, width, vocab)
    features_BTD[0, range(width), [(t + 1) % vocab for t in range(width)]] = 5.0
    return Batch(tokens_BT % vocab, features_BTD, answer_BT, embed, lm_head)


class Ranked(DrafterModule):
    """A module that guesses the right token, ``t + level + 1`` for position t, at the rank ``rank_of(level, t)``.

    ``tokens`` is its draft vocabulary: it has no logits for the others.
    """

    def __init__(self, levels, rank_of, tokens=range(12)):
        super().__init__(LlamaConfig(vocab_size=12), len(tokens))
        self.count, self.rank_of = levels, rank_of
        self.choose_vocabulary(torch.zeros(12).index_fill(0, torch.tensor(tokens), 1))

    def levels(self, batch, flat_P, count):
        vocab = batch.lm_head.weight.shape[0]
        for level in range(1, min(count, self.count) + 1):
            logits_PV = torch.zeros(len(flat_P), vocab)
            for i, t in enumerate(flat_P.tolist()):
                others = [v for v in range(vocab) if v != (t + level + 1) % vocab]
                others.insert(self.rank_of(level, t), (t + level + 1) % vocab)
                logits_PV[i, others] = -torch.arange(float(vocab))
            yield Level(None, logits_PV[:, self.tokens_U])


def test_rank_accuracy_counts_each_rank_of_each_level():
    """Positions 0 to 11 count; the others are too close to the end of the text for LOOKAHEAD guesses."""
    batch = line_batch()
    assert sorted(batch.positions(99).tolist()) == list(range(20 - LOOKAHEAD - 2))

    def rank_of(level, t):
        return {1: 0 if t < 9 else 2, 2: 1 if t % 2 else 0, 3: 11}[level]

    accuracy = rank_accuracy(Ranked(3, rank_of), [batch])
    none = [0.0] * RANKS
    assert accuracy == ((0.75, 0.0, 0.25, *none[3:]), (0.5, 0.5, *none[2:]), tuple(none))


def test_a_longer_lookahead_judges_more_levels_at_fewer_positions():
    """The guess of level 8 is right at positions below 6 only; of positions with 9 tokens after them there are 9."""
    batch, module = line_batch(), Ranked(99, lambda level, t: 0 if level < 8 or t < 6 else 1)
    module.lookahead = 9
    assert sorted(batch.positions(99, module.lookahead).tolist()) == list(range(20 - 9 - 2))
    assert [ranks[0] for ranks in rank_accuracy(module, [batch])] == [1.0] * 7 + [pytest.approx(6 / 9, abs=1e-5)]


def test_rank_accuracy_counts_a_token_outside_the_draft_vocabulary_as_a_miss(monkeypatch):
    """It guesses right among the even tokens; the odd ones, half of them, it cannot guess."""
    batch, module = line_batch(), Ranked(2, lambda level, t: 0, tokens=range(0, 12, 2))
    monkeypatch.setattr(drafter, "RANKS", 1)
    assert rank_accuracy(module, [batch]) == ((0.5,), (0.5,))


def test_rank_accuracy_counts_only_the_assistants_tokens():
    """The answer ends at token 10, so deeper levels are scored at fewer places, those whose guessed token is in the answer."""
    answer = torch.zeros(1, 20, dtype=torch.bool)
    answer[0, 5:11] = True
    batch = line_batch(answer=answer)
    assert sorted(batch.positions(99).tolist()) == [3, 4, 5, 6, 7, 8]

    def rank_of(level, t):
        return 0 if t < 7 else 1

    accuracy = rank_accuracy(Ranked(3, rank_of), [batch])
    assert [row[0] for row in accuracy] == pytest.approx([4 / 6, 4 / 5, 4 / 4], abs=1e-5)


def test_positions_never_leave_their_row():
    tokens_BT = torch.arange(40).view(2, 20)
    batch = Batch(tokens_BT, torch.zeros(2, 20, 4), torch.ones(2, 20, dtype=torch.bool), nn.Embedding(40, 4), nn.Linear(4, 40))
    flat_P = batch.positions(99)
    assert len(flat_P) == 2 * (20 - LOOKAHEAD - 2)
    assert torch.equal(batch.tokens_at(flat_P + LOOKAHEAD) // 20, batch.tokens_at(flat_P) // 20)
    assert len(batch.positions(5)) == 5


def test_the_losses_are_means_over_what_counts():
    answer = torch.zeros(1, 20, dtype=torch.bool)
    answer[0, 4] = True
    batch = line_batch(answer=answer)
    flat_P = torch.tensor([2, 3, 7])  # the token after position 3 alone is the assistant's
    rng = torch.Generator().manual_seed(0)
    logits_PU, state_PD = torch.randn(3, 12, generator=rng), torch.randn(3, 12, generator=rng)
    logq_V = torch.log_softmax(logits_PU[1], dim=-1)
    p_V = torch.softmax(batch.features_BTD[0, 3], dim=-1)
    assert float(hard_cross_entropy(logits_PU, batch, flat_P)) == pytest.approx(-float(logq_V[4]))
    assert float(soft_cross_entropy(logits_PU, batch, flat_P)) == pytest.approx(-float((p_V * logq_V).sum()))
    apart_D = (state_PD[1] - batch.features_BTD[0, 3]).abs()
    smooth_l1 = torch.where(apart_D < 1, 0.5 * apart_D**2, apart_D - 0.5).mean()
    assert float(feature_loss(state_PD, batch, flat_P)) == pytest.approx(float(smooth_l1))
