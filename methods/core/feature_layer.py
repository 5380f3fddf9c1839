"""One decoder layer over [token embedding; target feature], for the drafters that use one.

From EAGLE (Li et al., 2024). Row i pairs the target's feature at token i with the embedding of
token i + 1. Its output estimates the target's feature at token i + 1, from which the target's own
head guesses token i + 2.
"""

from typing import Any, Protocol

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel, PreTrainedConfig, Qwen3Config

from methods.core.acceptance import Accepted
from methods.core.errors import UserError
from methods.core.kv_cache import head_dim
from methods.core.published import Checkpoint
from methods.core.published_keys import CONFIG, SHAPE
from methods.core.stack import Stack
from methods.core.target import Target, refuse
from methods.core.tree import MAX_TREE_SIZE


def layer_config(target: PreTrainedConfig) -> LlamaConfig:
    """Return the config of one Llama layer of the target's width, whatever the target's family."""
    config = LlamaConfig(
        vocab_size=target.vocab_size,
        hidden_size=target.hidden_size,
        intermediate_size=target.intermediate_size,
        num_hidden_layers=1,
        num_attention_heads=target.num_attention_heads,
        num_key_value_heads=target.num_key_value_heads,
        head_dim=head_dim(target),
        max_position_embeddings=target.max_position_embeddings,
        rms_norm_eps=target.rms_norm_eps,
        rope_parameters=target.rope_parameters,
    )

    config._attn_implementation = target._attn_implementation
    return config


def published_shape(
    checkpoint: Checkpoint, target: PreTrainedConfig, width: int | None = None, *, normed: bool = False
) -> LlamaConfig | Qwen3Config:
    """Return the config of a published drafter's layer; its width is the target's unless given.

    It is Qwen3's if queries and keys are ``normed``. Raises UserError for a layer that is not
    supported.
    """
    own, what = checkpoint.config, f"{CONFIG} of drafter {checkpoint.source}"
    missing = [key for key in SHAPE[:2] if own.get(key) is None]
    if missing:
        raise UserError(f"{what} has no {' and no '.join(missing)}; give the folder of a published drafter")
    checkpoint.number("num_hidden_layers", 1, most=1)

    given = {key: own[key] for key in SHAPE if own.get(key) is not None}
    given |= {"hidden_size": width or target.hidden_size, "vocab_size": target.vocab_size, "num_hidden_layers": 1}
    try:
        config: LlamaConfig | Qwen3Config = LlamaConfig(**given)
        if normed:
            config = Qwen3Config(**given | {"head_dim": config.head_dim, "num_key_value_heads": config.num_key_value_heads})
    except (StrictDataclassError, ValueError, TypeError, KeyError, ArithmeticError) as error:
        raise UserError(f"{what} describes no layer ({' '.join(str(error).split())[:200]}); fetch it again") from None

    config._attn_implementation = target._attn_implementation
    refuse(config, f"drafter {checkpoint.source}")
    return config


