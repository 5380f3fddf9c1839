"""Training data and losses that all drafters share.

A drafter learns from the frozen target's features on a batch of text. Shape letters: B rows, T tokens
of a row, D width, V vocabulary, U draft vocabulary (V where it is all), P chosen positions, all levels
guessed at once, K offsets from a position.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig

from methods.core.errors import UserError
from methods.core.vocabulary import columns_of, most_frequent, rows_of

LOOKAHEAD = 6  # tokens after a training position, which its row must hold; a drafter guesses all but the first of them


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

    ``tokens_U`` is the draft vocabulary (``among``); None stands for all tokens. ``greedy`` says that the
    assistant's tokens are the target's own, chosen greedily.
    """

    tokens_BT: Tensor
    features_BTD: Tensor
    answer_BT: Tensor
    embed: nn.Module
    lm_head: nn.Module
    deep_BTD: Tensor | None = None
    chosen_P: Tensor | None = None
    totals_K: Tensor | None = None
    tokens_U: Tensor | None = None
    greedy: bool = False

    def among(self, tokens_U: Tensor | None) -> "Batch":
        """Return the batch for a drafter that guesses among these tokens, ascending; None for all."""
        return replace(self, tokens_U=tokens_U)

    @cached_property
    def head(self) -> nn.Module:
        """The target's output layer over the draft vocabulary."""
        return self.lm_head if self.tokens_U is None else rows_of(self.lm_head, self.tokens_U)

    def positions(self, at_most: int, lookahead: int = LOOKAHEAD) -> Tensor:
        """Draw at most that many training positions; see ``positions``."""
        return positions(self.answer_BT, at_most, lookahead)

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

    def likeliest_at(self, flat_P: Tensor) -> Tensor:
        """Return the target's likeliest token after each position that counts.

        In ``greedy`` text that is the next token, but for the first token after an answer. Elsewhere it
        takes the whole output matrix.
        """
        if self.greedy:
            return self.tokens_at(flat_P + 1)
        with torch.no_grad():
            return self.lm_head(self.features_at(flat_P)).argmax(dim=-1)

    def counts_at(self, flat_P: Tensor) -> Tensor:
        """Return whether the token after each position is the assistant's and counts in the loss."""
        return self.answer_BT.flatten()[flat_P + 1]

    def total(self, flat_P: Tensor) -> Tensor:
        """Return how many tokens after these positions are the assistant's, in the whole optimizer step."""
        if self.chosen_P is None or self.totals_K is None:
            return self.counts_at(flat_P).sum()
        return self.totals_K[flat_P[:1] - self.chosen_P[:1]].sum()  # tensors only, so the host does not wait


def positions(answer_BT: Tensor, at_most: int, lookahead: int) -> Tensor:
    """Draw positions t at random whose token t + 2, the first a drafter guesses, is the assistant's.

    Each has ``lookahead`` tokens after it in its row.
    """
    width = answer_BT.shape[1]
    rows, starts = answer_BT[:, 2 : width - lookahead].nonzero(as_tuple=True)
    flat = rows * width + starts
    return flat[torch.randperm(len(flat), device=flat.device)[:at_most]]


def totals(answer_BT: Tensor, chosen_P: Tensor, lookahead: int) -> Tensor:
    """Return ``Batch.totals_K`` of one batch, K the look-ahead.

    The totals of an optimizer step are the sum over its batches.
    """
    places_K = torch.arange(1, lookahead + 1, device=chosen_P.device)
    return answer_BT.flatten()[chosen_P[:, None] + places_K].sum(dim=0)


class Level(NamedTuple):
    """A drafter's guess at one level (1, 2, ...): of the token at offset ``level + 1``.

    All tokens before it are given.
    """

    state_PD: Tensor | None  # estimate of the target's feature at offset ``level``; None if it makes none
    logits_PU: Tensor


