"""Hydra (Ankner et al., 2024, arXiv 2402.05109): Medusa's heads made sequential, and a static tree.

Head i reads the target's last feature and the embeddings of the tokens drafted before it. Hydra++,
the paper's best recipe and the default here, adds a decoder layer over the features (prefix
attention), makes the heads deeper and learns from the target's distribution. S4C's ``heads=hydra``
shares the idea but not the head: S4C's heads estimate features, which the target's own matrix turns
into logits; these heads have output matrices of their own. With ``output=target`` they end in the
target's too, which is not trained and not stored again.

Shape letters: P rows, D width, X = (i + 1) D the input of head i, U draft vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaModel, PreTrainedConfig, PreTrainedModel

from methods.core.acceptance import Accepted, Sampling
from methods.core.decode import Drafter
from methods.core.errors import UserError, check_range
from methods.core.feature_layer import FeatureStream, layer_config
from methods.core.policies import TreePolicy, check_tree
from methods.core.published import Checkpoint
from methods.core.published_keys import HYDRA
from methods.core.target import Scores, Target
from methods.core.training import LOOKAHEAD, Batch, DrafterModule, Level, soft_cross_entropy
from methods.core.tree import DraftTree
from methods.core.vocabulary import check_vocabulary
from methods.core.weights import Trained
from methods.medusa import TEMPLATE  # the published code drafts with the same tree

MAX_LAYERS = 8
UNREAD = ("prefix_embeding_layer.embed_tokens.weight", "rotary_emb.inv_freq")  # published tensors that are not used
EMBEDDING = "input_embed_fn.weight"  # name of the target's embedding in published files


@dataclass(frozen=True)
class Config:
    """Options of Hydra."""

    nodes: int  # drafts per step

    def __post_init__(self) -> None:
        check_tree(self.nodes)


@dataclass(frozen=True)
class Architecture:
    """The shape of Hydra's weights: Hydra++ by default; plain Hydra has ``layers=1``, ``prefix=none``."""

    heads: int = 4
    layers: int = 4  # residual blocks per head
    prefix: Literal["layer", "none"] = "layer"
    vocabulary: int = 0  # size of the draft vocabulary, the most frequent tokens of the training text; 0: all tokens
    output: Literal["own", "target"] = "own"  # output matrices: one of its own per head, as published, or the target's

    def __post_init__(self) -> None:
        check_range("heads", self.heads, LOOKAHEAD - 1)
        check_range("layers", self.layers, MAX_LAYERS)
        check_vocabulary(self.vocabulary)


class PrefixLayer(nn.Module):
    """A whole Llama layer, with both its norms and a final norm, over the features of the text so far."""

    reads: tuple[int, ...] = ()
    embed_tokens: nn.Embedding | None = None

    def __init__(self, target: PreTrainedConfig):
        super().__init__()
        self.config = layer_config(target)
        self.body = LlamaModel(self.config)
        self.body.set_submodule("embed_tokens", nn.Identity())

    def start_from(self, final_norm: Tensor) -> None:
        """Set the final norm so that its output has the size of the target's features."""
        nn.init.constant_(self.body.norm.weight, final_norm.pow(2).mean().sqrt().item())

    def enter(self, features_ND: Tensor) -> Tensor:
        """Return the features as they are."""
        return features_ND

    def fold(self, embeddings_ND: Tensor, hidden_ND: Tensor) -> Tensor:
        """Return the hidden states: the layer reads no embedding."""
        return hidden_ND

    def forward(self, features_BTD: Tensor) -> Tensor:
        """Return the layer's output BTD, with causal attention within the given rows (training)."""
        return self.body(inputs_embeds=features_BTD, use_cache=False).last_hidden_state


