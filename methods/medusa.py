"""Medusa-1 (Cai et al., 2024): extra heads on the target's last feature, and a static tree.

Head k guesses the token k places after the target's own next token. A published head ends in an output
matrix of its own. With ``output=target`` it ends in the target's, which is not trained and not stored
again: its state is then read as a target feature.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

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
from methods.core.training import LOOKAHEAD, Batch, DrafterModule, Level, hard_cross_entropy
from methods.core.tree import DraftTree
from methods.core.vocabulary import check_vocabulary
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
    vocabulary: int = 0  # size of the draft vocabulary, the most frequent tokens of the training text; 0: all tokens
    output: Literal["own", "target"] = "own"  # output matrices: one of its own per head, as published, or the target's

    def __post_init__(self) -> None:
        check_range("heads", self.heads, LOOKAHEAD - 1)
        check_range("blocks", self.blocks, MAX_BLOCKS)
        check_vocabulary(self.vocabulary)


class Residual(nn.Module):
    """A residual block: x + SiLU(W x + b)."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, feature_PD: Tensor) -> Tensor:
        """Return the block's output, PD."""
        return feature_PD + F.silu(self.linear(feature_PD))


class Head(Residual):
    """A Medusa head: residual blocks, the first of which is itself, then its output matrix D to U, if it has one."""

    def __init__(self, width: int, blocks: int, vocab: int | None):
        super().__init__(width)
        self.more = nn.ModuleList(Residual(width) for _ in range(blocks - 1))
        self.out = None if vocab is None else nn.Linear(width, vocab, bias=False)

    def guess(self, feature_PD: Tensor, lm_head: nn.Module | None) -> Tensor:
        """Return logits PU; ``lm_head`` reads the state of a head without an output matrix."""
        state_PD = self(feature_PD)
        for block in self.more:
            state_PD = block(state_PD)
        matrix = self.out or lm_head
        assert matrix is not None
        return matrix(state_PD)


class Module(DrafterModule):
    """Medusa's trained heads."""

    def __init__(self, target: PreTrainedConfig, architecture: Architecture):
        super().__init__(target, architecture.vocabulary)
        self.architecture = architecture
        vocab = (architecture.vocabulary or target.vocab_size) if architecture.output == "own" else None
        self.heads = nn.ModuleList(Head(target.hidden_size, architecture.blocks, vocab) for _ in range(architecture.heads))

    def start_from(self, lm_head: nn.Module, final_norm: Tensor) -> None:
        """Set initial weights that make every head the target's own."""
        for head in self.heads.children():
            assert isinstance(head, Head)
            for block in (head, *head.more.children()):
                assert isinstance(block, Residual)
                nn.init.zeros_(block.linear.weight)
                nn.init.zeros_(block.linear.bias)
            if head.out is not None:
                head.out.weight.data.copy_(self.rows_from(lm_head))

    def levels(self, batch: Batch, flat_P: Tensor, count: int) -> Iterator[Level]:
        """Yield the guesses of the first ``count`` heads."""
        yield from self._levels(batch.among(self.tokens_U), flat_P, count)

    def loss(self, batch: Batch, flat_P: Tensor) -> Tensor:
        """Return the discounted sum of the heads' cross-entropies against the text."""
        batch = batch.among(self.tokens_U)
        guesses = enumerate(self._levels(batch, flat_P, len(self.heads)), start=1)
        return torch.stack([DEPTH_DISCOUNT**k * hard_cross_entropy(guess.logits_PU, batch, flat_P + k) for k, guess in guesses]).sum()

    def _levels(self, batch: Batch, flat_P: Tensor, count: int) -> Iterator[Level]:
        feature_PD, shared = batch.features_at(flat_P), batch.head if self.architecture.output == "target" else None
        for head in self.heads[:count]:
            assert isinstance(head, Head)
            yield Level(None, head.guess(feature_PD, shared))


class Medusa:
    """A drafter of Medusa heads; its beam's state is the target's last feature, the same at every level."""

    reads = ()

    def __init__(self, module: Module, policy: TreePolicy, lm_head: nn.Module | None, target: Target):
        self.heads, self.lm_head, self.policy = module.heads, lm_head, policy
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
        return self.policy.grow(accepted.emitted_P[-1], self._guess(0, feature_1D), feature_1D, self._expand)

    def _expand(self, tokens_W: Tensor, rows_W: Tensor, level: int, feature_1D: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the next head; Medusa's heads do not depend on the tokens guessed before."""
        return self._guess(level, feature_1D), feature_1D

    def _guess(self, level: int, feature_1D: Tensor) -> Tensor:
        head = self.heads[level]
        assert isinstance(head, Head)
        return head.guess(feature_1D, self.lm_head)


def published(checkpoint: Checkpoint, target: PreTrainedModel) -> Trained[Module]:
    """Load weights in Medusa-1's layout.

    Head H has ``H.R.linear.{weight,bias}`` for each block R, then ``H.BLOCKS.weight``. The tensors
    decide how many heads there are: configs of published weights name fewer than the published code
    loads. Raises UserError for unknown keys of the config and as ``Checkpoint.fitted`` does.
    """
    MEDUSA.check(checkpoint.config, checkpoint.source)
    places = [match.groups() for name in checkpoint.tensors if (match := re.match(r"(\d+)\.(\d+)\.linear\.", name))]
    heads = max(len({head for head, _ in places}), checkpoint.number("medusa_num_heads", 1, LOOKAHEAD - 1))
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
    module, tokens_U = target.backend.prepare(drafter.module), drafter.module.tokens_for(target.config.vocab_size)
    lm_head = target.head_over(tokens_U) if module.architecture.output == "target" else None
    return Medusa(module, drafter.static_tree(config.nodes, tokens_U), lm_head, target)
