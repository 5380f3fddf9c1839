"""Cost-matched targets: a small model embedded in the shape of a large one, without a change to what it computes.

The result writes the small model's tokens and costs as much as the large one.

The hidden state is padded with dimensions that stay zero. Everything the large shape has beyond the small one (heads,
MLP columns, layers, vocabulary) has random weights and is computed, but its contribution to the hidden state is
multiplied by zero. RMSNorm over D instead of d dimensions, the rest zero, shrinks the mean square by d / D; norm weights
times sqrt(d / D) and eps times d / D undo that.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedConfig, PreTrainedModel

from methods.core.errors import UserError
from methods.core.kv_cache import head_dim

# What each axis of a parameter indexes, by the end of its name. "stream" is the hidden width, or a multiple of it.
AXES = {
    "embed_tokens.weight": ("vocab", "stream"),
    "lm_head.weight": ("vocab", "stream"),
    "lm_head.bias": ("vocab",),
    "q_proj.weight": ("query", "stream"),
    "k_proj.weight": ("key", "stream"),
    "v_proj.weight": ("key", "stream"),
    "o_proj.weight": ("stream", "query"),
    "gate_proj.weight": ("mlp", "stream"),
    "up_proj.weight": ("mlp", "stream"),
    "down_proj.weight": ("stream", "mlp"),
    "norm.weight": ("stream",),
    "fc.weight": ("stream", "stream"),  # EAGLE's and S4C's fold, EAGLE-3's of three layers
    "fc.bias": ("stream",),
    "mix.weight": ("stream", "stream"),  # S4C's heads
    "mix.bias": ("stream",),
    "project.weight": ("stream", "stream"),
    "linear.weight": ("stream", "stream"),  # Medusa's and Hydra's heads
    "linear.bias": ("stream",),
    "residual.weight": ("stream", "stream"),  # Hydra's
    "residual.bias": ("stream",),
    "again.weight": ("stream", "stream"),
    "again.bias": ("stream",),
    "out.weight": ("vocab", "stream"),
    "out.bias": ("vocab",),
}
HEADS = ("lm_head.weight", "out.weight")  # output layers over the vocabulary
SPREAD = 0.02  # standard deviation of the filler weights
NEVER = -10_000.0  # logit bias that excludes a filler token at any temperature


@dataclass(frozen=True)
class ModelShape:
    """The shape of a model. ``query`` and ``key`` are the widths of all heads together; the head width is the shipped target's."""

    like: str  # the model that has this shape
    hidden: int
    layers: int
    query: int
    key: int
    intermediate: int
    vocab: int


SHAPES = {
    "tiny-160m": ModelShape("Llama-160M", 768, 12, 768, 768, 3072, 32000),
    "tiny-1b": ModelShape("TinyLlama-1.1B", 2048, 22, 2048, 256, 5632, 32000),
    "tiny-7b": ModelShape("Vicuna-7B", 4096, 32, 4096, 4096, 11008, 32000),
    "tiny-8b": ModelShape("Llama-3-8B", 4096, 32, 4096, 1024, 14336, 128256),
    "tiny-13b": ModelShape("Vicuna-13B", 5120, 40, 5120, 5120, 13824, 32000),
    "tiny-33b": ModelShape("Vicuna-33B", 6656, 60, 6656, 6656, 17920, 32000),
}


def wide_config(small: PreTrainedConfig, shape: ModelShape, name: str) -> LlamaConfig:
    """Return the large shape's config, with at least the small model's layers. Raises UserError where the small one does not fit."""
    width = head_dim(small)
    heads, kv_heads = shape.query // width, shape.key // width
    small_group = group_size(small)

    fits = (
        small.hidden_size <= shape.hidden
        and small.num_key_value_heads <= kv_heads
        and small_group <= heads // kv_heads
        and small.intermediate_size <= shape.intermediate
        and small.vocab_size <= shape.vocab
    )
    if not fits:
        raise UserError(
            f"the target ({small.hidden_size} wide, {small.num_key_value_heads} key heads) does not fit into {name} "
            f"({shape.hidden} wide, {kv_heads} key heads); choose a larger shape"
        )

    return LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=max(shape.layers, small.num_hidden_layers),
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=width,
        max_position_embeddings=small.max_position_embeddings,
        rms_norm_eps=small.rms_norm_eps * small.hidden_size / shape.hidden,
        rope_parameters=small.rope_parameters,
        tie_word_embeddings=False,
        bos_token_id=small.bos_token_id,
        eos_token_id=small.eos_token_id,
        pad_token_id=small.pad_token_id,
    )