class Head(nn.Module):
    """A Hydra head, X to U.

    A residual block narrows X to D, a second one is applied ``layers - 1`` times, and an output matrix
    with a bias follows, if it has one. Deeper heads share one block for all further layers, as in the
    published code and weights.
    """

    def __init__(self, width: int, inputs: int, layers: int, vocab: int | None):
        super().__init__()
        self.layers = layers
        self.residual, self.linear = nn.Linear(inputs * width, width), nn.Linear(inputs * width, width)
        self.again = nn.Linear(width, width) if layers > 1 else None
        self.out = None if vocab is None else nn.Linear(width, vocab)

    def start_from(self, rows_UD: Tensor) -> None:
        """Set initial weights that pass the first D of X on to ``rows_UD`` of the target's own matrix."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        nn.init.eye_(self.residual.weight)
        if self.out is not None:
            self.out.weight.data.copy_(rows_UD)

    def forward(self, read_PX: Tensor, lm_head: nn.Module | None) -> Tensor:
        """Return logits PU; ``lm_head`` reads the state of a head without an output matrix."""
        state_PD = self.residual(read_PX) + F.silu(self.linear(read_PX))
        if self.again:
            for _ in range(self.layers - 1):
                state_PD = state_PD + F.silu(self.again(state_PD))
        matrix = self.out or lm_head
        assert matrix is not None
        return matrix(state_PD)


class Module(DrafterModule):
    """Hydra's trained heads and prefix layer."""

    def __init__(self, target: PreTrainedConfig, architecture: Architecture):
        super().__init__(target, architecture.vocabulary)
        self.architecture = architecture
        width = target.hidden_size
        vocab = (architecture.vocabulary or target.vocab_size) if architecture.output == "own" else None
        self.prefix = PrefixLayer(target) if architecture.prefix == "layer" else None
        self.heads = nn.ModuleList(Head(width, i + 1, architecture.layers, vocab) for i in range(1, architecture.heads + 1))

    def start_from(self, lm_head: nn.Module, final_norm: Tensor) -> None:
        """Set initial weights that make every head repeat the target's guess for one token earlier."""
        if self.prefix:
            self.prefix.start_from(final_norm)
        for head in self.heads.children():
            assert isinstance(head, Head)
            head.start_from(self.rows_from(lm_head))

    def levels(self, batch: Batch, flat_P: Tensor, count: int) -> Iterator[Level]:
        """Yield the guesses of the first ``count`` heads, given the true tokens before each."""
        yield from self._levels(batch.among(self.tokens_U), flat_P, count)

    def loss(self, batch: Batch, flat_P: Tensor) -> Tensor:
        """Return the sum of the heads' cross-entropies against the target's distribution.

        This is Hydra++'s teacher loss, with equal weights; plain Hydra's was against the text. The
        published recipe takes ten epochs with dropout, here one epoch without.
        """
        batch = batch.among(self.tokens_U)
        guesses = enumerate(self._levels(batch, flat_P, len(self.heads)), start=1)
        return torch.stack([soft_cross_entropy(guess.logits_PU, batch, flat_P + i) for i, guess in guesses]).sum()

    def _levels(self, batch: Batch, flat_P: Tensor, count: int) -> Iterator[Level]:
        features_BTD = self.prefix(batch.features_BTD) if self.prefix else batch.features_BTD
        read_PX = features_BTD.flatten(0, 1)[flat_P]
        shared = batch.head if self.architecture.output == "target" else None
        for level, head in enumerate(self.heads[:count], start=1):
            read_PX = torch.cat([read_PX, batch.embedding_at(flat_P + level)], dim=-1)
            yield Level(None, head(read_PX, shared))


