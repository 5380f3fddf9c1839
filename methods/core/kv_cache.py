"""The keys and values of committed tokens. The only file that knows transformers' cache classes."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.cache_utils import Cache, CacheLayerMixin


def head_dim(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


class _Layer(CacheLayerMixin):
    """One layer's rows in the shared buffer; hands attention a view of the live part, so that nothing is copied."""

    def __init__(self, keys: Tensor, values: Tensor):
        super().__init__()
        self.keys, self.values, self.length = keys, values, 0
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise AssertionError("the buffer is allocated up front")

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        end = self.length + key_states.shape[2]
        assert end <= self.keys.shape[2], f"{end} rows in a cache of {self.keys.shape[2]}"
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        assert self.keys is not None
        return self.keys.shape[2]


class KVCache(Cache):
    """Preallocated keys and values of all layers in one buffer, from which rejected branches can be dropped.

    ``capacity`` counts rows: committed tokens plus the largest tree under verification.
    """

    def __init__(self, config: PreTrainedConfig, capacity: int, *, dtype: torch.dtype, device: torch.device):
        heads, width = config.num_key_value_heads, head_dim(config)
        self.buffer = torch.empty(config.num_hidden_layers, 2, 1, heads, capacity, width, dtype=dtype, device=device)
        self.rows = [_Layer(keys, values) for keys, values in self.buffer]
        super().__init__(layers=list(self.rows))

    @property
    def length(self) -> int:
        """Rows in use."""
        return self.rows[0].length

    def keep(self, start: int, nodes: list[int]) -> None:
        """Of the rows written since ``start``, keep ``nodes``, in order; forget the rest.

        ``nodes`` rises; a run that is already in place is not moved.
        """
        moved = next((i for i, node in enumerate(nodes) if node != i), len(nodes))
        end = start + len(nodes)
        if moved < len(nodes):
            rows = torch.tensor(nodes[moved:], device=self.buffer.device) + start
            self.buffer[..., start + moved : end, :] = self.buffer.index_select(-2, rows)
        self.truncate(end)

    def truncate(self, length: int) -> None:
        """Forget every row from ``length`` on."""
        for layer in self.rows:
            layer.length = length