def group_size(config: PreTrainedConfig) -> int:
    """Return the number of query heads that share one key head."""
    return int(config.num_attention_heads) // int(config.num_key_value_heads)


def widened(small: PreTrainedModel, shape: ModelShape, name: str, *, device: str, dtype: torch.dtype) -> PreTrainedModel:
    """Return the large shape's model on ``device``, which computes what ``small`` does.

    Its output layer has a bias that excludes filler tokens.
    """
    config = wide_config(small.config, shape, name)
    with torch.device(device):
        large = type(small)._from_config(config, attn_implementation=small.config._attn_implementation, dtype=dtype)
        large.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=True, dtype=dtype)
    fill(large, small, config, small.config)
    return large.eval().requires_grad_(False)


@torch.no_grad()
def fill(large: nn.Module, small: nn.Module, config: PreTrainedConfig, small_config: PreTrainedConfig, seed: int = 0) -> None:
    """Overwrite ``large``'s parameters, on their device, so that it computes what ``small`` does.

    An output layer with more tokens than the small model's excludes them by a bias, which is added to a
    drafter's output layer for that purpose.
    """
    source = dict(small.named_parameters())
    rng = torch.Generator(next(large.parameters()).device).manual_seed(seed)

    for name, parameter in large.named_parameters():
        axes = next((kinds for suffix, kinds in AXES.items() if name.endswith(suffix)), None)
        assert axes is not None, f"no axes known for {name}"
        if parameter.ndim == 1:
            _fill_vector(parameter, source.get(name), "norm" in name, config, small_config)
        else:
            _fill_matrix(parameter, source.get(name), axes, name, config, small_config, rng)

    for name, weight in source.items():
        if name.endswith(HEADS):
            _exclude_filler(large.get_submodule(name.removesuffix(".weight")), len(weight))

    state = large.state_dict()
    for name, buffer in small.named_buffers():
        if name in state:  # EAGLE-3's reduced vocabulary
            state[name].copy_(buffer)


def _exclude_filler(head: nn.Module, known: int) -> None:
    """Exclude every token from index ``known`` on."""
    assert isinstance(head, nn.Linear)
    if head.out_features > known:
        head.bias = nn.Parameter(torch.zeros_like(head.weight[:, 0])) if head.bias is None else head.bias
        head.bias[known:] = NEVER


def _fill_vector(large: nn.Parameter, small: Tensor | None, norm: bool, config: PreTrainedConfig, small_config: PreTrainedConfig) -> None:
    large.fill_(1.0 if norm else 0.0)
    if small is not None:
        scale = math.sqrt(small_config.hidden_size / config.hidden_size) if norm else 1.0
        large[: len(small)] = (small.to(large.device, torch.float64) * scale).to(large.dtype)


def _fill_matrix(
    large: nn.Parameter,
    small: Tensor | None,
    axes: tuple[str, ...],
    name: str,
    config: PreTrainedConfig,
    small_config: PreTrainedConfig,
    rng: torch.Generator,
) -> None:
    large.normal_(std=SPREAD, generator=rng)
    into_stream, from_stream = axes[0] == "stream", axes[1] == "stream"

    if small is None:  # a layer that the small model does not have: computed, but adds zero to the hidden state
        if into_stream:
            large.zero_()
        return

    rows = _positions(axes[0], small.shape[0], large.shape[0], config, small_config).to(large.device)
    columns = _positions(axes[1], small.shape[1], large.shape[1], config, small_config).to(large.device)
    values = small.to(large.device, large.dtype)

    if name.endswith("embed_tokens.weight"):
        large.zero_()
    elif into_stream:
        kept = large.index_select(0, rows) if from_stream else torch.zeros_like(large[: len(rows)])
        large.zero_()
        large[rows] = kept
    large[rows[:, None], columns[None, :]] = values


def _positions(kind: str, small: int, large: int, config: PreTrainedConfig, small_config: PreTrainedConfig) -> Tensor:
    """Return the indices of the small model's rows or columns in the large model's."""
    if kind == "stream":
        copies = small // small_config.hidden_size
        return torch.cat([torch.arange(small_config.hidden_size) + i * (large // copies) for i in range(copies)])
    if kind not in ("query", "key"):
        return torch.arange(small)
    width = head_dim(config)
    heads = torch.arange(small // width)
    if kind == "query":
        heads = heads // group_size(small_config) * group_size(config) + heads % group_size(small_config)
    return (heads[:, None] * width + torch.arange(width)).flatten()
