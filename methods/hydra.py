"""Hydra (Ankner et al., 2024, arXiv 2402.05109): Medusa's heads made to depend on each other, and a static tree.

Head i reads the target's last feature and the embeddings of the tokens drafted before it. Hydra++, the paper's best recipe
and the default here, puts a decoder layer of its own over the features (prefix attention), makes the heads deeper and learns
from the target's distribution. S4C's ``heads=hydra`` shares the idea, not the head: its heads estimate features and are read out
by the target's own matrix, these go straight to the vocabulary through matrices of their own.

Shape letters: P rows, D width, X = (i + 1) D what head i reads, V vocabulary.
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
from methods.core.published import CONFIG, Checkpoint
from methods.core.target import Scores, Target
from methods.core.training import MAX_DEPTH, Batch, Level, soft_cross_entropy
from methods.core.tree import DraftTree
from methods.core.weights import Trained
from methods.medusa import TEMPLATE  # which the published code drafts with, too

MAX_LAYERS = 8
UNREAD = ("prefix_embeding_layer.embed_tokens.weight", "rotary_emb.inv_freq")  # tensors of published weights
EMBEDDING = "input_embed_fn.weight"  # the target's, as they have it


@dataclass(frozen=True)
class Config:
    nodes: int  # drafts handed to the target each round

    def __post_init__(self) -> None:
        check_tree(self.nodes)


@dataclass(frozen=True)
class Architecture:
    """Hydra++'s by default; plain Hydra has ``layers=1`` and ``prefix=none``."""

    heads: int = 4
    layers: int = 4  # residual blocks of a head
    prefix: Literal["layer", "none"] = "layer"

    def __post_init__(self) -> None:
        check_range("heads", self.heads, MAX_DEPTH - 1)
        check_range("layers", self.layers, MAX_LAYERS)


class PrefixLayer(nn.Module):
    """A whole Llama layer, both its norms and a last one included, over the features of the text so far."""

    reads: tuple[int, ...] = ()
    embed_tokens: nn.Embedding | None = None

    def __init__(self, target: PreTrainedConfig):
        super().__init__()
        self.config = layer_config(target)
        self.body = LlamaModel(self.config)
        self.body.set_submodule("embed_tokens", nn.Identity())

    def start_from(self, final_norm: Tensor) -> None:
        """The last norm keeps the features' size, which is the target's final norm's."""
        nn.init.constant_(self.body.norm.weight, final_norm.pow(2).mean().sqrt().item())

    def enter(self, features_ND: Tensor) -> Tensor:
        return features_ND

    def fold(self, embeddings_ND: Tensor, hidden_ND: Tensor) -> Tensor:
        return hidden_ND

    def forward(self, features_BTD: Tensor) -> Tensor:
        """BTD; causal attention within the rows given (training)."""
        return self.body(inputs_embeds=features_BTD, use_cache=False).last_hidden_state


class Head(nn.Module):
    """X to V: a residual block that narrows X to D, another one ``layers - 1`` times over, an output matrix with a bias.

    One block for all further layers is what the published code makes of deeper heads, and what its weights hold.
    """

    def __init__(self, width: int, inputs: int, layers: int, vocab: int):
        super().__init__()
        self.layers = layers
        self.residual, self.linear = nn.Linear(inputs * width, width), nn.Linear(inputs * width, width)
        self.again = nn.Linear(width, width) if layers > 1 else None
        self.out = nn.Linear(width, vocab)

    def start_from(self, lm_head: nn.Linear) -> None:
        """Pass the first D of X on to the target's own matrix."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)
        nn.init.eye_(self.residual.weight)
        self.out.weight.data.copy_(lm_head.weight)

    def forward(self, read_PX: Tensor) -> Tensor:
        state_PD = self.residual(read_PX) + F.silu(self.linear(read_PX))
        if self.again:
            for _ in range(self.layers - 1):
                state_PD = state_PD + F.silu(self.again(state_PD))
        return self.out(state_PD)


class Module(nn.Module):
    reads = ()

    def __init__(self, target: PreTrainedConfig, architecture: Architecture):
        super().__init__()
        self.architecture = architecture
        width, vocab = target.hidden_size, target.vocab_size
        self.prefix = PrefixLayer(target) if architecture.prefix == "layer" else None
        self.heads = nn.ModuleList(Head(width, i + 1, architecture.layers, vocab) for i in range(1, architecture.heads + 1))

    def start_from(self, lm_head: nn.Module, final_norm: Tensor) -> None:
        """Every head begins as the target's own, one token late."""
        assert isinstance(lm_head, nn.Linear)
        if self.prefix:
            self.prefix.start_from(final_norm)
        for head in self.heads.children():
            assert isinstance(head, Head)
            head.start_from(lm_head)

    def levels(self, batch: Batch, flat_P: Tensor, count: int) -> Iterator[Level]:
        features_BTD = self.prefix(batch.features_BTD) if self.prefix else batch.features_BTD
        read_PX = features_BTD.flatten(0, 1)[flat_P]
        for level, head in enumerate(self.heads[:count], start=1):
            read_PX = torch.cat([read_PX, batch.embedding_at(flat_P + level)], dim=-1)
            yield Level(None, head(read_PX))

    def loss(self, batch: Batch, flat_P: Tensor) -> Tensor:
        """Sum of the heads' cross-entropies against the target's distribution: Hydra++'s teacher loss, every head alike.

        Plain Hydra's was against the text. The published recipe goes over its data ten times, with dropout; here it is seen once.
        """
        guesses = enumerate(self.levels(batch, flat_P, len(self.heads)), start=1)
        return torch.stack([soft_cross_entropy(guess.logits_PV, batch, flat_P + i) for i, guess in guesses]).sum()


