"""The cost-matched targets as shapes alone: parameters, and the memory they will need, known before any is built."""

import importlib
from collections.abc import Collection
from functools import lru_cache
from typing import NamedTuple

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from methods.core import weights
from methods.core.kv_cache import head_dim
from methods.core.target import MAX_NODES
from methods.registry import Resolved
from specbench import targets
from specbench.targets.shapes import SHAPES
from specbench.targets.widen import wide_config

SPARE = 1.05  # of what is counted: activations, graphs, the allocator's rounding


class Sized(NamedTuple):
    """A target without its weights."""

    name: str
    config: PreTrainedConfig
    parameters: int


@lru_cache
def sized(name: str) -> Sized:
    config = wide_config(_small(), SHAPES[name], name)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    bias = config.vocab_size  # of the head, which rules filler tokens out
    return Sized(name, config, sum(parameter.numel() for parameter in model.parameters()) + bias)


def smallest_first(names: Collection[str]) -> list[str]:
    return sorted(names, key=lambda name: sized(name).parameters)


def needed(size: Sized, arms: Collection[Resolved], dtype: torch.dtype, device: str) -> int:
    """Bytes the target, its drafters and a cache for each back end take at the most; the cache holds the whole context.

    On a CPU the static back end keeps the weights twice: as they are and as its kernels read them.
    """
    backends = {each.backend for each in arms}
    copies = 2 if device == "cpu" and "static" in backends else 1
    config = size.config
    rows = config.max_position_embeddings + MAX_NODES
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim(config) * rows * len(backends)
    return round(SPARE * dtype.itemsize * (copies * (size.parameters + _drafters(size, arms)) + cache))


def _small() -> PreTrainedConfig:
    return AutoConfig.from_pretrained(targets.shipped_folder())


def _drafters(size: Sized, arms: Collection[Resolved]) -> int:
    """Parameters of the arms' drafters in the target's shape; arms that share weights share them in memory."""
    modules = {each.method.weights: each.method.module for each in arms if each.method.weights and not each.method.model}
    total = 0
    for kind, module in modules.items():
        code = importlib.import_module(module)
        trained = weights.load(
            targets.shipped_folder() / "drafters" / f"{kind}.safetensors", kind, code.Module, code.Architecture, _small()
        )
        with torch.device("meta"):
            total += sum(parameter.numel() for parameter in code.Module(size.config, trained.module.architecture).parameters())
    return total
