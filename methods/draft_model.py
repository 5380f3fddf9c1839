"""Speculative sampling with a small draft model (Leviathan et al., 2023; Chen et al., 2023).

The draft is a chain of the model's own next tokens (``SampledChain``). At temperature 0 it is the
model's greedy continuation. Above, each token is drawn from the model's q, which is returned with the
tree, so that ``speculative_sampling`` accepts as in the papers.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from methods.core.acceptance import Accepted, Sampling
from methods.core.decode import Drafter
from methods.core.policies import check_tree
from methods.core.sampled_chain import Draws, SampledChain
from methods.core.stack import Stack
from methods.core.target import Scores, Target
from methods.core.tree import MAX_TREE_SIZE, DraftTree
from methods.core.weights import Trained


@dataclass(frozen=True)
class Config:
    """Options of a draft model."""

    nodes: int = 5  # tokens drafted per step

    def __post_init__(self) -> None:
        check_tree(self.nodes)


class Growing(NamedTuple):
    """The state of a growing chain."""

    start: Tensor  # row of the cache that its first draft is written to, without axes
    span: int  # rows of the cache to cover


class DraftModel:
    """A drafter that runs a small model over a cache of its own.

    A step first reads all tokens the step before committed, even those that were drafted: a few rows
    cost what one does, and the cache is then right whichever tree was accepted. Only token ids that
    both target and drafter have are drafted.
    """

    reads = ()

    def __init__(self, model: PreTrainedModel, nodes: int, target: Target):
        prepared = target.backend.prepare(model)
        self.embed, self.lm_head = prepared.get_input_embeddings(), prepared.get_output_embeddings()
        self.stack = Stack(prepared.base_model, model.config, target.context + MAX_TREE_SIZE, dtype=target.dtype, device=target.device)
        self.cache = self.stack.cache

        self.device, self.last_known = target.device, model.config.vocab_size - 1
        self.common = min(model.config.vocab_size, target.config.vocab_size)
        self.chain = SampledChain(nodes, self.common, target.device)
        self.sizes = (self.chain.size,)
        self._own_11 = torch.ones(1, 1, dtype=torch.bool, device=target.device)
        self._draft = target.backend.capture(self._chain)
        self._unread: Accepted  # the last step's path, set by ``begin`` and ``observe``

    def begin(self, prompt: list[int], first: Accepted, scores: Scores, sampling: Sampling) -> None:
        """Start a new turn: the model reads the prompt."""
        self.stack.read(self._embedded(torch.tensor(prompt, device=self.device)))
        self.chain.begin(sampling)
        self._unread = first

    def observe(self, tree: DraftTree, accepted: Accepted, scores: Scores) -> None:
        """Keep the accepted path; the next draft reads it."""
        self._unread = accepted

    def draft(self, tokens: list[int]) -> DraftTree:
        """Read what was committed last and return a chain of the model's next tokens."""
        tree = self._draft(self._unread, self.chain.draws(), self.cache.span(len(tokens) + MAX_TREE_SIZE))
        self.cache.length += self._unread.length
        return tree

    def wipe(self) -> None:
        """Clear the model's cache."""
        self.cache.wipe()

    def _chain(self, accepted: Accepted, draws: Draws | None, span: int) -> DraftTree:
        """Draft a chain after what a step committed."""
        _, length, emitted_P, _ = accepted
        places_P = torch.arange(len(emitted_P), device=self.device)
        state_PD = self._extend(self._embedded(emitted_P), self.cache.length, places_P[:, None] >= places_P, span)
        growing = Growing(self.cache.length + length, span)
        return self.chain.grow(emitted_P[-1], self._guess(state_PD[length[None] - 1]), growing, self._expand, draws)

    def _expand(self, tokens_1: Tensor, rows_1: Tensor, level: int, growing: Growing) -> tuple[Tensor, Growing]:
        """Run the model on the draft of ``level``, in the row after the drafts before it."""
        return self._guess(self._extend(self.embed(tokens_1), growing.start + level - 1, self._own_11, growing.span)), growing

    def _guess(self, state_1D: Tensor) -> Tensor:
        return self.lm_head(state_1D)[:, : self.common]

    def _extend(self, vectors_ND: Tensor, start: Tensor, sees_NN: Tensor, span: int) -> Tensor:
        """Run the model on N consecutive tokens, written from row ``start`` on; return hidden states ND.

        Each token sees all rows before ``start``, and those of the new ones that ``sees_NN`` marks.
        """
        positions_N = start + torch.arange(len(vectors_ND), device=self.device)
        return self.stack.extend(vectors_ND, positions_N, start, self.cache.mask(start, sees_NN, span)).out_ND

    def _embedded(self, tokens_N: Tensor) -> Tensor:
        """Return embeddings; an id that only the target has is read as the drafter's last id."""
        return self.embed(tokens_N.clamp(max=self.last_known))


def build(config: Config, target: Target, drafter: Trained[PreTrainedModel]) -> Drafter:
    """Build the drafter for a target."""
    return DraftModel(drafter.module, config.nodes, target)