class DrafterModule(nn.Module):
    """A drafter's trained module, as the trainer and its drafter use it; the base of every method's ``Module``.

    ``vocabulary`` is the size of the draft vocabulary, 0 for all of the target's tokens. Its tokens are
    stored as in published EAGLE-3 drafters: ``d2t`` is the offset from a draft id to the target's id.
    Raises UserError for more tokens than the target has.
    """

    lookahead: int = LOOKAHEAD  # of its training positions: one more than its most levels
    reads: tuple[int, ...] = ()  # target layers whose input it learns from, in ``Batch.deep_BTD``; mostly empty
    d2t: Tensor | None

    def __init__(self, target: PreTrainedConfig, vocabulary: int):
        super().__init__()
        if vocabulary > target.vocab_size:
            raise UserError(f"vocabulary is {vocabulary}, more than the target's {target.vocab_size}; choose 0 for all of its tokens")
        self.register_buffer("d2t", torch.zeros(vocabulary, dtype=torch.long) if vocabulary else None)

    @property
    def tokens_U(self) -> Tensor | None:
        """The tokens it guesses among, ascending; None for all."""
        return None if self.d2t is None else torch.arange(len(self.d2t), device=self.d2t.device) + self.d2t

    def choose_vocabulary(self, counts_V: Tensor) -> None:
        """Choose the tokens most frequent in the assistant's part of the training text, before ``start_from``."""
        if self.d2t is not None:
            tokens_U = most_frequent(counts_V, len(self.d2t))
            self.d2t.copy_(tokens_U - torch.arange(len(tokens_U), device=tokens_U.device))

    def tokens_for(self, vocabulary: int) -> Tensor | None:
        """Return ``tokens_U`` for a target of ``vocabulary`` tokens.

        Raises UserError for tokens that it does not have, and for tokens that are not ascending.
        """
        tokens_U = self.tokens_U
        if tokens_U is None:
            return None
        first, last = int(tokens_U.min()), int(tokens_U.max())
        if first < 0 or last >= vocabulary:
            raise UserError(f"the drafter's d2t names tokens {first} to {last}, the target has {vocabulary}; use weights made for it")
        if not bool((tokens_U.diff() > 0).all()):
            raise UserError("the drafter's d2t names tokens twice or not in ascending order; fetch its weights again")
        return tokens_U

    def rows_from(self, lm_head: nn.Module) -> Tensor:
        """Return the target's output matrix over the draft vocabulary, UD, as a first value."""
        rows_VD, tokens_U = lm_head.get_parameter("weight").data, self.tokens_U
        return rows_VD if tokens_U is None else rows_VD[tokens_U]

    def start_from(self, lm_head: nn.Module, final_norm: Tensor) -> None:
        """Set the initial weights, given the target's head and the weight D of its final norm."""
        raise NotImplementedError

    def levels(self, batch: Batch, flat_P: Tensor, count: int) -> Iterator[Level]:
        """Yield the guesses at positions ``flat_P``, level by level, at most ``count`` levels."""
        raise NotImplementedError

    def loss(self, batch: Batch, flat_P: Tensor) -> Tensor:
        """Return the training loss at positions ``flat_P``, without axes."""
        raise NotImplementedError


def soft_cross_entropy(logits_PU: Tensor, batch: Batch, flat_P: Tensor) -> Tensor:
    """Return the mean cross-entropy of guesses against the target's distribution at ``flat_P``.

    With a draft vocabulary the target's distribution is taken over that, and a position whose likeliest
    token is not in it adds nothing (EAGLE-3).
    """
    with torch.no_grad():
        p_PU = batch.head(batch.features_at(flat_P)).float().softmax(dim=-1)
        if batch.tokens_U is not None:
            p_PU = p_PU * columns_of(batch.likeliest_at(flat_P), batch.tokens_U)[1][:, None]
    return _mean(-(p_PU * F.log_softmax(logits_PU.float(), dim=-1)).sum(dim=-1), batch, flat_P)


def hard_cross_entropy(logits_PU: Tensor, batch: Batch, flat_P: Tensor) -> Tensor:
    """Return the mean cross-entropy of guesses against the tokens after ``flat_P``.

    A token outside the draft vocabulary adds nothing.
    """
    next_P = batch.tokens_at(flat_P + 1)
    if batch.tokens_U is None:
        return _mean(F.cross_entropy(logits_PU.float(), next_P, reduction="none"), batch, flat_P)
    columns_P, known_P = columns_of(next_P, batch.tokens_U)
    return _mean(F.cross_entropy(logits_PU.float(), columns_P, reduction="none") * known_P, batch, flat_P)


def feature_loss(state_PD: Tensor, batch: Batch, flat_P: Tensor) -> Tensor:
    """Return SmoothL1 between the estimated and the target's true features at ``flat_P`` (EAGLE)."""
    apart_PD = F.smooth_l1_loss(state_PD.float(), batch.features_at(flat_P).float(), reduction="none")
    return _mean(apart_PD.mean(dim=-1), batch, flat_P)


def _mean(loss_P: Tensor, batch: Batch, flat_P: Tensor) -> Tensor:
    return (loss_P * batch.counts_at(flat_P)).sum() / batch.total(flat_P).clamp(min=1)
