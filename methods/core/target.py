"""The target model: scores a draft tree in one forward pass, then keeps the accepted path."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from methods.core.acceptance import Accepted
from methods.core.attention import KERNELS
from methods.core.backend import EAGER, Backend
from methods.core.errors import UserError
from methods.core.stack import Stack
from methods.core.tree import MAX_TREE_SIZE, DraftTree, padded
from methods.core.vocabulary import rows_of

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
LENGTH_DEPENDENT_ROPE = ("longrope", "dynamic")  # of transformers' rope types


class ContextOverflow(UserError):
    """An error for a prompt that leaves no room for a single new token."""


class Scores(NamedTuple):
    """The result of one target forward over N input tokens.

    After a prefill, ``logits_NV`` has a single row, that of the last token.
    """

    logits_NV: Tensor  # for the next token after each input token
    features_ND: Tensor  # last hidden states after the final norm
    deep_ND: Tensor | None = None  # the inputs of the layers asked for, concatenated


class Target:
    """A causal language model and its cache of committed tokens; batch size 1.

    ``capacity`` is the longest conversation in tokens it must hold. Raises UserError for models
    whose forward pass or cache is not supported: see ``refuse``.
    """

    def __init__(self, model: PreTrainedModel, *, capacity: int, backend: Backend = EAGER):
        refuse(model.config)
        self.backend, self.config = backend, model.config
        self.context = min(capacity, model.config.max_position_embeddings)
        self.device, self.dtype = model.device, model.dtype

        prepared: Any = backend.prepare(model)
        self._unprepared_head: Any = model.get_output_embeddings()  # whose rows can still be told apart
        self.embed, self.lm_head = prepared.get_input_embeddings(), prepared.get_output_embeddings()
        self.stack = Stack(prepared.base_model, self.config, self.context + MAX_TREE_SIZE, dtype=self.dtype, device=self.device)
        self.cache = self.stack.cache
        assert backend is EAGER or len(self.cache.buffers) == 1, "only the eager back end runs a target on several devices"
        self._forward = backend.capture(self._score)

    @property
    def devices(self) -> list[torch.device]:
        """The devices it is on: first the target's own, then those that hold only layers."""
        return list(dict.fromkeys([self.device, *(buffer.device for buffer in self.cache.buffers)]))

    def head_over(self, tokens_U: Tensor | None) -> nn.Module:
        """Return the output layer over these tokens, whose rows are copied to a small matrix; over all without any."""
        if tokens_U is None:
            return self.lm_head
        return self.backend.prepare(nn.ModuleList([rows_of(self._unprepared_head, tokens_U)]))[0]

    def prefill(self, prompt: list[int], reads: tuple[int, ...] = ()) -> Scores:
        """Forget the cache, read the prompt, and return its scores; ``reads`` as in ``score``."""
        features_ND, deep_ND = self.stack.read(self.embed(torch.tensor(prompt, device=self.device)), reads)
        return Scores(self.lm_head(features_ND[-1:]), features_ND, deep_ND)

    def score(self, tree: DraftTree, past: int, reads: tuple[int, ...] = ()) -> Scores:
        """Score all nodes of a tree in one forward pass.

        A node's position is the number of committed tokens plus its depth; it attends to the
        committed tokens and to its ancestors. ``past`` is the host's count of committed tokens, used
        to bound how much of the cache is read. ``reads`` are the layers whose input is returned in
        ``deep_ND``.
        """
        wide = padded(tree, self.backend.tree_size(tree.size))
        span, size = self.cache.span(past + wide.size), tree.size
        logits_NV, features_ND, deep_ND = self._forward(wide.tokens_N, wide.shape.depths_N, wide.shape.sees_NN, span, reads)
        return Scores(logits_NV[:size], features_ND[:size], None if deep_ND is None else deep_ND[:size])

    def commit(self, accepted: Accepted) -> None:
        """Keep the accepted path of the tree scored last and drop its other nodes."""
        self.cache.commit(accepted.path_P, accepted.length)

    def wipe(self) -> None:
        """Clear what a failed forward pass may have left in the cache."""
        self.cache.wipe()

    @torch.inference_mode()
    def warm_up(self, sizes: Iterable[int], reads: tuple[int, ...] = ()) -> None:
        """Compile or capture the scoring of trees of these sizes, at every length of text."""
        self.cache.truncate(0)
        for size in sorted({self.backend.tree_size(size) for size in sizes}):
            for past in self.lengths(size):
                self.score(DraftTree.chain([0] * size, self.device), past, reads)

    def lengths(self, rows: int) -> list[int]:
        """Return one text length in tokens for each cache span used when ``rows`` more are written.

        It is the shortest length with that span.
        """
        return list({self.cache.span(past + rows): past for past in reversed(range(1, self.context))}.values())

    def _score(self, tokens_N: Tensor, depths_N: Tensor, sees_NN: Tensor, span: int, reads: tuple[int, ...]) -> Scores:
        start = self.cache.length
        mask = self.cache.mask(start, sees_NN, span)
        features_ND, deep_ND = self.stack.extend(self.embed(tokens_N.clamp(min=0)), start + depths_N, start, mask, reads)
        return Scores(self.lm_head(features_ND), features_ND, deep_ND)


def refuse(config: PreTrainedConfig, what: str = "target") -> None:
    """Raise UserError for a model that is not supported, naming the reason."""
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

    quantized = getattr(config, "quantization_config", None)
    if quantized:
        how = quantized.get("quant_method", "an unnamed method") if isinstance(quantized, dict) else type(quantized).__name__
        raise UserError(
            f"{what} of type {kind!r} is quantised with {how} (quantization_config), which is not supported; "
            "choose its checkpoint in bf16, fp16 or fp32"
        )

    parameters = getattr(config, "rope_parameters", None) or {}
    theta = parameters.get("rope_theta", 1.0)
    if not theta > 0:
        raise UserError(f"{what} of type {kind!r} has rope_theta={theta!r}; it must be above 0, correct its config.json")

    rope = parameters.get("rope_type", "default")
    if rope in LENGTH_DEPENDENT_ROPE:
        raise UserError(
            f"{what} of type {kind!r} has {rope} rotary factors that change with the length of the text, for a whole tree at once; "
            "choose one whose rotary factors do not depend on the length"
        )

    if config._attn_implementation not in KERNELS:
        raise UserError(f"attention {config._attn_implementation!r} does not support tree masks; choose {' or '.join(KERNELS)}")
