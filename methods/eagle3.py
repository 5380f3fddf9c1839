"""EAGLE-3 (Li et al., 2025, arXiv 2503.01840): one layer over three of the target's layers.

It differs from EAGLE as follows. Its first hidden state is computed from the inputs of a low, a
middle and a high layer of the target. It does not estimate features: from the second level on it
reads its own output, whatever it learned to put there. Its output matrix is its own and may cover
only the frequent tokens (a draft vocabulary). The tree is EAGLE-2's.

Shape letters: those of ``methods.core.training``.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedConfig, PreTrainedModel, Qwen3Config
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention, Qwen3MLP

from methods.core.decode import Drafter
from methods.core.eagle3_config import flattened, layers_of, layers_read
from methods.core.errors import UserError
from methods.core.feature_layer import add_biases, layer_config, published_shape
from methods.core.policies import GrownTree, check_tree
from methods.core.published import EMBEDDING, Checkpoint
from methods.core.published_keys import CONFIG
from methods.core.target import Target
from methods.core.training import Batch, DrafterModule, Level, soft_cross_entropy
from methods.core.vocabulary import check_vocabulary
from methods.core.weights import Trained
from methods.eagle import Eagle

DISCOUNT = 0.8  # weight of each level's loss relative to the level before, as published


@dataclass(frozen=True)
class Config:
    """Options of EAGLE-3."""

    nodes: int  # drafts per step
    depth: int = 5
    width: int = 4  # nodes expanded per level, and guesses of each

    def __post_init__(self) -> None:
        check_tree(self.nodes, self.depth, self.width)


@dataclass(frozen=True)
class Architecture:
    """The shape of EAGLE-3's weights."""

    vocabulary: int = 0  # size of the draft vocabulary, the most frequent tokens of the training text; 0: all tokens
    target_layers: int = 0  # layers of the target it was trained for, which decide what it reads; 0: the given target's
    output: Literal["own", "target"] = "own"  # its output matrix: one of its own, as published, or the target's

    def __post_init__(self) -> None:
        check_vocabulary(self.vocabulary)
        if self.target_layers < 0:
            raise UserError(
                f"target_layers is {self.target_layers}; choose 0 for those of the target at hand, or as many as it was trained for"
            )


class Layout(NamedTuple):
    """The layer of a published drafter, in which drafters differ."""

    config: LlamaConfig | Qwen3Config  # Qwen3's: queries and keys are normed
    reads: tuple[int, ...]  # the target's layers whose input it reads; empty: the final hidden states, without ``fc``
    norm_before_residual: bool = False  # the residual is the normed hidden state


class MidLayer(GradientCheckpointingLayer):
    """A decoder layer over rows [embedding; hidden state], 2D wide, with a norm for each half.

    Its output is the next hidden state, D wide.
    """

    self_attn: nn.Module
    mlp: nn.Module

    def __init__(self, config: LlamaConfig | Qwen3Config, norm_before_residual: bool = False):
        super().__init__()
        self.norm_before_residual = norm_before_residual
        width = config.hidden_size
        self.input_layernorm = LlamaRMSNorm(width, eps=config.rms_norm_eps)
        self.hidden_norm = LlamaRMSNorm(width, eps=config.rms_norm_eps)
        self.post_attention_layernorm = LlamaRMSNorm(width, eps=config.rms_norm_eps)
        if isinstance(config, Qwen3Config):
            self.self_attn, self.mlp = Qwen3Attention(config, layer_idx=0), Qwen3MLP(config)
        else:
            self.self_attn, self.mlp = LlamaAttention(config, layer_idx=0), LlamaMLP(config)
        for name in ("q_proj", "k_proj", "v_proj"):
            narrow: Any = self.self_attn.get_submodule(name)
            self.self_attn.set_submodule(name, nn.Linear(2 * width, narrow.out_features, bias=narrow.bias is not None))

    def forward(self, rows: Tensor, attention_mask: Tensor | None, position_embeddings: tuple[Tensor, Tensor], **kept: Any) -> Tensor:
        """Return hidden states B x N x D from rows B x N x 2D.

        ``kept`` is where attention keeps keys and values: a cache's rows or, in training, ``Unrolled``.
        """
        embedding, hidden = rows.chunk(2, dim=-1)
        normed = self.hidden_norm(hidden)
        if self.norm_before_residual:
            hidden = normed
        read = torch.cat([self.input_layernorm(embedding), normed], dim=-1)
        seen, _ = self.self_attn(read, attention_mask=attention_mask, position_embeddings=position_embeddings, **kept)
        hidden = hidden + seen
        return hidden + self.mlp(self.post_attention_layernorm(hidden))


