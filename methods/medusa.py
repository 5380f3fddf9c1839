"""Medusa-1 (Cai et al., 2024): extra heads on the target's last feature, one for each place ahead, and a static tree."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig

from methods.core.acceptance import Accepted, Sampling
from methods.core.decode import Drafter
from methods.core.errors import UserError
from methods.core.policies import TreePolicy, best_static_tree, check_tree
from methods.core.target import Scores, Target
from methods.core.training import MAX_DEPTH, Batch, Level, hard_cross_entropy
from methods.core.tree import DraftTree
from methods.core.weights import Trained

DEPTH_DISCOUNT = 0.8  # weight of head k's loss is this to the power k, as in Medusa's published recipe


@dataclass(frozen=True)
class Config:
    nodes: int  # drafts handed to the target each round

    def __post_init__(self) -> None:
        check_tree(self.nodes)


@dataclass(frozen=True)
class Architecture:
    heads: int = 4

    def __post_init__(self) -> None:
        if not 1 <= self.heads < MAX_DEPTH:
            raise UserError(f"heads is {self.heads}; choose 1 to {MAX_DEPTH - 1}")


class Head(nn.Module):
    """One residual block, then an output matrix of its own: D to V."""

    def __init__(self, width: int, vocab: int):
        super().__init__()
        self.linear, self.out = nn.Linear(width, width), nn.Linear(width, vocab, bias=False)

    def forward(self, feature_PD: Tensor) -> Tensor:
        return self.out(feature_PD + F.silu(self.linear(feature_PD)))


class Module(nn.Module):
    reads = ()

    def __init__(self, target: PreTrainedConfig, architecture: Architecture):
        super().__init__()
        self.architecture = architecture
        self.heads = nn.ModuleList(Head(target.hidden_size, target.vocab_size) for _ in range(architecture.heads))

    def start_from(self, lm_head: nn.Module, final_norm: Tensor) -> None:
        """Every head begins as the target's own."""
        assert isinstance(lm_head, nn.Linear)
        for head in self.heads.children():
            assert isinstance(head, Head)
            nn.init.zeros_(head.linear.weight)
            nn.init.zeros_(head.linear.bias)
            head.out.weight.data.copy_(lm_head.weight)

    def levels(self, batch: Batch, flat_P: Tensor, count: int) -> Iterator[Level]:
        feature_PD = batch.features_at(flat_P)
        for head in self.heads[:count]:
            yield Level(None, head(feature_PD))

    def loss(self, batch: Batch, flat_P: Tensor) -> Tensor:
        """Discounted sum of the heads' cross-entropies against the text."""
        guesses = enumerate(self.levels(batch, flat_P, len(self.heads)), start=1)
        return torch.stack([DEPTH_DISCOUNT**k * hard_cross_entropy(guess.logits_PV, batch, flat_P + k) for k, guess in guesses]).sum()


class Medusa:
    reads = ()

    def __init__(self, module: Module, policy: TreePolicy, target: Target):
        self.heads, self.policy = module.heads, policy
        self.sizes = (policy.size,)
        self._draft = target.backend.piece(self._grow)

    def begin(self, prompt: list[int], first: Accepted, scores: Scores, sampling: Sampling) -> None:
        self.last = first, scores.features_ND[-1:]

    def observe(self, tree: DraftTree, accepted: Accepted, scores: Scores) -> None:
        self.last = accepted, scores.features_ND

    def draft(self, tokens: list[int]) -> DraftTree:
        return self._draft(*self.last)

    def _grow(self, accepted: Accepted, features_ND: Tensor) -> DraftTree:
        self.feature_1D = accepted.last(features_ND)
        return self.policy.grow(accepted.emitted_P[-1], self.heads[0](self.feature_1D), self._step)

    def _step(self, tokens_W: Tensor, rows_W: Tensor, level: int) -> Tensor:
        return self.heads[level](self.feature_1D)  # the same whatever was guessed before: Medusa's heads are independent


def build(config: Config, target: Target, drafter: Trained[Module]) -> Drafter:
    return Medusa(target.backend.module(drafter.module), best_static_tree(drafter.rank_accuracy, config.nodes), target)
