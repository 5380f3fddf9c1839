"""Medusa-1 (Cai et al., 2024): extra heads on the target's last feature, one for each place ahead, and a static tree."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel

from methods.core.acceptance import Accepted, Sampling
from methods.core.decode import Drafter
from methods.core.errors import check_range
from methods.core.policies import TreePolicy, check_tree, choices_of
from methods.core.published import Checkpoint
from methods.core.target import Scores, Target
from methods.core.training import MAX_DEPTH, Batch, Level, hard_cross_entropy
from methods.core.tree import DraftTree
from methods.core.weights import Trained

DEPTH_DISCOUNT = 0.8  # weight of head k's loss is this to the power k, as in Medusa's published recipe
MAX_BLOCKS = 8  # residual blocks of a head; published heads have one
# Medusa's own tree of 63 drafts for Vicuna-7B, ``mc_sim_7b_63`` of its repository, in the order it was built in: best first.
TEMPLATE = choices_of(
    "0 00 1 01 2 000 10 02 3 03 4 04 20 05 001 5 06 6 07 010 11 7 08 002 30 09 8 9 100 020 12 003 "
    "40 21 004 005 0000 011 006 030 50 13 007 008 009 60 040 14 70 012 200 31 22 80 050 15 101 021 90 060 0001 16 070"
)


@dataclass(frozen=True)
class Config:
    nodes: int  # drafts handed to the target each round

    def __post_init__(self) -> None:
        check_tree(self.nodes)


@dataclass(frozen=True)
class Architecture:
    heads: int = 4
    blocks: int = 1

    def __post_init__(self) -> None:
        check_range("heads", self.heads, MAX_DEPTH - 1)
        check_range("blocks", self.blocks, MAX_BLOCKS)


class Residual(nn.Module):
    """x + SiLU(W x + b)."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, feature_PD: Tensor) -> Tensor:
        return feature_PD + F.silu(self.linear(feature_PD))


class Head(Residual):
    """Residual blocks, itself the first, then an output matrix of its own: D to V."""

    def __init__(self, width: int, vocab: int, blocks: int):
        super().__init__(width)
        self.more = nn.ModuleList(Residual(width) for _ in range(blocks - 1))
        self.out = nn.Linear(width, vocab, bias=False)

    def forward(self, feature_PD: Tensor) -> Tensor:
        feature_PD = super().forward(feature_PD)
        for block in self.more:
            feature_PD = block(feature_PD)
        return self.out(feature_PD)


class Module(nn.Module):
    reads = ()

    def __init__(self, target: PreTrainedConfig, architecture: Architecture):
        super().__init__()
        self.architecture = architecture
        width, vocab = target.hidden_size, target.vocab_size
        self.heads = nn.ModuleList(Head(width, vocab, architecture.blocks) for _ in range(architecture.heads))

    def start_from(self, lm_head: nn.Module, final_norm: Tensor) -> None:
        """Every head begins as the target's own."""
        assert isinstance(lm_head, nn.Linear)
        for head in self.heads.children():
            assert isinstance(head, Head)
            for block in (head, *head.more.children()):
                assert isinstance(block, Residual)
                nn.init.zeros_(block.linear.weight)
                nn.init.zeros_(block.linear.bias)
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


def published(checkpoint: Checkpoint, target: PreTrainedModel) -> Trained[Module]:
    """Medusa-1's layout: ``H.R.linear.{weight,bias}`` of head H, block R, then ``H.BLOCKS.weight``; see ``Checkpoint``.

    The file says how many heads there are: configs of published weights count fewer of them than the published code loads.
    """
    places = [match.groups() for name in checkpoint.tensors if (match := re.match(r"(\d+)\.(\d+)\.linear\.", name))]
    heads = max(len({head for head, _ in places}), checkpoint.number("medusa_num_heads", 1, MAX_DEPTH - 1))
    blocks = max(len({block for _, block in places}), checkpoint.number("medusa_num_layers", 1, MAX_BLOCKS))
    with torch.device("meta"):
        module = Module(target.config, Architecture(heads, blocks))

    def named(own: str) -> str:
        head, *path, kind = own.removeprefix("heads.").split(".")
        match path:
            case ["out"]:
                return f"{head}.{blocks}.{kind}"
            case ["more", block, _]:
                return f"{head}.{int(block) + 1}.linear.{kind}"
        return f"{head}.0.linear.{kind}"

    return checkpoint.fitted(module, named, tuple(choice for choice in TEMPLATE if len(choice) <= heads))


def build(config: Config, target: Target, drafter: Trained[Module]) -> Drafter:
    return Medusa(target.backend.module(drafter.module), drafter.static_tree(config.nodes), target)
