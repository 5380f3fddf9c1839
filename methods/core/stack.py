"""The decoder layers of a transformers model, run over a cache of our own."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from methods.core.kv_cache import KVCache


class Rows(NamedTuple):
    out_ND: Tensor  # after the last norm
    deep_ND: Tensor | None  # what entered the layers asked for, side by side; None where none was


class Stack:
    """``body`` is a base model (``layers``, ``rotary_emb``, ``norm``) made ready by a back end; batch size 1.

    Its layers may be on several devices; rows come from and go to ``device``, where all the rest of it is.
    """

    def __init__(self, body: nn.Module, config: PreTrainedConfig, capacity: int, *, dtype: torch.dtype, device: torch.device):
        self._body = cast(Any, body)
        places = [next(layer.parameters()).device for layer in self._body.layers]
        self._moves = moves(places, device)
        self.cache = KVCache(config, capacity, dtype=dtype, device=device, spread=places if self._moves else ())

    def read(self, vectors_TD: Tensor, reads: tuple[int, ...] = ()) -> Rows:
        """A text from its beginning, TD: forgets the cache, then holds T rows."""
        tokens = len(vectors_TD)
        self.cache.truncate(0)
        positions_T = torch.arange(tokens, device=vectors_TD.device)
        # Every text has a length of its own, so this runs as it is, whatever the back end made of calling a layer.
        rows = self._run(vectors_TD, positions_T, positions_T, None, [layer.forward for layer in self._body.layers], reads)
        self.cache.truncate(tokens)
        return rows

    def extend(self, vectors_ND: Tensor, positions_N: Tensor, start: Tensor, mask: Tensor | None, reads: tuple[int, ...] = ()) -> Rows:
        """N more rows, written from row ``start`` on and left out of the cache's length."""
        if mask is not None:
            torch._dynamo.maybe_mark_dynamic(mask, 3)  # how far back a mask reaches changes no kernel of the layers
        places_N = start + torch.arange(len(vectors_ND), device=vectors_ND.device)
        return self._run(vectors_ND, positions_N, places_N, mask, self._body.layers, reads)

    def _run(
        self, vectors_ND: Tensor, positions_N: Tensor, places_N: Tensor, mask: Tensor | None, layers: Any, reads: tuple[int, ...]
    ) -> Rows:
        hidden, entered = vectors_ND[None], []
        home, turned = hidden.device, self._body.rotary_emb(hidden, position_ids=positions_N[None])
        for i, (layer, (keys, values)) in enumerate(zip(layers, self.cache.layers, strict=True)):
            if i in reads:
                entered.append(hidden[0].to(home))
            if i in self._moves:
                hidden, mask, turned, places_N = _moved(self._moves[i], hidden, mask, turned, places_N)
            hidden = layer(hidden, attention_mask=mask, position_embeddings=turned, keys=keys, values=values, places=places_N)
        return Rows(self._body.norm(hidden.to(home))[0], torch.cat(entered, dim=-1) if entered else None)


def moves(places: Sequence[torch.device], home: torch.device) -> dict[int, torch.device]:
    """Layer -> device, wherever a layer is elsewhere than the one before it; rows enter the first one from ``home``."""
    before = [home, *places]
    return {i: place for i, place in enumerate(places) if place != before[i]}


def _moved(device: torch.device, hidden: Tensor, mask: Tensor | None, turned: tuple[Tensor, Tensor], places_N: Tensor) -> tuple[Any, ...]:
    cos, sin = turned
    return hidden.to(device), None if mask is None else mask.to(device), (cos.to(device), sin.to(device)), places_N.to(device)
