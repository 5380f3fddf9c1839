"""EAGLE-1 and EAGLE-2 (Li et al., 2024a, 2024b): a decoder layer that guesses the target's next features, one level a call.

The two share their weights: EAGLE-1 drafts a static tree, EAGLE-2 grows one by the drafter's own confidence.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from methods.core.acceptance import Accepted, Sampling
from methods.core.decode import Drafter
from methods.core.errors import UserError
from methods.core.feature_layer import FeatureLayer, FeatureStream, published_shape
from methods.core.policies import GrownTree, TreePolicy, check_tree, choices_of
from methods.core.published import EMBEDDING, Checkpoint
from methods.core.target import Scores, Target
from methods.core.training import Batch, Level, feature_loss, soft_cross_entropy
from methods.core.tree import DraftTree
from methods.core.weights import Trained

FEATURE_NOISE = 0.2  # width of the uniform noise on training features, as in EAGLE's published recipe
GROWN = {"depth": 5, "width": 4}
# EAGLE-1's own tree of 25 drafts, ``mc_sim_7b_63`` of its repository, which lists it level by level. Here best first, as far
# as can be told without measuring: by 1 + rank summed along the way, as if every rank were as much less likely than the last.
TEMPLATE = tuple(
    sorted(
        choices_of("0 1 2 3 00 01 02 10 11 20 21 30 000 001 002 010 011 020 021 100 0000 0001 0002 00000 00001"),
        key=lambda choice: (sum(choice) + len(choice), len(choice), choice),
    )
)


@dataclass(frozen=True)
class Config:
    nodes: int  # drafts handed to the target each round
    policy: Literal["static", "grown"]  # EAGLE-1's tree, or EAGLE-2's
    depth: int | None = None  # of a grown tree, 5 unless given; a static one is as deep as its best nodes
    width: int | None = None  # of a grown tree, 4 unless given: nodes expanded a level, and guesses of each

    def __post_init__(self) -> None:
        given = {name: value for name in ("depth", "width") if (value := getattr(self, name)) is not None}
        if given and self.policy == "static":
            raise UserError(
                f"policy=static takes no {' or '.join(given)} ({', '.join(f'{name}={value}' for name, value in given.items())} given): "
                "its tree is as deep and wide as its best nodes; leave them out, as eagle does, or choose policy=grown"
            )
        for name, value in {**GROWN, **given}.items():  # filled in for a static tree too: manifests record every option
            object.__setattr__(self, name, value)
        check_tree(self.nodes, *self.grown)

    @property
    def grown(self) -> tuple[int, int]:
        """Depth and width, settled."""
        assert self.depth is not None
        assert self.width is not None
        return self.depth, self.width


@dataclass(frozen=True)
class Architecture:
    """EAGLE's layer has no options."""


class Module(nn.Module):
    reads = ()

    def __init__(self, target: PreTrainedConfig, architecture: Architecture):
        super().__init__()
        self.architecture = architecture
        self.layer = FeatureLayer(target)

    def start_from(self, lm_head: nn.Module, final_norm: Tensor) -> None:
        self.layer.start_from()

    def levels(self, batch: Batch, flat_P: Tensor, count: int) -> Iterator[Level]:
        """Level 1 reads the target's features; each further one reads the level before's estimates, one place on.

        From level 2 on that is an approximation: the rows of earlier tokens are estimates too, where drafting has true ones.
        """
        features_BTD, next_BTD = batch.features_BTD, batch.next_embeddings()
        for level in range(count):
            out_BTD = self.layer(next_BTD, features_BTD)
            state_PD = out_BTD.flatten(0, 1)[flat_P + level]
            yield Level(state_PD, batch.lm_head(state_PD))
            features_BTD = torch.cat([features_BTD[:, :1], out_BTD[:, :-1]], dim=1)

    def loss(self, batch: Batch, flat_P: Tensor) -> Tensor:
        """SmoothL1 on the next feature plus soft cross-entropy on what it says, as in EAGLE's paper, section 4.2.

        The published weight of the cross-entropy is 0.1, for 20 epochs; here both weigh 1, since few steps have to do.
        """
        out_BTD = self.layer(batch.next_embeddings(), batch.noisy_features(FEATURE_NOISE))
        state_PD = out_BTD.flatten(0, 1)[flat_P]
        guess = soft_cross_entropy(batch.lm_head(state_PD), batch, flat_P + 1)
        return feature_loss(state_PD, batch, flat_P + 1) + guess


