"""The keys and values of committed tokens, in one buffer per device."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from methods.core.attention import length_is_at_hand

SHORTEST_SPAN = 256  # rows
ALIGNMENT = 64  # rows; kernels need not pad masks of a multiple of this length


def head_dim(config: PreTrainedConfig) -> int:
    """Return the width of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


class KVCache:
    """Preallocated keys and values, from which rejected branches can be dropped.

    The current length is kept on the device, so that using it does not synchronise. ``capacity``
    counts rows: committed tokens plus the largest tree under verification. Rows before ``length`` are
    live: they hold committed tokens. Rows from there on are leftovers; every mask hides them until
    they are written again. ``spread`` has the device of
    every layer, where not all of them are on ``device``; lengths and masks are on ``device`` in any
    case.
    """

    def __init__(
        self, config: PreTrainedConfig, capacity: int, *, dtype: torch.dtype, device: torch.device, spread: Sequence[torch.device] = ()
    ):
        heads, width = config.num_key_value_heads, head_dim(config)
        self._sharing = config.num_attention_heads // heads  # query heads per key head
        rows = -(-capacity // ALIGNMENT) * ALIGNMENT

        # Zeros, because masked rows are multiplied by 0, which does not remove uninitialised NaN.
        places = spread or [device] * config.num_hidden_layers
        shared = {
            place: torch.zeros(places.count(place), 2, 1, heads, rows, width, dtype=dtype, device=place) for place in dict.fromkeys(places)
        }
        self.buffers = list(shared.values())

        unused = {place: iter(buffer) for place, buffer in shared.items()}
        self.layers = [(keys, values) for keys, values in (next(unused[place]) for place in places)]  # views, 1 x H x S x D each
        for view in (view for layer in self.layers for view in layer):
            torch._dynamo.maybe_mark_dynamic(view, 2)  # the same compiled kernel serves all capacities
        self.length = torch.zeros((), dtype=torch.long, device=device)

    @property
    def capacity(self) -> int:
        """The number of rows S."""
        return self.buffers[0].shape[-2]

    def span(self, rows: int) -> int:
        """Return how many rows a forward pass has to cover when ``rows`` hold committed or new tokens.

        One of a few values (powers of two), since each is a shape to compile or capture; the whole
        capacity where attention finds the live rows itself.
        """
        if length_is_at_hand(self.length.device):
            return self.capacity
        return min(max(SHORTEST_SPAN, 1 << (rows - 1).bit_length()), self.capacity)

    def mask(self, start: Tensor, sees_NM: Tensor, span: int) -> Tensor | None:
        """Return the additive attention mask of N new rows, 1 x 1 x GN x span.

        Each row sees all rows before ``start``, and the M rows from there on as ``sees_NM`` says.
        The mask is repeated for the G query heads that share a key head, because attention folds
        them into rows. None for a single row where ``attend`` reads the live rows alone: kernels are
        fastest without a mask.
        """
        rows, newest = sees_NM.shape
        if rows == newest == 1 and length_is_at_hand(sees_NM.device):
            return None
        dtype, columns_S = self.buffers[0].dtype, torch.arange(span, device=sees_NM.device)
        allowed_NS = (columns_S < start).repeat(rows, 1).index_copy_(1, start + columns_S[:newest], sees_NM)
        mask_NS = torch.zeros(rows, span, dtype=dtype, device=sees_NM.device)
        return mask_NS.masked_fill_(~allowed_NS, torch.finfo(dtype).min).repeat(self._sharing, 1)[None, None]

    def commit(self, path_P: Tensor, length: Tensor) -> None:
        """Keep the rows ``path_P`` of those written after the live ones, in that order.

        The first ``length`` of them become live.
        """
        from_P, to_P = self.length + path_P, self.length + torch.arange(len(path_P), device=path_P.device)
        for buffer in self.buffers:
            buffer.index_copy_(-2, to_P.to(buffer.device), buffer.index_select(-2, from_P.to(buffer.device)))
        self.length += length

    def wipe(self) -> None:
        """Overwrite all rows with zeros: masking does not remove NaN that a failed turn left."""
        for buffer in self.buffers:
            buffer.zero_()

    def truncate(self, length: int) -> None:
        """Forget every row from ``length`` on."""
        self.length.fill_(length)
