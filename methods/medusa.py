"""Medusa-1 (Cai et al., 2024): extra heads on the target's last feature, and a static tree.

Head k guesses the token k places after the target's own next token.
"""

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
from methods.core.published_keys import MEDUSA
from methods.core.target import Scores, Target
from methods.core.training import MAX_DEPTH, Batch, Level, hard_cross_entropy
from methods.core.tree import DraftTree
from methods.core.weights import Trained

DEPTH_DISCOUNT = 0.8  # head k's loss is weighed by its k-th power, as in Medusa's published recipe
MAX_BLOCKS = 8  # residual blocks per head; published heads have one
# Medusa's own tree of 63 drafts for Vicuna-7B, ``mc_sim_7b_63`` of its repository, best first.
TEMPLATE = choices_of(
    "0 00 1 01 2 000 10 02 3 03 4 04 20 05 001 5 06 6 07 010 11 7 08 002 30 09 8 9 100 020 12 003 "
    "40 21 004 005 0000 011 006 030 50 13 007 008 009 60 040 14 70 012 200 31 22 80 050 15 101 021 90 060 0001 16 070"
)


@dataclass(frozen=True)
class Config:
    """Options of Medusa."""

    nodes: int  # drafts per step

    def __post_init__(self) -> None:
        check_tree(self.nodes)


@dataclass(frozen=True)
class Architecture:
    """The shape of Medusa's weights."""

    heads: int = 4
    blocks: int = 1  # residual blocks per head

    def __post_init__(self) -> None:
        check_range("heads", self.heads, MAX_DEPTH - 1)
        check_range("blocks", self.blocks, MAX_BLOCKS)


class Residual(nn.Module):
    """A residual block: x + SiLU(W x + b)."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, feature_PD: Tensor) -> Tensor:
        """Return the block's output, PD."""
        return feature_PD + F.silu(self.linear(feature_PD))


class Head(Residual):
    """A Medusa head: residual blocks, the first of which is itself, then an output matrix D to V."""

    def __init__(self, width: int, vocab: int, blocks: int):
        super().__init__(width)
        self.more = nn.ModuleList(Residual(width) for _ in range(blocks - 1))
        self.out = nn.Linear(width, vocab, bias=False)

    def forward(self, feature_PD: Tensor) -> Tensor:
        """Return logits PV."""
        feature_PD = super().forward(feature_PD)
        for block in self.more:
            feature_PD = block(feature_PD)
        return self.out(feature_PD)


class Module(nn.Module):
    """Medusa's trained heads."""

    reads = ()

    def __init__(self, target: PreTrainedConfig, architecture: Architecture):
        super().__init__()
        self.architecture = architecture
        width, vocab = target.hidden_size, target.vocab_size
        self.heads = nn.ModuleList(Head(width, vocab, architecture.blocks) for _ in range(architecture.heads))

    def start_from(self, lm_head: nn.Module, final_norm: Tensor) -> None:
        """Set initial weights that make every head the target's own."""
        assert isinstance(lm_head, nn.Linear)
        for head in self.heads.children():
            assert isinstance(head, Head)
            for block in (head, *head.more.children()):
                assert isinstance(block, Residual)
                nn.init.zeros_(block.linear.weight)
                nn.init.zeros_(block.linear.bias)
            head.out.weight.data.copy_(lm_head.weight)

    def levels(self, batch: Batch, flat_P: Tensor, count: int) -> Iterator[Level]:
        """Yield the guesses of the first ``count`` heads."""
        feature_PD = batch.features_at(flat_P)
        for head in self.heads[:count]:
            yield Level(None, head(feature_PD))

    def loss(self, batch: Batch, flat_P: Tensor) -> Tensor:
        """Return the discounted sum of the heads' cross-entropies against the text."""
        guesses = enumerate(self.levels(batch, flat_P, len(self.heads)), start=1)
        return torch.stack([DEPTH_DISCOUNT**k * hard_cross_entropy(guess.logits_PV, batch, flat_P + k) for k, guess in guesses]).sum()


class Medusa:
    """A drafter of Medusa heads; its beam's state is the target's last feature, the same at every level."""

    reads = ()

    def __init__(self, module: Module, policy: TreePolicy, target: Target):
        self.heads, self.policy = module.heads, policy
        self.sizes = (policy.size,)
        self._draft = target.backend.capture(self._grow)
        self._unread: tuple[Accepted, Tensor]  # the last step's path and features, set by ``begin`` and ``observe``

    def begin(self, prompt: list[int], first: Accepted, scores: Scores, sampling: Sampling) -> None:
        """Start a new turn from the prompt's last feature."""
        self._unread = first, scores.features_ND[-1:]

    def observe(self, tree: DraftTree, accepted: Accepted, scores: Scores) -> None:
        """Keep the path and the features of the last tree."""
        self._unread = accepted, scores.features_ND

    def draft(self, tokens: list[int]) -> DraftTree:
        """Return the tree that the policy builds from the heads' guesses."""
        return self._draft(*self._unread)

    def wipe(self) -> None:
        """Do nothing: ``begin`` replaces its whole state."""

    def _grow(self, accepted: Accepted, features_ND: Tensor) -> DraftTree:
        feature_1D = accepted.last(features_ND)
        return self.policy.grow(accepted.emitted_P[-1], self.heads[0](feature_1D), feature_1D, self._expand)

    def _expand(self, tokens_W: Tensor, rows_W: Tensor, level: int, feature_1D: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the next head; Medusa's heads do not depend on the tokens guessed before."""
        return self.heads[level](feature_1D), feature_1D


def published(checkpoint: Checkpoint, target: PreTrainedModel) -> Trained[Module]:
    """Load weights in Medusa-1's layout.

    Head H has ``H.R.linear.{weight,bias}`` for each block R, then ``H.BLOCKS.weight``. The tensors
    decide how many heads there are: configs of published weights name fewer than the published code
    loads. Raises UserError for unknown keys of the config and as ``Checkpoint.fitted`` does.
    """
    MEDUSA.check(checkpoint.config, checkpoint.source)
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
    """Build the drafter for a target."""
    return Medusa(target.backend.prepare(drafter.module), drafter.static_tree(config.nodes), target)