class Eagle:
    reads = ()

    def __init__(self, module: Module, policy: TreePolicy, target: Target):
        self.policy, self.lm_head = policy, target.lm_head
        self.stream = FeatureStream(module.layer, target)
        self.sizes = (policy.size,)
        self._draft = target.backend.piece(self._grow)

    def begin(self, prompt: list[int], first: Accepted, scores: Scores, sampling: Sampling) -> None:
        self.stream.begin(prompt, scores.features_ND)
        self.unread = first, scores.features_ND[-1:]

    def observe(self, tree: DraftTree, accepted: Accepted, scores: Scores) -> None:
        self.unread = accepted, scores.features_ND

    def draft(self, tokens: list[int]) -> DraftTree:
        tree = self._draft(*self.unread, self.stream.span(tokens))
        self.stream.settle(self.unread[0])
        return tree

    def _grow(self, accepted: Accepted, features_ND: Tensor, span: int) -> DraftTree:
        self.span = span
        self.state_WD = self.stream.read(accepted, features_ND, span)
        self.committed = self.stream.cache.length + accepted.length
        self.sees_WM = torch.zeros(1, 0, dtype=torch.bool, device=features_ND.device)
        return self.policy.grow(accepted.emitted_P[-1], self.lm_head(self.state_WD), self._step)

    def _step(self, tokens_W: Tensor, rows_W: Tensor, level: int) -> Tensor:
        """One call of the layer on guessed tokens and features; they see the text and their own ancestors."""
        start = self.committed + self.sees_WM.shape[1]
        own_WW = torch.eye(len(tokens_W), dtype=torch.bool, device=tokens_W.device)
        self.sees_WM = torch.cat([self.sees_WM[rows_W], own_WW], dim=1)
        positions_W = (self.committed + level - 1).expand(len(tokens_W))
        features_WD = self.state_WD[rows_W]
        self.state_WD = self.stream.extend(tokens_W, features_WD, positions_W, start, self.committed, self.sees_WM, self.span)
        return self.lm_head(self.state_WD)


def published(checkpoint: Checkpoint, target: PreTrainedModel) -> Trained[Module]:
    """EAGLE-1's and EAGLE-2's layout: ``fc``, ``layers.0`` and mostly ``embed_tokens``; see ``Checkpoint``.

    The layer's shape and rope are its own config's. ``bias``, of fc, is true unless that says otherwise; ``qkv_bias`` is
    EAGLE's key for drafters of Qwen2. An embedding that is not the target's is kept and used.
    """
    checkpoint = checkpoint.sharing(target)
    module = Module(published_shape(checkpoint, target.config), Architecture())
    layer = module.layer
    if not checkpoint.config.get("bias", True):
        layer.fc.register_parameter("bias", None)
    if checkpoint.config.get("qkv_bias", False):
        layer.bias_attention()
    if EMBEDDING in checkpoint.tensors:
        layer.embed_tokens = nn.Embedding(target.config.vocab_size, target.config.hidden_size)
    return checkpoint.fitted(module, lambda own: own.removeprefix("layer.").removeprefix("body."), TEMPLATE)


def build(config: Config, target: Target, drafter: Trained[Module]) -> Drafter:
    module = target.backend.module(drafter.module)
    policy = drafter.static_tree(config.nodes) if config.policy == "static" else GrownTree(config.nodes, *config.grown)
    return Eagle(module, policy, target)
