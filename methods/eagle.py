"""EAGLE-1 and EAGLE-2 (Li et al., 2024a, 2024b): one decoder layer that guesses the target's features.

The layer is called once per level of the tree, on its own output. Both methods share their weights:
EAGLE-1 drafts a static tree, EAGLE-2 grows one by the drafter's own confidence.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedConfig, PreTrainedModel

from methods.core.acceptance import Accepted, Sampling
from methods.core.decode import Drafter
from methods.core.errors import UserError
from methods.core.feature_layer import FeatureLayer, FeatureStream, ReadingLayer, add_biases, published_shape
from methods.core.policies import GrownTree, StaticTree, TreePolicy, best_first, check_tree, choices_of
from methods.core.published import EMBEDDING, Checkpoint
from methods.core.published_keys import EAGLE
from methods.core.sampled_chain import Draws, SampledChain
from methods.core.target import Scores, Target
from methods.core.training import Batch, DrafterModule, Level, feature_loss, soft_cross_entropy
from methods.core.tree import DraftTree
from methods.core.vocabulary import check_vocabulary
from methods.core.weights import Trained

FEATURE_NOISE = 0.2  # width of the uniform noise on training features, as in EAGLE's published recipe
GROWN = {"depth": 5, "width": 4}
# EAGLE-1's own tree of 25 drafts, ``mc_sim_7b_63`` of its repository.
TEMPLATE = best_first(choices_of("0 1 2 3 00 01 02 10 11 20 21 30 000 001 002 010 011 020 021 100 0000 0001 0002 00000 00001"))


@dataclass(frozen=True)
class Config:
    """Options of EAGLE-1 and EAGLE-2; ``depth`` and ``width`` apply to grown trees only."""

    nodes: int  # drafts per step
    policy: Literal["static", "grown"]  # EAGLE-1's tree, or EAGLE-2's
    depth: int | None = None  # None: 5; a static tree is as deep as its best nodes
    width: int | None = None  # None: 4; nodes expanded per level, and guesses of each

    def __post_init__(self) -> None:
        given = {name: value for name in ("depth", "width") if (value := getattr(self, name)) is not None}
        if given and self.policy == "static":
            raise UserError(
                f"policy=static takes no {' or '.join(given)} ({', '.join(f'{name}={value}' for name, value in given.items())} given): "
                "its tree is as deep and wide as its best nodes; leave them out, as eagle does, or choose policy=grown"
            )
        for name, value in {**GROWN, **given}.items():  # also for a static tree, so that every option can be recorded
            object.__setattr__(self, name, value)
        check_tree(self.nodes, *self.grown)

    @property
    def grown(self) -> tuple[int, int]:
        """Depth and width, with defaults filled in."""
        assert self.depth is not None
        assert self.width is not None
        return self.depth, self.width


@dataclass(frozen=True)
class Architecture:
    """The shape of EAGLE's weights."""

    vocabulary: int = 0  # size of the draft vocabulary, the most frequent tokens of the training text; 0: all tokens

    def __post_init__(self) -> None:
        check_vocabulary(self.vocabulary)


class Module(DrafterModule):
    """EAGLE's trained layer."""

    def __init__(self, target: PreTrainedConfig, architecture: Architecture, shape: LlamaConfig | None = None):
        super().__init__(target, architecture.vocabulary)
        self.architecture = architecture
        self.layer = FeatureLayer(target, shape)

    def start_from(self, lm_head: nn.Module, final_norm: Tensor) -> None:
        """Set initial weights that pass the target's feature on."""
        self.layer.start_from()

    def levels(self, batch: Batch, flat_P: Tensor, count: int) -> Iterator[Level]:
        """Yield the guesses of level 1 from the target's features, of further levels from estimates.

        Each further level reads the estimates of the level before, shifted by one token. From level 2
        on this is an approximation: rows of earlier tokens are estimates too, where drafting has the
        target's features.
        """
        batch = batch.among(self.tokens_U)
        features_BTD, next_BTD = batch.features_BTD, batch.next_embeddings()
        for level in range(count):
            out_BTD = self.layer(next_BTD, features_BTD)
            state_PD = out_BTD.flatten(0, 1)[flat_P + level]
            yield Level(state_PD, batch.head(state_PD))
            features_BTD = torch.cat([features_BTD[:, :1], out_BTD[:, :-1]], dim=1)

    def loss(self, batch: Batch, flat_P: Tensor) -> Tensor:
        """Return SmoothL1 on the next feature plus soft cross-entropy on its guess (EAGLE, section 4.2).

        The published weight of the cross-entropy is 0.1, for 20 epochs. Here both have weight 1,
        because training takes far fewer optimizer steps.
        """
        batch = batch.among(self.tokens_U)
        out_BTD = self.layer(batch.next_embeddings(), batch.noisy_features(FEATURE_NOISE))
        state_PD = out_BTD.flatten(0, 1)[flat_P]
        guess = soft_cross_entropy(batch.head(state_PD), batch, flat_P + 1)
        return feature_loss(state_PD, batch, flat_P + 1) + guess


class Beam(NamedTuple):
    """The state of a growing tree: the W rows expanded last and what they have written."""

    state_WD: Tensor  # the layer's output at these rows
    sees_WM: Tensor  # bool: which of the M drafted rows are ancestors, itself included
    committed: Tensor  # rows of committed text in the layer's cache, without axes
    span: int  # rows of the cache to cover


