"""Speculative sampling with a small draft model (Leviathan et al., 2023; Chen et al., 2023): a chain of its own next tokens.

At temperature 0 the drafts are its greedy continuation. Above, each is drawn from its distribution q at the target's
temperature, and q goes with the tree, so that ``speculative_sampling`` accepts as the papers do.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from methods.core.acceptance import Accepted, Sampling, exponential, probabilities
from methods.core.decode import Drafter
from methods.core.policies import check_tree
from methods.core.stack import Stack
from methods.core.target import MAX_NODES, Scores, Target
from methods.core.tree import DraftTree, shape_of
from methods.core.weights import Trained

OWN_STREAM = 0x5EED_D4AF  # the drafts' random numbers: acceptance is lossless only where the target's, from the seed itself, are others


@dataclass(frozen=True)
class Config:
    nodes: int = 5  # tokens drafted each round

    def __post_init__(self) -> None:
        check_tree(self.nodes)


class DraftModel:
    """A model reading along over a cache of its own: the tokens each round committed, then its own guesses.

    A round reads all it committed, whatever of that had been drafted: a few rows cost what one does, and the cache then holds
    the text whichever tree was accepted. Only ids that target and drafter both have are drafted.
    """

    reads = ()

    def __init__(self, model: PreTrainedModel, nodes: int, target: Target):
        ready = target.backend.module(model)
        self.embed, self.lm_head = ready.get_input_embeddings(), ready.get_output_embeddings()
        self.stack = Stack(ready.base_model, model.config, target.context + MAX_NODES, dtype=target.dtype, device=target.device)
        self.cache = self.stack.cache
        target.caches.append(self.cache)
        self.nodes, self.device, self.parents = nodes, target.device, tuple(range(-1, nodes))
        self.last_known, self.vocabulary = model.config.vocab_size - 1, target.config.vocab_size
        self.common = min(model.config.vocab_size, self.vocabulary)
        self.sizes = (1 + nodes,)
        self.rng = torch.Generator(target.device)
        self._draft = target.backend.piece(self._chain)

    def begin(self, prompt: list[int], first: Accepted, scores: Scores, sampling: Sampling) -> None:
        self.stack.read(self._embedded(torch.tensor(prompt, device=self.device)))
        self.rng.manual_seed(sampling.seed ^ OWN_STREAM)
        self.temperature = sampling.temperature
        self.unread = first

    def observe(self, tree: DraftTree, accepted: Accepted, scores: Scores) -> None:
        self.unread = accepted

    def draft(self, tokens: list[int]) -> DraftTree:
        noise_KV = exponential(self.nodes, self.common, self.rng) if self.temperature > 0 else None
        tree = self._draft(self.unread, noise_KV, self.temperature, self.cache.span(len(tokens) + MAX_NODES))
        self.cache.length += self.unread.length
        return tree

    def _chain(self, accepted: Accepted, noise_KV: Tensor | None, temperature: float, span: int) -> DraftTree:
        """K drafts after what a round committed; ``noise_KV`` is drawn outside, since a piece may be run twice."""
        _, length, emitted_P, _ = accepted
        places_P = torch.arange(len(emitted_P), device=self.device)
        state_1D = self._extend(self._embedded(emitted_P), self.cache.length, places_P[:, None] >= places_P, span)[length[None] - 1]
        own_11 = torch.ones(1, 1, dtype=torch.bool, device=self.device)
        tokens, tops, q = [emitted_P[-1:]], [], []
        for k in range(self.nodes):
            scores_1V = self.lm_head(state_1D)[:, : self.common]
            if noise_KV is not None:
                q.append(probabilities(scores_1V, temperature))
                scores_1V = q[-1] / noise_KV[k]
            top = scores_1V.max(dim=-1)
            tokens.append(top.indices)
            tops.append(top.values)
            if k < self.nodes - 1:  # what follows the last draft is the target's to say
                state_1D = self._extend(self.embed(tokens[-1]), self.cache.length + length + k, own_11, span)
        q_NV = F.pad(torch.cat(q), (0, self.vocabulary - self.common, 1, 0)) if q else None  # the root was drawn by nobody here
        return DraftTree(torch.cat(tokens), shape_of(self.parents, self.device), q_NV, torch.cat(tops).isnan().any())

    def _extend(self, vectors_ND: Tensor, start: Tensor, sees_NN: Tensor, span: int) -> Tensor:
        """Last hidden states ND of N tokens in a row, written from row ``start`` on; they see all before them."""
        positions_N = start + torch.arange(len(vectors_ND), device=self.device)
        return self.stack.extend(vectors_ND, positions_N, start, self.cache.mask(start, sees_NN, span)).out_ND

    def _embedded(self, tokens_N: Tensor) -> Tensor:
        """An id the target alone has is read as the last of the drafter's."""
        return self.embed(tokens_N.clamp(max=self.last_known))


def build(config: Config, target: Target, drafter: Trained[PreTrainedModel]) -> Drafter:
    return DraftModel(drafter.module, config.nodes, target)
