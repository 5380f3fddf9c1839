"""Speculative sampling with a small draft model (Leviathan et al., 2023; Chen et al., 2023).

The draft is a chain of the model's own next tokens. At temperature 0 it is the model's greedy
continuation. Above, each token is drawn from the model's distribution q at the target's temperature,
restricted to its likeliest tokens as the target's p is, and q is returned with the tree, so that
``speculative_sampling`` accepts as in the papers.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from methods.core.acceptance import Accepted, Sampling, exponential, probabilities, truncated
from methods.core.decode import Drafter
from methods.core.policies import check_tree
from methods.core.stack import Stack
from methods.core.target import Scores, Target
from methods.core.tree import MAX_TREE_SIZE, DraftTree, shape_of
from methods.core.weights import Trained

# Mixed into the seed of the drafts. The target uses the seed itself, and acceptance is lossless only
# if both have independent random numbers.
OWN_STREAM = 0x5EED_D4AF


@dataclass(frozen=True)
class Config:
    """Options of a draft model."""

    nodes: int = 5  # tokens drafted per step

    def __post_init__(self) -> None:
        check_tree(self.nodes)


class Law(NamedTuple):
    """The part of ``Sampling`` that q depends on."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0


GREEDY = Law(0.0)


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

        self.nodes, self.device, self.parents = nodes, target.device, tuple(range(-1, nodes))
        self.last_known, self.vocabulary = model.config.vocab_size - 1, target.config.vocab_size
        self.common = min(model.config.vocab_size, self.vocabulary)
        self.sizes = (1 + nodes,)

        self.rng, self.law = torch.Generator(target.device), GREEDY
        self._draft = target.backend.capture(self._chain)
        self._unread: Accepted  # the last step's path, set by ``begin`` and ``observe``

    def begin(self, prompt: list[int], first: Accepted, scores: Scores, sampling: Sampling) -> None:
        """Start a new turn: the model reads the prompt."""
        self.stack.read(self._embedded(torch.tensor(prompt, device=self.device)))
        self.rng.manual_seed(sampling.seed ^ OWN_STREAM)
        self.law = Law(sampling.temperature, sampling.top_k, sampling.top_p)
        self._unread = first

    def observe(self, tree: DraftTree, accepted: Accepted, scores: Scores) -> None:
        """Keep the accepted path; the next draft reads it."""
        self._unread = accepted

    def draft(self, tokens: list[int]) -> DraftTree:
        """Read what was committed last and return a chain of the model's next tokens."""
        noise_KV = exponential(self.nodes, self.common, self.rng) if self.law.temperature > 0 else None
        tree = self._draft(self._unread, noise_KV, self.law, self.cache.span(len(tokens) + MAX_TREE_SIZE))
        self.cache.length += self._unread.length
        return tree

    def wipe(self) -> None:
        """Clear the model's cache."""
        self.cache.wipe()

    def _chain(self, accepted: Accepted, noise_KV: Tensor | None, law: Law, span: int) -> DraftTree:
        """Draft K tokens after what a step committed.

        ``noise_KV`` is drawn by the caller, because a captured function may be run twice.
        """
        _, length, emitted_P, _ = accepted
        places_P = torch.arange(len(emitted_P), device=self.device)
        state_1D = self._extend(self._embedded(emitted_P), self.cache.length, places_P[:, None] >= places_P, span)[length[None] - 1]

        own_11 = torch.ones(1, 1, dtype=torch.bool, device=self.device)
        tokens, tops, q = [emitted_P[-1:]], [], []
        for k in range(self.nodes):
            scores_1V = self.lm_head(state_1D)[:, : self.common]
            if noise_KV is not None:
                q.append(probabilities(truncated(scores_1V, *law), law.temperature))
                scores_1V = q[-1] / noise_KV[k]
            top = scores_1V.max(dim=-1)
            tokens.append(top.indices)
            tops.append(top.values)
            if k < self.nodes - 1:  # the last draft is not read: the target chooses the token after it
                state_1D = self._extend(self.embed(tokens[-1]), self.cache.length + length + k, own_11, span)

        q_NV = F.pad(torch.cat(q), (0, self.vocabulary - self.common, 1, 0)) if q else None  # the root was not drawn from q
        return DraftTree(torch.cat(tokens), shape_of(self.parents, self.device), q_NV, torch.cat(tops).isnan().any())

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
