"""The decoder layers of a transformers model, run over a cache of our own."""

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from methods.core.kv_cache import KVCache


class Stack:
    """``body`` is a base model (``layers``, ``rotary_emb``, ``norm``) made ready by a back end; batch size 1."""

    def __init__(self, body: nn.Module, config: PreTrainedConfig, capacity: int, *, dtype: torch.dtype, device: torch.device):
        self._body = cast(Any, body)
        self.cache = KVCache(config, capacity, dtype=dtype, device=device)

    def read(self, vectors_TD: Tensor) -> Tensor:
        """A text from its beginning, TD: forgets the cache, then holds T rows."""
        tokens = len(vectors_TD)
        self.cache.truncate(0)
        positions_T = torch.arange(tokens, device=vectors_TD.device)
        # Every text has a length of its own, so this runs as it is, whatever the back end made of calling a layer.
        out_TD = self._run(vectors_TD, positions_T, positions_T, None, [layer.forward for layer in self._body.layers])
        self.cache.truncate(tokens)
        return out_TD

    def extend(self, vectors_ND: Tensor, positions_N: Tensor, start: Tensor, mask: Tensor | None) -> Tensor:
        """N more rows, written from row ``start`` on and left out of the cache's length."""
        if mask is not None:
            torch._dynamo.maybe_mark_dynamic(mask, 3)  # how far back a mask reaches changes no kernel of the layers
        places_N = start + torch.arange(len(vectors_ND), device=vectors_ND.device)
        return self._run(vectors_ND, positions_N, places_N, mask, self._body.layers)

    def _run(self, vectors_ND: Tensor, positions_N: Tensor, places_N: Tensor, mask: Tensor | None, layers: Any) -> Tensor:
        hidden = vectors_ND[None]
        turned = self._body.rotary_emb(hidden, position_ids=positions_N[None])
        for layer, (keys, values) in zip(layers, self.cache.layers, strict=True):
            hidden = layer(hidden, attention_mask=mask, position_embeddings=turned, keys=keys, values=values, places=places_N)
        return self._body.norm(hidden)[0]
