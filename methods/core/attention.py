"""Tree attention: new rows attend to committed rows and to each other, and are written to the cache.

transformers' models find it by the name in their config. It works on whole buffers whose current
length is on the device, so that one call can be compiled and captured. On a CPU, where reading that
length costs nothing, it works on the live rows alone. In a tree, query heads that share a key head
are folded into rows, so that keys and values are never repeated in memory. In a prompt they are not:
folded rows would need a mask of (H / G) T x T, where the kernel needs none for causal rows.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

KERNELS = ("sdpa", "eager")  # torch's fused kernel; plain matrix products and a softmax
PREFIX = "specbench_"


def length_is_at_hand(device: torch.device) -> bool:
    """Return whether the host can read a cache's length without waiting, as on a CPU."""
    return device.type == "cpu"


def attend(
    query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, places: Tensor, mask: Tensor | None, plain: bool
) -> Tensor:
    """Write N new keys and values to the cache and return the attention output, 1 x N x H x D.

    Queries are 1 x H x N x D. The N new keys and values go to the consecutive rows ``places`` of
    ``keys`` and ``values`` (1 x G x rows x D). ``mask`` is additive, 1 x 1 x (H / G) N x S over the
    first S rows, the new ones included: see ``KVCache.mask``. Without a mask the rows are a prompt
    written from row 0 on or, where the length is at hand, a single row that sees all rows before it.
    ``plain`` selects the kernel "eager".
    """
    rows, groups, at_hand = query.shape[2], key.shape[1], length_is_at_hand(query.device)

    if at_hand:
        start = int(places[0])
        keys[:, :, start : start + rows], values[:, :, start : start + rows] = key, value
        span = start + rows
    else:
        keys.index_copy_(2, places, key)
        values.index_copy_(2, places, value)
        span = rows if mask is None else mask.shape[-1]
    keys, values = keys[:, :, :span], values[:, :, :span]

    kernel = _plain if plain else F.scaled_dot_product_attention
    if mask is None and rows > 1:
        shared = query.shape[1] // groups
        if shared > 1 and not at_hand and query.element_size() > 2:  # CUDA's fused kernel for shared heads takes half precision only
            keys, values, shared = keys.repeat_interleave(shared, dim=1), values.repeat_interleave(shared, dim=1), 1
        return kernel(query, keys, values, is_causal=True, enable_gqa=shared > 1).transpose(1, 2).contiguous()

    folded = query.reshape(1, groups, -1, query.shape[-1])
    if mask is not None:
        mask = mask[..., :span]
    elif at_hand and folded.shape[2] == 1:
        folded = folded.expand(-1, -1, 2, -1)  # torch's CPU kernel takes two to three times as long for one row as for two

    out = kernel(folded, keys, values, attn_mask=mask)
    return out[:, :, : query.shape[1] // groups * rows].reshape(query.shape).transpose(1, 2).contiguous()


def _plain(
    query: Tensor, keys: Tensor, values: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False, enable_gqa: bool = False
) -> Tensor:
    """Compute what ``F.scaled_dot_product_attention`` does, as matrix products and a softmax."""
    if enable_gqa:
        keys, values = (each.repeat_interleave(query.shape[1] // each.shape[1], dim=1) for each in (keys, values))
    scores = query @ keys.transpose(2, 3) * query.shape[-1] ** -0.5
    if is_causal:
        rows = query.shape[2]
        attn_mask = torch.full((rows, rows), torch.finfo(query.dtype).min, dtype=query.dtype, device=query.device).triu(1)
    if attn_mask is not None:
        scores = scores + attn_mask
    return torch.softmax(scores.to(torch.promote_types(scores.dtype, torch.float32)), dim=-1).to(query.dtype) @ values


# The schema does not declare that ``keys`` and ``values`` are written: compilers separate declared
# writes from reads by copying the buffers, in every layer and step. Nothing else in a compiled
# function uses the buffers, so no operation can be reordered wrongly.
_library = torch.library.Library("specbench", "DEF")
_library.define(
    "attend(Tensor query, Tensor key, Tensor value, Tensor keys, Tensor values, Tensor places, Tensor? mask, bool plain) -> Tensor"
)
_library.impl("attend", attend, "CompositeExplicitAutograd")


@torch.library.register_fake("specbench::attend", lib=_library)
def _(query: Tensor, key: Tensor, value: Tensor, keys: Tensor, values: Tensor, places: Tensor, mask: Tensor | None, plain: bool) -> Tensor:
    return query.new_empty(1, query.shape[2], query.shape[1], query.shape[3])


def _interface(plain: bool) -> Any:
    def forward(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        keys: Tensor,
        values: Tensor,
        places: Tensor,
        **others: Any,  # arguments for other kernels; scaling is always 1 / sqrt(D) in the supported families
    ) -> tuple[Tensor, None]:
        run = torch.ops.specbench.attend if torch.compiler.is_compiling() else attend
        return run(query, key, value, keys, values, places, attention_mask, plain), None

    return forward


for _kernel in KERNELS:
    AttentionInterface.register(PREFIX + _kernel, _interface(plain=_kernel == "eager"))
