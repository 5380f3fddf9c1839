"""The keys and values of committed tokens: one buffer for all layers of a device, their live length on the first one."""

from collections.abc import Sequence

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
    leftovers; every mask hides them until they are written again. ``spread`` has the device of every layer, where those are not all
    on ``device``; lengths and masks are there in any case.
    """

    def __init__(
        self, config: PreTrainedConfig, capacity: int, *, dtype: torch.dtype, device: torch.device, spread: Sequence[torch.device] = ()
    ):
        heads, width = config.num_key_value_heads, head_dim(config)
        self._sharing = config.num_attention_heads // heads
        rows = -(-capacity // ALIGNMENT) * ALIGNMENT
        # Zeros, since what a mask hides is still multiplied, by 0: an uninitialised NaN would survive that.
        places = spread or [device] * config.num_hidden_layers
        shared = {
            place: torch.zeros(places.count(place), 2, 1, heads, rows, width, dtype=dtype, device=place) for place in dict.fromkeys(places)
        }
        self.buffers = list(shared.values())
        unused = {place: iter(buffer) for place, buffer in shared.items()}
        self.layers = [(keys, values) for keys, values in (next(unused[place]) for place in places)]  # views, 1 x H x S x D each
        for view in (view for layer in self.layers for view in layer):
            torch._dynamo.maybe_mark_dynamic(view, 2)  # how many rows there are changes no kernel that is compiled
        self.length = torch.zeros((), dtype=torch.long, device=device)

    @property
    def capacity(self) -> int:
        return self.buffers[0].shape[-2]

    def span(self, rows: int) -> int:
        """How many rows to look at where ``rows`` are live or about to be: of a few choices, since each is a shape of its own.

        All of them where attention finds the live ones itself.
        """
        if length_is_at_hand(self.length.device):
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
        dtype, columns_S = self.buffers[0].dtype, torch.arange(span, device=sees_NM.device)
        allowed_NS = (columns_S < start).repeat(rows, 1).index_copy_(1, start + columns_S[:newest], sees_NM)
        mask_NS = torch.zeros(rows, span, dtype=dtype, device=sees_NM.device)
        return mask_NS.masked_fill_(~allowed_NS, torch.finfo(dtype).min).repeat(self._sharing, 1)[None, None]

    def commit(self, path_P: Tensor, length: Tensor) -> None:
        """Of the rows written behind the live ones keep those of ``path_P``, in order; the first ``length`` become live."""
        from_P, to_P = self.length + path_P, self.length + torch.arange(len(path_P), device=path_P.device)
        for buffer in self.buffers:
            buffer.index_copy_(-2, to_P.to(buffer.device), buffer.index_select(-2, from_P.to(buffer.device)))
        self.length += length

    def wipe(self) -> None:
        """After a failure: leftovers that are not numbers would survive being masked."""
        for buffer in self.buffers:
            buffer.zero_()

    def truncate(self, length: int) -> None:
        """Forget every row from ``length`` on."""
        self.length.fill_(length)