class Hydra:
    reads = ()

    def __init__(self, module: Module, policy: TreePolicy, target: Target):
        self.heads, self.policy, self.embed = module.heads, policy, target.embed
        self.stream = FeatureStream(module.prefix, target) if module.prefix else None
        self.sizes = (policy.size,)
        self._draft = target.backend.piece(self._grow)

    def begin(self, prompt: list[int], first: Accepted, scores: Scores, sampling: Sampling) -> None:
        self.unread = first, scores.features_ND[-1:]
        if self.stream:
            self.stream.begin(prompt, scores.features_ND)

    def observe(self, tree: DraftTree, accepted: Accepted, scores: Scores) -> None:
        self.unread = accepted, scores.features_ND

    def draft(self, tokens: list[int]) -> DraftTree:
        tree = self._draft(*self.unread, self.stream.span(tokens) if self.stream else 0)
        if self.stream:
            self.stream.settle(self.unread[0])
        return tree

    def _grow(self, accepted: Accepted, features_ND: Tensor, span: int) -> DraftTree:
        root = accepted.emitted_P[-1]
        feature_1D = self.stream.read(accepted, features_ND, span) if self.stream else accepted.last(features_ND)
        self.read_WX = torch.cat([feature_1D, self.embed(root[None])], dim=-1)
        return self.policy.grow(root, self.heads[0](self.read_WX), self._step)

    def _step(self, tokens_W: Tensor, rows_W: Tensor, level: int) -> Tensor:
        """The next head over the whole beam; what was read before follows its branches."""
        self.read_WX = torch.cat([self.read_WX[rows_W], self.embed(tokens_W)], dim=-1)
        return self.heads[level](self.read_WX)


def published(checkpoint: Checkpoint, target: PreTrainedModel) -> Trained[Module]:
    """Hydra's layout (``hydra_lm_head.pt``), plain or Hydra++'s; see ``Checkpoint``.

    Of head H ``hydra_mlp.H.I.linear``, I counting its blocks, of the first one also ``res_connection``, and
    ``hydra_lm_head.H``; of the prefix ``prefix_embeding_layer``, a model of one layer. In Hydra++'s a dropout stands before
    every block and output matrix, and is counted. Raises UserError for heads of another kind.
    """
    config = {"hydra_head_arch": "mlp", "grounded_heads": False, "hidden_state_offset": 0} | checkpoint.config
    for key, served in (("hydra_head_arch", ("mlp", "prefix-mlp")), ("grounded_heads", (True,)), ("hidden_state_offset", (0,))):
        if config[key] not in served:
            choices = " or ".join(map(str, served))
            raise UserError(f"{CONFIG} of drafter {checkpoint.source} has {key}={config[key]}; drafters with {choices} are supported")
    heads, layers = checkpoint.number("hydra_num_heads", 4, MAX_DEPTH - 1), checkpoint.number("hydra_num_layers", 1, MAX_LAYERS)
    plain = config["hydra_head_arch"] == "mlp"
    with torch.device("meta"):
        module = Module(target.config, Architecture(heads, layers, "none" if plain else "layer"))
    if module.prefix:
        module.prefix = PrefixLayer(target.config)  # its rotary frequencies are in no file
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
    """Without the target's embedding, what repeats the first of ``blocks`` in each head, and what the published code never reads.

    Raises UserError for a copy that says something else than its original.
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
        copy = tensors.pop(name).to(original.device, torch.bfloat16)  # which all precisions that an embedding is stored in can tell
        if not torch.equal(copy, original.to(torch.bfloat16)):
            whose = "its target's embedding" if name == EMBEDDING else "a repetition of the block before"
            raise UserError(f"drafter weights {checkpoint.source} hold a {name} that is not {whose}; use weights made for this target")
    return replace(checkpoint, tensors=tensors)


def build(config: Config, target: Target, drafter: Trained[Module]) -> Drafter:
    return Hydra(target.backend.module(drafter.module), drafter.static_tree(config.nodes), target)
