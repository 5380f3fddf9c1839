"""What drafters learn from: the frozen target's features on a batch of text, and what each position should have guessed.

Shape letters: B rows, T tokens of a row, D width, V vocabulary, P chosen positions, all levels guessed at once, K places on.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MAX_DEPTH = 6  # levels a drafter may be asked for: a position needs that many tokens after it in its row


@dataclass(frozen=True)
class Batch:
    """``features_BTD[b, t]`` is the target's after reading ``tokens_BT[b, t]``; it predicts token t + 1.

    ``deep_BTD`` is what entered the layers a module ``reads``, side by side.

    ``answer_BT`` is true at tokens of the assistant, the ones a drafter will have to guess. Positions are flat indices
    into B x T.

    Where a step's text is spread over several batches, ``chosen_P`` are the positions drawn in this one and ``totals_K[k]``
    counts, over all of them, the chosen positions whose token k + 1 places on is the assistant's: a loss, asked at
    ``chosen_P + k``, is then this batch's share of the mean over the step.
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
        return positions(self.answer_BT, at_most)

    def next_embeddings(self) -> Tensor:
        """BTD: of the token one place on; the last place repeats and is never asked."""
        return self.embed(torch.cat([self.tokens_BT[:, 1:], self.tokens_BT[:, -1:]], dim=1))

    def noisy_features(self, width: float) -> Tensor:
        """The features with uniform noise of that width: a drafter will have to read estimates (EAGLE)."""
        return self.features_BTD + (torch.rand_like(self.features_BTD) - 0.5) * width

    def tokens_at(self, flat_P: Tensor) -> Tensor:
        return self.tokens_BT.flatten()[flat_P]

    def embedding_at(self, flat_P: Tensor) -> Tensor:
        return self.embed(self.tokens_at(flat_P))

    def features_at(self, flat_P: Tensor) -> Tensor:
        return self.features_BTD.flatten(0, 1)[flat_P]

    def counts_at(self, flat_P: Tensor) -> Tensor:
        """Whether the token after each position is the assistant's, hence worth guessing."""
        return self.answer_BT.flatten()[flat_P + 1]

    def total(self, flat_P: Tensor) -> Tensor:
        """How many tokens after these positions are the assistant's, in the whole step."""
        if self.chosen_P is None or self.totals_K is None:
            return self.counts_at(flat_P).sum()
        return self.totals_K[flat_P[:1] - self.chosen_P[:1]].sum()  # by tensors alone: the host is asked nothing


def positions(answer_BT: Tensor, at_most: int) -> Tensor:
    """Positions t whose token t + 2, the first a drafter guesses there, is the assistant's; drawn at random."""
    width = answer_BT.shape[1]
    rows, starts = answer_BT[:, 2 : width - MAX_DEPTH].nonzero(as_tuple=True)
    flat = rows * width + starts
    return flat[torch.randperm(len(flat), device=flat.device)[:at_most]]


def totals(answer_BT: Tensor, chosen_P: Tensor) -> Tensor:
    """``Batch.totals_K`` of one batch; those of a step's batches add up."""
    places_K = torch.arange(1, MAX_DEPTH + 1, device=chosen_P.device)
    return answer_BT.flatten()[chosen_P[:, None] + places_K].sum(dim=0)


class Level(NamedTuple):
    """A drafter's guess at one level (1, 2, …), all tokens before it given: of the token ``level + 1`` places on."""

    state_PD: Tensor | None  # its estimate of the target's feature ``level`` places on, where it makes one
    logits_PV: Tensor


class TrainedDrafter(Protocol):
    """What the shared trainer asks of a drafter's module, beside being an nn.Module."""

    reads: tuple[int, ...]  # the target's layers whose input it learns from, in ``Batch.deep_BTD``; most read none

    def start_from(self, lm_head: nn.Module, final_norm: Tensor) -> None:
        """Set the weights training begins with, given the target's head and the weight D of its final norm."""
        ...

    def levels(self, batch: Batch, flat_P: Tensor, count: int) -> Iterator[Level]:
        """The guesses at positions ``flat_P``, level by level, at most ``count``."""
        ...

    def loss(self, batch: Batch, flat_P: Tensor) -> Tensor: ...


@runtime_checkable
class ChoosesVocabulary(Protocol):
    """A module that guesses among the tokens frequent in training text (EAGLE-3); the trainer lets it choose them first."""

    def choose_vocabulary(self, counts_V: Tensor) -> None:
        """``counts_V``: how often each token is the assistant's in the training text. Called once, before ``start_from``."""
        ...


def soft_cross_entropy(logits_PV: Tensor, batch: Batch, flat_P: Tensor, tokens_V: Tensor | None = None) -> Tensor:
    """Mean cross-entropy of guesses against the target's own distribution after the tokens at ``flat_P``.

    ``tokens_V``: the tokens guessed among, if not all. The target's distribution is then that over these, and a place whose
    likeliest token is none of them adds nothing (EAGLE-3).
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
    """Mean cross-entropy of guesses against the tokens after ``flat_P``."""
    return _mean(F.cross_entropy(logits_PV.float(), batch.tokens_at(flat_P + 1), reduction="none"), batch, flat_P)


def feature_loss(state_PD: Tensor, batch: Batch, flat_P: Tensor) -> Tensor:
    """SmoothL1 between an estimated and the target's true feature at ``flat_P`` (EAGLE)."""
    apart_PD = F.smooth_l1_loss(state_PD.float(), batch.features_at(flat_P).float(), reduction="none")
    return _mean(apart_PD.mean(dim=-1), batch, flat_P)


def _mean(loss_P: Tensor, batch: Batch, flat_P: Tensor) -> Tensor:
    return (loss_P * batch.counts_at(flat_P)).sum() / batch.total(flat_P).clamp(min=1)