def add_biases(layer: nn.Module, checkpoint: Checkpoint, prefix: str) -> None:
    """Give a layer the biases of its config; its tensors' names in the file begin with ``prefix``.

    ``qkv_bias`` (EAGLE's key for drafters of Qwen2) has those of queries, keys and values. Configs
    copied from a target may have ``attention_bias`` and ``mlp_bias`` where the layer has no biases:
    there the tensors decide, as they do about the bias of the attention's output.
    """

    def stored(name: str) -> bool:
        return f"{prefix}{name}.bias" in checkpoint.tensors

    inputs, output = [f"self_attn.{name}_proj" for name in "qkv"], "self_attn.o_proj"
    inner = [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    qkv, attention, mlp = map(checkpoint.flag, ("qkv_bias", "attention_bias", "mlp_bias"))

    chosen: list[str] = []
    if qkv or (attention and any(map(stored, [*inputs, output]))):
        chosen += inputs
    if attention and stored(output):
        chosen.append(output)
    if mlp and any(map(stored, inner)):
        chosen += inner
    for name in chosen:
        linear = layer.get_submodule(name)
        linear.register_parameter("bias", nn.Parameter(torch.zeros(linear.get_parameter("weight").shape[0])))


class ReadingLayer(Protocol):
    """A layer that a FeatureStream can run.

    It reads an embedding and a hidden state per row; its output is the next row's hidden state.
    """

    reads: tuple[int, ...]  # target layers whose input are its features; empty: the final hidden states
    embed_tokens: nn.Embedding | None  # None: the target's

    @property
    def config(self) -> PreTrainedConfig:
        """The layer's config."""
        ...

    @property
    def body(self) -> Any:
        """The base model that a Stack runs."""
        ...

    def enter(self, features_ND: Tensor) -> Tensor:
        """Return the hidden states that stand for the target's features."""
        ...

    def fold(self, embeddings_ND: Tensor, hidden_ND: Tensor) -> Tensor:
        """Return the layer's input rows from embeddings and hidden states with any leading axes."""
        ...


class FeatureLayer(nn.Module):
    """EAGLE's trained module: ``fc``, then a Llama layer without its first norm.

    ``fc`` folds embedding and feature into one vector. ``shape`` is the layer's config, where it is
    not like the target's layers.
    """

    reads: tuple[int, ...] = ()

    def __init__(self, target: PreTrainedConfig, shape: LlamaConfig | None = None):
        super().__init__()
        self.config = shape or layer_config(target)
        self.fc = nn.Linear(2 * target.hidden_size, target.hidden_size)
        self.body = LlamaModel(self.config)
        for path in ("embed_tokens", "layers.0.input_layernorm", "norm"):
            self.body.set_submodule(path, nn.Identity())
        self.embed_tokens: nn.Embedding | None = None  # of published layers with an embedding of their own

    def start_from(self) -> None:
        """Set initial weights that pass the feature on.

        The first guess is then the target's own for one token earlier instead of noise.
        """
        width = self.fc.out_features
        nn.init.normal_(self.fc.weight[:, :width], std=0.02)
        nn.init.eye_(self.fc.weight[:, width:])
        nn.init.zeros_(self.fc.bias)

    def enter(self, features_ND: Tensor) -> Tensor:
        """Return the features as they are."""
        return features_ND

    def fold(self, embeddings_ND: Tensor, hidden_ND: Tensor) -> Tensor:
        """Return ``fc`` of embedding and hidden state."""
        return self.fc(torch.cat([embeddings_ND, hidden_ND], dim=-1))

    def forward(self, embeddings_BTD: Tensor, features_BTD: Tensor) -> Tensor:
        """Return estimated features BTD, with causal attention within the given rows (training)."""
        return self.body(inputs_embeds=self.fold(embeddings_BTD, features_BTD), use_cache=False).last_hidden_state


class FeatureStream:
    """A layer that reads the target's features of committed tokens, each token once.

    ``layer`` was prepared by the target's back end. The rows that ``read`` writes become live with
    ``settle``, so that drafting can be captured and run twice on the same input.
    """

    def __init__(self, layer: ReadingLayer, target: Target):
        self.layer, self.embed = layer, target.embed if layer.embed_tokens is None else layer.embed_tokens
        self.stack = Stack(layer.body, layer.config, target.context + MAX_TREE_SIZE, dtype=target.dtype, device=target.device)
        self.cache = self.stack.cache

    def begin(self, prompt: list[int], features_TD: Tensor) -> None:
        """Read a new text up to its last row, whose next token is not known yet."""
        self.cache.truncate(0)
        if len(prompt) > 1:
            self.reread(prompt, features_TD[:-1])

    def reread(self, tokens: list[int], features_TD: Tensor) -> Tensor:
        """Read a text of T + 1 tokens from its beginning.

        Return the layer's output at the last token, 1D.
        """
        following_T = torch.tensor(tokens[1:], device=features_TD.device)
        return self.stack.read(self.layer.fold(self.embed(following_T), self.layer.enter(features_TD))).out_ND[-1:]

    def span(self, tokens: list[int]) -> int:
        """Return how many rows of the cache to cover while a tree is drafted after ``tokens``."""
        return self.cache.span(len(tokens) + MAX_TREE_SIZE)

    def read(self, accepted: Accepted, features_ND: Tensor, span: int) -> Tensor:
        """Read the tokens a step committed; return the layer's output at the last of them, 1D.

        ``features_ND`` are the features of the step's tree.
        """
        path_P, length, emitted_P, _ = accepted
        places_P = torch.arange(len(path_P), device=path_P.device)
        causal_PP = places_P[:, None] >= places_P
        start = self.cache.length

        hidden_PD = self.layer.enter(features_ND[path_P])
        return self.extend(emitted_P, hidden_PD, start + places_P, start, start, causal_PP, span)[length[None] - 1]

    def settle(self, accepted: Accepted) -> None:
        """Make the rows of the last ``read`` live."""
        self.cache.length += accepted.length

    def extend(
        self, tokens_N: Tensor, hidden_ND: Tensor, positions_N: Tensor, start: Tensor, committed: Tensor, sees_NM: Tensor, span: int
    ) -> Tensor:
        """Run the layer on N more rows, written from row ``start`` on, and return its output ND.

        Each row sees the first ``committed`` rows, and of the M rows from there on (its own last
        included) those that ``sees_NM`` marks.
        """
        mask = self.cache.mask(committed, sees_NM, span)
        return self.stack.extend(self.layer.fold(self.embed(tokens_N), hidden_ND), positions_N, start, mask).out_ND

    def wipe(self) -> None:
        """Clear what a failed turn may have left in the cache."""
        self.cache.wipe()
