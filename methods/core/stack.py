"""The decoder layers of a transformers model, run over this package's own cache."""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from methods.core.kv_cache import KVCache


class Rows(NamedTuple):
    """The output of a stack of layers for N rows."""

    out_ND: Tensor  # after the last norm
    deep_ND: Tensor | None  # inputs of the layers asked for, concatenated in the layers' order; None if none were


class Stack:
    """A base model's decoder layers with a cache; batch size 1.

    ``body`` is a base model (``layers``, ``rotary_emb``, ``norm``) prepared by a back end. Its
    layers may be on several devices. Input, output and everything else are on ``device``.
    """

    def __init__(self, body: nn.Module, config: PreTrainedConfig, capacity: int, *, dtype: torch.dtype, device: torch.device):
        self._body = cast(Any, body)
        places = [next(layer.parameters()).device for layer in self._body.layers]
        self._moves = moves(places, device)
        self.cache = KVCache(config, capacity, dtype=dtype, device=device, spread=places if self._moves else ())

    def read(self, vectors_TD: Tensor, reads: tuple[int, ...] = ()) -> Rows:
        """Run the layers on a text from its beginning, TD; the cache then holds exactly its T rows.

        ``reads`` are the layers whose input is returned in ``deep_ND``; the number of layers stands
        for the output of the last, before the last norm.
        """
        tokens = len(vectors_TD)
        self.cache.truncate(0)
        positions_T = torch.arange(tokens, device=vectors_TD.device)
        # Texts have all lengths, and each would be compiled anew: call ``forward`` directly, which
        # bypasses whatever the back end compiled.
        rows = self._run(vectors_TD, positions_T, positions_T, None, [layer.forward for layer in self._body.layers], reads)
        self.cache.truncate(tokens)
        return rows

    def extend(self, vectors_ND: Tensor, positions_N: Tensor, start: Tensor, mask: Tensor | None, reads: tuple[int, ...] = ()) -> Rows:
        """Run the layers on N more rows, written from row ``start`` on; the cache's length stays."""
        if mask is not None:
            torch._dynamo.maybe_mark_dynamic(mask, 3)  # the same compiled kernel serves all mask lengths
        places_N = start + torch.arange(len(vectors_ND), device=vectors_ND.device)
        return self._run(vectors_ND, positions_N, places_N, mask, self._body.layers, reads)

    def _run(
        self, vectors_ND: Tensor, positions_N: Tensor, places_N: Tensor, mask: Tensor | None, layers: Any, reads: tuple[int, ...]
    ) -> Rows:
        hidden, entered = vectors_ND[None], []
        home, rotary = hidden.device, self._body.rotary_emb(hidden, position_ids=positions_N[None])

        for i, (layer, (keys, values)) in enumerate(zip(layers, self.cache.layers, strict=True)):
            if i in reads:
                entered.append(hidden[0].to(home))
            if i in self._moves:
                hidden, mask, rotary, places_N = _moved(self._moves[i], hidden, mask, rotary, places_N)
            hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary, keys=keys, values=values, places=places_N)

        if len(layers) in reads:
            entered.append(hidden[0].to(home))
        return Rows(self._body.norm(hidden.to(home))[0], torch.cat(entered, dim=-1) if entered else None)


def moves(places: Sequence[torch.device], home: torch.device) -> dict[int, torch.device]:
    """Return the layers before which rows change device, with the device they move to.

    ``places`` has each layer's device; rows enter the first layer from ``home``.
    """
    before = [home, *places]
    return {i: place for i, place in enumerate(places) if place != before[i]}


def _moved(device: torch.device, hidden: Tensor, mask: Tensor | None, rotary: tuple[Tensor, Tensor], places_N: Tensor) -> tuple[Any, ...]:
    cos, sin = rotary
    return hidden.to(device), None if mask is None else mask.to(device), (cos.to(device), sin.to(device)), places_N.to(device)
