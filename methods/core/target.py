"""The target model: scores a draft tree in one forward pass, then keeps the accepted path."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from methods.core.acceptance import Accepted
from methods.core.attention import KERNELS
from methods.core.backend import EAGER, Backend
from methods.core.errors import UserError
from methods.core.stack import Stack
from methods.core.tree import DraftTree, padded

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
LENGTH_DEPENDENT_ROPE = ("longrope", "dynamic")  # of transformers' rope types
MAX_NODES = 128  # the largest tree, root included


class ContextOverflow(UserError):
    """The prompt leaves no room for a single new token."""


class Scores(NamedTuple):
    """What one target forward says of its N input tokens.

    ``features_ND`` is the last hidden state after the final norm, for every input token; ``logits_NV`` the next-token
    logits, of the last input token alone after a prefill; ``deep_ND`` what entered the layers asked for, side by side.
    """

    logits_NV: Tensor
    features_ND: Tensor
    deep_ND: Tensor | None = None


class Target:
    """A causal language model and its cache of committed tokens; batch size 1.

    ``capacity`` is the longest conversation in tokens it must hold. Raises UserError for models whose forward pass or
    cache this project cannot take apart: see ``refuse``.
    """

    def __init__(self, model: PreTrainedModel, *, capacity: int, backend: Backend = EAGER):
        refuse(model.config)
        self.backend, self.config = backend, model.config
        self.context = min(capacity, model.config.max_position_embeddings)
        self.device, self.dtype = model.device, model.dtype
        ready: Any = backend.module(model)
        self.embed, self.lm_head = ready.get_input_embeddings(), ready.get_output_embeddings()
        self.stack = Stack(ready.base_model, self.config, self.context + MAX_NODES, dtype=self.dtype, device=self.device)
        self.cache = self.stack.cache
        assert backend is EAGER or len(self.cache.buffers) == 1, "only the eager back end runs a target on several devices"
        self.caches = [self.cache]  # and those of drafters that read along
        self._forward = backend.piece(self._score)

    @property
    def devices(self) -> list[torch.device]:
        """Its own first, then those that only layers are on."""
        return list(dict.fromkeys([self.device, *(buffer.device for buffer in self.cache.buffers)]))

    def prefill(self, prompt: list[int], reads: tuple[int, ...] = ()) -> Scores:
        features_ND, deep_ND = self.stack.read(self.embed(torch.tensor(prompt, device=self.device)), reads)
        return Scores(self.lm_head(features_ND[-1:]), features_ND, deep_ND)

    def score(self, tree: DraftTree, past: int, reads: tuple[int, ...] = ()) -> Scores:
        """One forward pass over all nodes; position = committed tokens + depth, attention = committed tokens + ancestors.

        ``past`` is how many tokens are committed, as far as the host knows: it says how much of the cache to look at.
        ``reads`` are the layers whose input comes back in ``deep_ND``.
        """
        wide = padded(tree, self.backend.tree_size(tree.size))
        span, size = self.cache.span(past + wide.size), tree.size
        logits_NV, features_ND, deep_ND = self._forward(wide.tokens_N, wide.shape.depths_N, wide.shape.sees_NN, span, reads)
        return Scores(logits_NV[:size], features_ND[:size], None if deep_ND is None else deep_ND[:size])

    def commit(self, accepted: Accepted) -> None:
        """Of the tree scored last, keep the nodes of the accepted path and drop the rest."""
        self.cache.commit(accepted.path_P, accepted.length)

    @torch.inference_mode()
    def warm(self, sizes: Iterable[int], reads: tuple[int, ...] = ()) -> None:
        """Compile or capture what scoring trees of these sizes takes, at every length of text."""
        self.cache.truncate(0)
        for size in sorted({self.backend.tree_size(size) for size in sizes}):
            for past in self.lengths(size):
                self.score(DraftTree.chain([0] * size, self.device), past, reads)

    def lengths(self, rows: int) -> list[int]:
        """Of a text, in tokens: the shortest for each span of the cache that is looked at when ``rows`` more are written."""
        return list({self.cache.span(past + rows): past for past in reversed(range(1, self.context))}.values())

    def _score(self, tokens_N: Tensor, depths_N: Tensor, sees_NN: Tensor, span: int, reads: tuple[int, ...]) -> Scores:
        start = self.cache.length
        mask = self.cache.mask(start, sees_NN, span)
        features_ND, deep_ND = self.stack.extend(self.embed(tokens_N.clamp(min=0)), start + depths_N, start, mask, reads)
        return Scores(self.lm_head(features_ND), features_ND, deep_ND)


def refuse(config: PreTrainedConfig, what: str = "target") -> None:
    """Raise UserError, by name, for a model that our cache cannot serve."""
    kind = config.model_type
    if kind not in FAMILIES:
        raise UserError(f"{what} of type {kind!r} is not supported; supported types: {', '.join(FAMILIES)}")
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    sliding = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    if layers != {"full_attention"} or (kind == "mistral" and sliding):
        found = ", ".join(sorted(layers - {"full_attention"})) or "sliding_attention"
        raise UserError(
            f"{what} of type {kind!r} has {found} layers, whose cache cannot be rolled back to drop rejected drafts; "
            "choose one with full attention in every layer (sliding_window null)"
        )
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in LENGTH_DEPENDENT_ROPE:
        raise UserError(
            f"{what} of type {kind!r} has {rope} rotary factors, which a tree reaching past a boundary switches for all its nodes; "
            "choose one whose rotary factors do not depend on the length"
        )
    if config._attn_implementation not in KERNELS:
        raise UserError(f"attention {config._attn_implementation!r} takes no tree mask here; choose {' or '.join(KERNELS)}")