class Eagle:
    """A drafter whose layer is called once per level, on its own output: EAGLE's and EAGLE-3's.

    ``layer`` was prepared by the target's back end; ``head`` turns its output ND into logits over
    ``tokens_U``, or over all tokens without.
    """

    def __init__(
        self,
        layer: ReadingLayer,
        head: Callable[[Tensor], Tensor],
        policy: GrownTree | StaticTree,
        target: Target,
        tokens_U: Tensor | None,
    ):
        self.policy: TreePolicy = policy
        self.head, self.reads, self.stream = head, layer.reads, FeatureStream(layer, target)
        self.sizes: tuple[int, ...] = (policy.size,)
        self._chain = SampledChain.within(policy, target, tokens_U)
        self._draws_chains = False
        self._draft = target.backend.capture(self._grow)
        self._unread: tuple[Accepted, Tensor]  # the last step's path and features, set by ``begin`` and ``observe``

    def begin(self, prompt: list[int], first: Accepted, scores: Scores, sampling: Sampling) -> None:
        """Start a new turn: the layer reads the prompt's features."""
        features_ND = self._features(scores)
        self.stream.begin(prompt, features_ND)
        self._chain.begin(sampling)
        self._unread = first, features_ND[-1:]

    def observe(self, tree: DraftTree, accepted: Accepted, scores: Scores) -> None:
        """Keep the path and the features of the last tree; the next draft reads them."""
        self._unread = accepted, self._features(scores)

    def draft(self, tokens: list[int]) -> DraftTree:
        """Read what was committed last and return the tree that the policy grows after it, or a chain drawn from q."""
        tree = self._draft(*self._unread, self.stream.span(tokens), self._chain.draws() if self._draws_chains else None)
        self.stream.settle(self._unread[0])
        return tree

    def draw_chains(self) -> None:
        """Draft chains drawn from q at temperatures above 0, as deep as the policy's tree."""
        self._draws_chains, self.sizes = True, (self.policy.size, self._chain.size)

    def wipe(self) -> None:
        """Clear the layer's cache."""
        self.stream.wipe()

    def _features(self, scores: Scores) -> Tensor:
        if not self.reads:
            return scores.features_ND
        assert scores.deep_ND is not None
        return scores.deep_ND

    def _grow(self, accepted: Accepted, features_ND: Tensor, span: int, draws: Draws | None) -> DraftTree:
        state_1D = self.stream.read(accepted, features_ND, span)
        nothing_10 = torch.zeros(1, 0, dtype=torch.bool, device=features_ND.device)
        beam = Beam(state_1D, nothing_10, self.stream.cache.length + accepted.length, span)
        root, logits_1V = accepted.emitted_P[-1], self.head(state_1D)
        if draws is not None:
            return self._chain.grow(root, logits_1V, beam, self._expand, draws)
        return self.policy.grow(root, logits_1V, beam, self._expand)

    def _expand(self, tokens_W: Tensor, rows_W: Tensor, level: int, beam: Beam) -> tuple[Tensor, Beam]:
        """Call the layer on guessed tokens and its own outputs; rows see the text and their ancestors."""
        start = beam.committed + beam.sees_WM.shape[1]
        own_WW = torch.eye(len(tokens_W), dtype=torch.bool, device=tokens_W.device)
        sees_WM = torch.cat([beam.sees_WM[rows_W], own_WW], dim=1)
        positions_W = (beam.committed + level - 1).expand(len(tokens_W))

        state_WD = self.stream.extend(tokens_W, beam.state_WD[rows_W], positions_W, start, beam.committed, sees_WM, beam.span)
        return self.head(state_WD), beam._replace(state_WD=state_WD, sees_WM=sees_WM)


def published(checkpoint: Checkpoint, target: PreTrainedModel) -> Trained[Module]:
    """Load weights in EAGLE-1's and EAGLE-2's layout: ``fc``, ``layers.0`` and mostly ``embed_tokens``.

    The checkpoint's config has the layer's shape and rope, ``bias`` (of ``fc``, true unless given) and
    those of ``add_biases``. An embedding that is not the target's is kept and used. Raises UserError
    for other keys (``published_keys.EAGLE``) and as ``Checkpoint.fitted`` does.
    """
    EAGLE.check(checkpoint.config, checkpoint.source)
    checkpoint = checkpoint.sharing(target)
    shape = published_shape(checkpoint, target.config)
    assert isinstance(shape, LlamaConfig)
    module = Module(target.config, Architecture(), shape)
    layer = module.layer
    if not checkpoint.flag("bias", default=True):
        layer.fc.register_parameter("bias", None)
    add_biases(layer.body.layers[0], checkpoint, "layers.0.")
    if EMBEDDING in checkpoint.tensors:
        layer.embed_tokens = nn.Embedding(target.config.vocab_size, target.config.hidden_size)
    return checkpoint.fitted(module, lambda own: own.removeprefix("layer.").removeprefix("body."), TEMPLATE)


def build(config: Config, target: Target, drafter: Trained[Module]) -> Drafter:
    """Build the drafter for a target."""
    layer, tokens_U = target.backend.prepare(drafter.module).layer, drafter.module.tokens_for(target.config.vocab_size)
    static = config.policy == "static"
    policy = drafter.static_tree(config.nodes, tokens_U) if static else GrownTree(config.nodes, *config.grown, tokens_U)
    return Eagle(layer, target.head_over(tokens_U), policy, target, tokens_U)
