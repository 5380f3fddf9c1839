"""Training data and losses that all drafters share.

A drafter learns from the frozen target's features on a batch of text. Shape letters: B rows, T tokens
of a row, D width, V vocabulary, P chosen positions, all levels guessed at once, K offsets from a
position.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_DEPTH = 6  # most levels of a drafter; a training position needs that many tokens after it in its row


@dataclass(frozen=True)
class Batch:
    """A batch of text with the target's features.

    ``features_BTD[b, t]`` is the target's feature after reading ``tokens_BT[b, t]``; it predicts
    token t + 1. ``deep_BTD`` holds the inputs of the target layers a module ``reads``, concatenated.
    ``answer_BT`` is true at tokens of the assistant, which are those a drafter has to guess.
    Positions are flat indices into B x T.

    If the text of an optimizer step is spread over several batches, ``chosen_P`` are the positions
    drawn in this batch, and ``totals_K[k]`` counts over all batches the chosen positions whose token
    at offset k + 1 is the assistant's. A loss at the positions ``chosen_P + k`` is then this batch's
    share of the mean over the step.
    """

    tokens_BT: Tensor
    features_BTD: Tensor
    answer_BT: Tensor
    embed: nn.Module
    lm_head: nn.Module
    deep_BTD: Tensor | None = None
    chosen_P: Tensor | None = None
    totals_K: Tensor | None = None

    def positions(self, at_most: int) -> Tensor:
        """Draw at most that many training positions; see ``positions``."""
        return positions(self.answer_BT, at_most)

    def next_embeddings(self) -> Tensor:
        """Return the embedding of each next token, BTD; the last column repeats and is never used."""
        return self.embed(torch.cat([self.tokens_BT[:, 1:], self.tokens_BT[:, -1:]], dim=1))

    def noisy_features(self, width: float) -> Tensor:
        """Return the features with uniform noise of that width, since drafters read estimates (EAGLE)."""
        return self.features_BTD + (torch.rand_like(self.features_BTD) - 0.5) * width

    def tokens_at(self, flat_P: Tensor) -> Tensor:
        """Return the tokens at these positions."""
        return self.tokens_BT.flatten()[flat_P]

    def embedding_at(self, flat_P: Tensor) -> Tensor:
        """Return the embeddings of the tokens at these positions, PD."""
        return self.embed(self.tokens_at(flat_P))

    def features_at(self, flat_P: Tensor) -> Tensor:
        """Return the target's features at these positions, PD."""
        return self.features_BTD.flatten(0, 1)[flat_P]

    def counts_at(self, flat_P: Tensor) -> Tensor:
        """Return whether the token after each position is the assistant's and counts in the loss."""
        return self.answer_BT.flatten()[flat_P + 1]

    def total(self, flat_P: Tensor) -> Tensor:
        """Return how many tokens after these positions are the assistant's, in the whole optimizer step."""
        if self.chosen_P is None or self.totals_K is None:
            return self.counts_at(flat_P).sum()
        return self.totals_K[flat_P[:1] - self.chosen_P[:1]].sum()  # tensors only, so the host does not wait


def positions(answer_BT: Tensor, at_most: int) -> Tensor:
    """Draw positions t at random whose token t + 2, the first a drafter guesses, is the assistant's."""
    width = answer_BT.shape[1]
    rows, starts = answer_BT[:, 2 : width - MAX_DEPTH].nonzero(as_tuple=True)
    flat = rows * width + starts
    return flat[torch.randperm(len(flat), device=flat.device)[:at_most]]


def totals(answer_BT: Tensor, chosen_P: Tensor) -> Tensor:
    """Return ``Batch.totals_K`` of one batch.

    The totals of an optimizer step are the sum over its batches.
    """
    places_K = torch.arange(1, MAX_DEPTH + 1, device=chosen_P.device)
    return answer_BT.flatten()[chosen_P[:, None] + places_K].sum(dim=0)


class Level(NamedTuple):
    """A drafter's guess at one level (1, 2, ...): of the token at offset ``level + 1``.

    All tokens before it are given.
    """

    state_PD: Tensor | None  # estimate of the target's feature at offset ``level``; None if it makes none
    logits_PV: Tensor


class TrainedDrafter(Protocol):
    """A drafter's nn.Module, as the trainer uses it."""

    reads: tuple[int, ...]  # target layers whose input it learns from, in ``Batch.deep_BTD``; mostly empty

    def start_from(self, lm_head: nn.Module, final_norm: Tensor) -> None:
        """Set the initial weights, given the target's head and the weight D of its final norm."""
        ...

    def levels(self, batch: Batch, flat_P: Tensor, count: int) -> Iterator[Level]:
        """Yield the guesses at positions ``flat_P``, level by level, at most ``count`` levels."""
        ...

    def loss(self, batch: Batch, flat_P: Tensor) -> Tensor:
        """Return the training loss at positions ``flat_P``, without axes."""
        ...


@runtime_checkable
class ChoosesVocabulary(Protocol):
    """A module that guesses only among tokens frequent in the training text (EAGLE-3)."""

    def choose_vocabulary(self, counts_V: Tensor) -> None:
        """Choose the draft vocabulary; called once, before ``start_from``.

        ``counts_V`` is how often each token occurs in the assistant's part of the training text.
        """
        ...


def soft_cross_entropy(logits_PV: Tensor, batch: Batch, flat_P: Tensor, tokens_V: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy of guesses against the target's distribution at ``flat_P``.

    ``tokens_V`` are the tokens guessed among, if not all. The target's distribution is then taken
    over these, and a position whose likeliest token is not among them adds nothing (EAGLE-3).
    """
    with torch.no_grad():
        wanted_PV = batch.lm_head(batch.features_at(flat_P)).float()
        if tokens_V is None:
            p_PV = wanted_PV.softmax(dim=-1)
        else:
            guessed_V = torch.zeros_like(wanted_PV[0], dtype=torch.bool).index_fill(0, tokens_V, True)
            p_PV = wanted_PV[:, tokens_V].softmax(dim=-1) * guessed_V[wanted_PV.argmax(dim=-1), None]
    return _mean(-(p_PV * F.log_softmax(logits_PV.float(), dim=-1)).sum(dim=-1), batch, flat_P)


def hard_cross_entropy(logits_PV: Tensor, batch: Batch, flat_P: Tensor) -> Tensor:
    """Return the mean cross-entropy of guesses against the tokens after ``flat_P``."""
    return _mean(F.cross_entropy(logits_PV.float(), batch.tokens_at(flat_P + 1), reduction="none"), batch, flat_P)


def feature_loss(state_PD: Tensor, batch: Batch, flat_P: Tensor) -> Tensor:
    """Return SmoothL1 between the estimated and the target's true features at ``flat_P`` (EAGLE)."""
    apart_PD = F.smooth_l1_loss(state_PD.float(), batch.features_at(flat_P).float(), reduction="none")
    return _mean(apart_PD.mean(dim=-1), batch, flat_P)


def _mean(loss_P: Tensor, batch: Batch, flat_P: Tensor) -> Tensor:
    return (loss_P * batch.counts_at(flat_P)).sum() / batch.total(flat_P).clamp(min=1)
