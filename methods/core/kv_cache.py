"""The keys and values of committed tokens: one buffer for all layers, its live length on the device."""

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from methods.core.attention import length_is_at_hand

SHORTEST_SPAN = 256  # rows
ALIGNMENT = 64  # rows; kernels read masks of such a length without padding them first


def head_dim(config: PreTrainedConfig) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


class KVCache:
    """Preallocated keys and values, from which rejected branches can be dropped; the host knows no length.

    ``capacity`` counts rows: committed tokens plus the largest tree under verification. Rows from ``length`` on are
    leftovers; every mask hides them until they are written again.
    """

    def __init__(self, config: PreTrainedConfig, capacity: int, *, dtype: torch.dtype, device: torch.device):
        heads, width = config.num_key_value_heads, head_dim(config)
        self._sharing = config.num_attention_heads // heads
        rows = -(-capacity // ALIGNMENT) * ALIGNMENT
        # Zeros, since what a mask hides is still multiplied, by 0: an uninitialised NaN would survive that.
        self.buffer = torch.zeros(config.num_hidden_layers, 2, 1, heads, rows, width, dtype=dtype, device=device)
        self.layers = [(keys, values) for keys, values in self.buffer]  # views, 1 x H x S x D each
        for view in (view for layer in self.layers for view in layer):
            torch._dynamo.maybe_mark_dynamic(view, 2)  # how many rows there are changes no kernel that is compiled
        self.length = torch.zeros((), dtype=torch.long, device=device)

    @property
    def capacity(self) -> int:
        return self.buffer.shape[-2]

    def span(self, rows: int) -> int:
        """How many rows to look at where ``rows`` are live or about to be: of a few choices, since each is a shape of its own.

        All of them where attention finds the live ones itself.
        """
        if length_is_at_hand(self.buffer.device):
            return self.capacity
        return min(max(SHORTEST_SPAN, 1 << (rows - 1).bit_length()), self.capacity)

    def mask(self, start: Tensor, sees_NM: Tensor, span: int) -> Tensor | None:
        """To be added to scores, 1 x 1 x GN x span: all rows before ``start``, then the M rows from there as ``sees_NM`` says.

        Once for each of the G query heads that share a key head, whose rows attention takes together.

        None for a single row where ``attend`` looks at the live part alone: kernels are fastest without a mask.
        """
        rows, newest = sees_NM.shape
        if rows == newest == 1 and length_is_at_hand(sees_NM.device):
            return None
        columns_S = torch.arange(span, device=sees_NM.device)
        allowed_NS = (columns_S < start).repeat(rows, 1).index_copy_(1, start + columns_S[:newest], sees_NM)
        mask_NS = torch.zeros(rows, span, dtype=self.buffer.dtype, device=sees_NM.device)
        return mask_NS.masked_fill_(~allowed_NS, torch.finfo(self.buffer.dtype).min).repeat(self._sharing, 1)[None, None]

    def commit(self, path_P: Tensor, length: Tensor) -> None:
        """Of the rows written behind the live ones keep those of ``path_P``, in order; the first ``length`` become live."""
        kept = self.buffer.index_select(-2, self.length + path_P)
        self.buffer.index_copy_(-2, self.length + torch.arange(len(path_P), device=path_P.device), kept)
        self.length += length

    def wipe(self) -> None:
        """After a failure: leftovers that are not numbers would survive being masked."""
        self.buffer.zero_()

    def truncate(self, length: int) -> None:
        """Forget every row from ``length`` on."""
        self.length.fill_(length)
