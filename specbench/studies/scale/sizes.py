"""The sizes of the cost-matched targets, known before any is built: parameters, and the memory they will need."""

import importlib
from collections.abc import Collection
from functools import lru_cache
from typing import NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from methods.core import weights
from methods.core.kv_cache import head_dim
from methods.core.tree import MAX_TREE_SIZE
from methods.registry import Resolved
from specbench import targets
from specbench.targets import drafters
from specbench.targets.widen import SHAPES, wide_config

SPARE = 1.05  # factor on what is counted, for activations, graphs, and the allocator's rounding


class TargetSize(NamedTuple):
    """A target's config and parameter count, without its weights."""

    name: str
    config: PreTrainedConfig
    parameters: int


@lru_cache
def size_of(name: str) -> TargetSize:
    """Return the size of a cost-matched target."""
    config = wide_config(_small(), SHAPES[name], name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    bias = config.vocab_size  # of the head, which excludes filler tokens
    return TargetSize(name, config, sum(parameter.numel() for parameter in model.parameters()) + bias)


def smallest_first(names: Collection[str]) -> list[str]:
    """Return cost-matched targets by their number of parameters."""
    return sorted(names, key=lambda name: size_of(name).parameters)


def needed(size: TargetSize, arms: Collection[Resolved], dtype: torch.dtype, device: str) -> int:
    """Return the most bytes that the target, its drafters, and a cache for each back end take.

    The cache holds the whole context. On a CPU the static back end keeps the weights twice: as they
    are and as its kernels read them.
    """
    backends = {arm.backend for arm in arms}
    copies = 2 if device == "cpu" and "static" in backends else 1
    config = size.config
    rows = config.max_position_embeddings + MAX_TREE_SIZE
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim(config) * rows * len(backends)
    return round(SPARE * dtype.itemsize * (copies * (size.parameters + _drafters(size, arms)) + cache))


def _small() -> PreTrainedConfig:
    return AutoConfig.from_pretrained(targets.shipped_folder())


def _drafters(size: TargetSize, arms: Collection[Resolved]) -> int:
    """Return the parameters of the arms' drafters in the target's shape. Arms with the same weights share them in memory."""
    modules = {arm.method.weights: arm.method.module for arm in arms if arm.method.weights and not arm.method.model}
    total = 0
    for kind, module in modules.items():
        code = importlib.import_module(module)
        path = targets.shipped_folder() / "drafters" / f"{kind}.safetensors"
        with drafters.with_next_step():
            trained = weights.load(path, kind, code.Module, code.Architecture, _small())
        with torch.device("meta"):
            total += sum(parameter.numel() for parameter in code.Module(size.config, trained.module.architecture).parameters())
    return total