class Hydra:
    """A drafter of Hydra heads; its beam's state is the input WX of the last head."""

    reads = ()

    def __init__(self, module: Module, policy: TreePolicy, lm_head: nn.Module | None, target: Target):
        self.heads, self.lm_head, self.policy, self.embed = module.heads, lm_head, policy, target.embed
        self.stream = FeatureStream(module.prefix, target) if module.prefix else None
        self.sizes = (policy.size,)
        self._draft = target.backend.capture(self._grow)
        self._unread: tuple[Accepted, Tensor]  # the last step's path and features, set by ``begin`` and ``observe``

    def begin(self, prompt: list[int], first: Accepted, scores: Scores, sampling: Sampling) -> None:
        """Start a new turn: the prefix layer reads the prompt's features."""
        self._unread = first, scores.features_ND[-1:]
        if self.stream:
            self.stream.begin(prompt, scores.features_ND)

    def observe(self, tree: DraftTree, accepted: Accepted, scores: Scores) -> None:
        """Keep the path and the features of the last tree; the next draft reads them."""
        self._unread = accepted, scores.features_ND

    def draft(self, tokens: list[int]) -> DraftTree:
        """Read what was committed last and return the tree that the policy builds after it."""
        tree = self._draft(*self._unread, self.stream.span(tokens) if self.stream else 0)
        if self.stream:
            self.stream.settle(self._unread[0])
        return tree

    def wipe(self) -> None:
        """Clear the prefix layer's cache."""
        if self.stream:
            self.stream.wipe()

    def _grow(self, accepted: Accepted, features_ND: Tensor, span: int) -> DraftTree:
        root = accepted.emitted_P[-1]
        feature_1D = self.stream.read(accepted, features_ND, span) if self.stream else accepted.last(features_ND)
        read_1X = torch.cat([feature_1D, self.embed(root[None])], dim=-1)
        return self.policy.grow(root, self.heads[0](read_1X, self.lm_head), read_1X, self._expand)

    def _expand(self, tokens_W: Tensor, rows_W: Tensor, level: int, read_WX: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the next head to the whole beam; each row keeps the tokens of its own branch."""
        read_WX = torch.cat([read_WX[rows_W], self.embed(tokens_W)], dim=-1)
        return self.heads[level](read_WX, self.lm_head), read_WX


def published(checkpoint: Checkpoint, target: PreTrainedModel) -> Trained[Module]:
    """Load weights in the layout of Hydra or Hydra++ (``hydra_lm_head.pt``).

    Head H has ``hydra_mlp.H.I.linear`` for each block I, ``res_connection`` in the first block, and
    ``hydra_lm_head.H``; the prefix layer is ``prefix_embeding_layer``, a model of one layer. In
    Hydra++ a dropout precedes every block and output matrix and takes a number of its own. Raises
    UserError for heads of another kind, unknown keys, and as ``Checkpoint.fitted`` does.
    """
    given = {key: value for key, value in checkpoint.config.items() if value is not None}
    config = {"hydra_head_arch": "mlp", "grounded_heads": False, "hidden_state_offset": 0} | given
    HYDRA.check(config, checkpoint.source)

    heads, layers = checkpoint.number("hydra_num_heads", 4, LOOKAHEAD - 1), checkpoint.number("hydra_num_layers", 1, MAX_LAYERS)
    plain = config["hydra_head_arch"] == "mlp"
    with torch.device("meta"):
        module = Module(target.config, Architecture(heads, layers, "none" if plain else "layer"))
    if module.prefix:
        module.prefix = PrefixLayer(target.config)  # not on meta: its rotary frequencies are computed, not loaded
    blocks = range(layers) if plain else range(1, 2 * layers, 2)

    def named(own: str) -> str:
        if own.startswith("prefix."):
            return own.replace("prefix.body", "prefix_embeding_layer")
        _, head, part, kind = own.split(".")
        if part == "out":
            return f"hydra_lm_head.{head}.{kind}" if plain else f"hydra_lm_head.{head}.1.{kind}"
        if part == "again":
            return f"hydra_mlp.{head}.{blocks[1]}.linear.{kind}"
        return f"hydra_mlp.{head}.{blocks[0]}.{'res_connection' if part == 'residual' else part}.{kind}"

    return _without_copies(checkpoint, target, heads, blocks[1:]).fitted(module, named, tuple(c for c in TEMPLATE if len(c) <= heads))


def _without_copies(checkpoint: Checkpoint, target: PreTrainedModel, heads: int, blocks: Sequence[int]) -> Checkpoint:
    """Return the checkpoint without copies and without tensors that the published code never reads.

    Copies are the target's embedding and, in each head, repetitions of the first of ``blocks``.
    Raises UserError for a copy that differs from its original.
    """
    tensors = {name: tensor for name, tensor in checkpoint.tensors.items() if not name.endswith(UNREAD)}
    embedding: Any = target.get_input_embeddings()
    originals: dict[str, Tensor] = {EMBEDDING: embedding.weight}
    for head, block, kind in product(range(heads), blocks[1:], ("weight", "bias")):
        first = f"hydra_mlp.{head}.{blocks[0]}.linear.{kind}"
        if first in tensors:
            originals[f"hydra_mlp.{head}.{block}.linear.{kind}"] = tensors[first]

    for name, original in originals.items():
        if name not in tensors or tensors[name].shape != original.shape:
            continue
        copy = tensors.pop(name).to(original.device, torch.bfloat16)  # compared in the coarsest dtype embeddings are stored in
        if not torch.equal(copy, original.to(torch.bfloat16)):
            whose = "its target's embedding" if name == EMBEDDING else "a repetition of the block before"
            raise UserError(f"drafter weights {checkpoint.source} hold a {name} that is not {whose}; use weights made for this target")
    return replace(checkpoint, tensors=tensors)


def build(config: Config, target: Target, drafter: Trained[Module]) -> Drafter:
    """Build the drafter for a target."""
    module, tokens_U = target.backend.prepare(drafter.module), drafter.module.tokens_for(target.config.vocab_size)
    lm_head = target.head_over(tokens_U) if module.architecture.output == "target" else None
    return Hydra(module, drafter.static_tree(config.nodes, tokens_U), lm_head, target)