class Unrolled:
    """The keys and values of all levels so far, used in training in place of transformers' cache.

    From the second level on, the rows of the batch stand one after the other.
    """

    def __init__(self) -> None:
        self._levels: list[tuple[Tensor, Tensor]] = []

    def update(self, keys: Tensor, values: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Add one level's keys and values, B x G x T x D; return those its rows attend to.

        At the first level these are its own, later those of all levels, 1 x G x S x D.
        """
        self._levels.append((_side_by_side(keys), _side_by_side(values)))
        if len(self._levels) == 1:
            return keys, values
        all_keys, all_values = zip(*self._levels, strict=True)
        return torch.cat(all_keys, dim=2), torch.cat(all_values, dim=2)


def _side_by_side(rows_BGTD: Tensor) -> Tensor:
    return rows_BGTD.transpose(0, 1).flatten(1, 2)[None]


class Module(DrafterModule):
    """EAGLE-3's trained layer, with tensors named as in published checkpoints.

    ``layout`` is that of published weights; ours are like the target's layers.
    """

    def __init__(self, target: PreTrainedConfig, architecture: Architecture, layout: Layout | None = None):
        super().__init__(target, architecture.vocabulary)
        layers = architecture.target_layers or target.num_hidden_layers
        if layers > target.num_hidden_layers:
            raise UserError(f"it was trained for a target of {layers} layers, this one has {target.num_hidden_layers}; use that target")

        self.architecture = replace(architecture, target_layers=layers)
        layout = layout or Layout(layer_config(target), layers_read(layers))
        self.config, self.reads = layout.config, layout.reads
        self.fc = nn.Linear(len(self.reads) * target.hidden_size, self.config.hidden_size, bias=False) if self.reads else None
        self.midlayer = MidLayer(self.config, layout.norm_before_residual)
        self.rotary_emb = LlamaRotaryEmbedding(cast(LlamaConfig, self.config))
        self.norm = LlamaRMSNorm(self.config.hidden_size, eps=self.config.rms_norm_eps)
        own = nn.Linear(self.config.hidden_size, architecture.vocabulary or target.vocab_size, bias=False)
        self.lm_head = own if architecture.output == "own" else None
        self.embed_tokens: nn.Embedding | None = None  # of published layers with an embedding of their own

    @property
    def body(self) -> SimpleNamespace:
        """The layer as a Stack runs it; without the last norm, since its output is read again."""
        return SimpleNamespace(layers=[self.midlayer], rotary_emb=self.rotary_emb, norm=nn.Identity())

    def enter(self, features_ND: Tensor) -> Tensor:
        """Return the first hidden states, from the target's features."""
        return features_ND if self.fc is None else self.fc(features_ND)

    def fold(self, embeddings_ND: Tensor, hidden_ND: Tensor) -> Tensor:
        """Return rows [embedding; hidden state]."""
        return torch.cat([embeddings_ND, hidden_ND], dim=-1)

    def guess(self, hidden_ND: Tensor, head: nn.Module | None) -> Tensor:
        """Return logits over the draft vocabulary, with any leading axes.

        ``head`` is the target's over that vocabulary; it is used with ``output=target`` only.
        """
        matrix = self.lm_head or head
        assert matrix is not None
        return matrix(self.norm(hidden_ND))

    def start_from(self, lm_head: nn.Module, final_norm: Tensor) -> None:
        """Set initial weights that pass the highest layer read to the target's own norm and head.

        The first guess is then about the target's own for one token earlier instead of noise.
        """
        assert self.fc is not None, "only published layers have no fc"
        width = self.config.hidden_size
        nn.init.normal_(self.fc.weight, std=0.02)
        nn.init.eye_(self.fc.weight[:, -width:])
        self.norm.weight.data.copy_(final_norm)
        if self.lm_head is not None:
            self.lm_head.weight.data.copy_(self.rows_from(lm_head))

    def levels(self, batch: Batch, flat_P: Tensor, count: int) -> Iterator[Level]:
        """Yield the guesses of at most ``count`` levels, computed as when drafting."""
        yield from self._levels(batch.among(self.tokens_U), flat_P, count)

    def loss(self, batch: Batch, flat_P: Tensor) -> Tensor:
        """Return the discounted sum of the soft cross-entropies of as many levels as its look-ahead allows.

        See section 3.2; the discount is that of the published code, which unrolls 7 levels.
        """
        batch, total = batch.among(self.tokens_U), flat_P.new_zeros((), dtype=torch.float32)
        for i, level in enumerate(self._levels(batch, flat_P, self.lookahead - 1)):
            total = total + DISCOUNT**i * soft_cross_entropy(level.logits_PU, batch, flat_P + i + 1)
        return total

    def _levels(self, batch: Batch, flat_P: Tensor, count: int) -> Iterator[Level]:
        head = batch.head if self.lm_head is None else None
        for hidden_PD in self._unrolled(batch, flat_P, count):
            yield Level(None, self.guess(hidden_PD, head))

    def _unrolled(self, batch: Batch, flat_P: Tensor, count: int) -> Iterator[Tensor]:
        """Yield the hidden states PD of each level, computed as when drafting (training-time test).

        Level 1 runs the layer over whole rows of the batch. Each further level reads the output of
        the level before at the chosen positions, shifted by one token, and sees level 1 up to its
        position and its own path from there on.
        """
        assert batch.deep_BTD is not None
        kept, width = Unrolled(), batch.tokens_BT.shape[1]
        places_T = torch.arange(width, device=flat_P.device)

        rows_BTD = self.fold(batch.next_embeddings(), self.enter(batch.deep_BTD))
        hidden_PD = self._level(rows_BTD, places_T, places_T[:, None] >= places_T, kept).flatten(0, 1)[flat_P]
        yield hidden_PD

        all_S = torch.arange(batch.tokens_BT.numel(), device=flat_P.device)
        sees_PS = (all_S <= flat_P[:, None]) & (all_S // width == (flat_P // width)[:, None])
        own_PP = torch.eye(len(flat_P), dtype=torch.bool, device=flat_P.device)
        for level in range(2, count + 1):
            sees_PS = torch.cat([sees_PS, own_PP], dim=1)
            rows_PD = self.fold(batch.embedding_at(flat_P + level), hidden_PD)
            hidden_PD = self._level(rows_PD[None], flat_P % width + level - 1, sees_PS, kept)[0]
            yield hidden_PD

    def _level(self, rows_BTD: Tensor, positions_T: Tensor, sees_TS: Tensor, kept: Unrolled) -> Tensor:
        mask_TS = torch.zeros(sees_TS.shape, dtype=rows_BTD.dtype, device=sees_TS.device)
        mask_TS.masked_fill_(~sees_TS, torch.finfo(rows_BTD.dtype).min)
        rotary = self.rotary_emb(rows_BTD, position_ids=positions_T[None])
        return self.midlayer(rows_BTD, attention_mask=mask_TS[None, None], position_embeddings=rotary, past_key_values=kept)


def published(checkpoint: Checkpoint, target: PreTrainedModel) -> Trained[Module]:
    """Load weights in EAGLE-3's layout, or in that of a speculators folder.

    They have the names of ``Module``, or ``layers.0`` for ``midlayer``; ``t2d`` (which of the target's
    tokens ``d2t`` reaches), and sometimes ``embed_tokens``. The checkpoint's config has the layer's
    shape, width, rope and biases, the size of the draft vocabulary (``draft_vocab_size``), which of the
    target's layers are read (``layers_of``) and whether the residual is normed
    (``norm_before_residual``). Raises UserError for other keys, as ``Checkpoint.fitted`` does, and
    where the target's width or the two vocabularies do not fit each other.
    """
    speculators = "transformer_layer_config" in checkpoint.config
    checkpoint = flattened(checkpoint).sharing(target)
    own, tensors, what = checkpoint.config, checkpoint.tensors, f"{CONFIG} of drafter {checkpoint.source}"
    known, target_width = target.config.vocab_size, target.config.hidden_size
    read = own.get("target_hidden_size")
    if read not in (None, target_width):
        raise UserError(f"{what} has target_hidden_size={read!r}, this target is {target_width} wide; use its own target")

    width = checkpoint.number("hidden_size", target_width, most=1 << 16)
    reads = layers_of(checkpoint, target.config.num_hidden_layers, first_is_shifted=not speculators)
    if not reads and width != target_width:
        raise UserError(
            f"{what} has use_aux_hidden_state=False and hidden_size={width}, this target is {target_width} wide; use its own target"
        )
    drafted = checkpoint.number("draft_vocab_size", known, most=known)
    vocabulary = drafted if drafted < known or "d2t" in tensors else 0

    layer = "layers.0." if any(name.startswith("layers.0.") for name in tensors) else "midlayer."
    normed = any(f"{layer}self_attn.{name}_norm.weight" in tensors for name in "qk") or (speculators and own["model_type"] == "qwen3")
    config = published_shape(checkpoint, target.config, width, normed=normed)
    module = Module(target.config, Architecture(vocabulary), Layout(config, reads, checkpoint.flag("norm_before_residual")))
    add_biases(module.midlayer, checkpoint, layer)
    if checkpoint.flag("bias") and "fc.bias" in tensors and module.fc is not None:
        module.fc.register_parameter("bias", nn.Parameter(torch.zeros(width)))
    if EMBEDDING in tensors or width != target_width:
        module.embed_tokens = nn.Embedding(known, width)

    stored = {name: tensor for name, tensor in tensors.items() if name != "t2d" or not vocabulary}
    trained = replace(checkpoint, tensors=stored).fitted(module, lambda name: name.replace("midlayer.", layer, 1))
    tokens_U, reached_V = module.tokens_U, tensors.get("t2d")
    if tokens_U is not None and reached_V is not None and reached_V.nonzero().flatten().tolist() != tokens_U.tolist():
        raise UserError(f"drafter weights {checkpoint.source} name other tokens in t2d than in d2t; fetch them again")
    return trained


def build(config: Config, target: Target, drafter: Trained[Module]) -> Drafter:
    """Build the drafter for a target. Raises UserError where ``d2t`` names tokens it does not have."""
    module, tokens_U = target.backend.prepare(drafter.module), drafter.module.tokens_for(target.config.vocab_size)
    head = target.head_over(tokens_U) if module.lm_head is None else None
    policy = GrownTree(config.nodes, config.depth, config.width, tokens_U)
    return Eagle(module, partial(module.guess, head=head), policy, target, tokens_U)
