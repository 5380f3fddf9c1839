"""The target model: scores a draft tree in one forward pass, then keeps the accepted path."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from methods.core.errors import UserError
from methods.core.kv_cache import KVCache
from methods.core.tree import DraftTree, device_shape_of

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
LENGTH_DEPENDENT_ROPE = ("longrope", "dynamic")  # of transformers' rope types
MAX_NODES = 128  # the largest tree, root included


class ContextOverflow(UserError):
    """The prompt leaves no room for a single new token."""


@dataclass(frozen=True)
class Scores:
    """What one target forward says of its N input tokens.

    ``features_ND`` is the last hidden state after the final norm, for every input token; ``logits_NV`` the next-token
    logits, of the last input token alone after a prefill.
    """

    logits_NV: Tensor
    features_ND: Tensor


class Target:
    """A causal language model and its cache of committed tokens; batch size 1.

    ``capacity`` is the longest conversation in tokens it must hold. Raises UserError for models whose forward pass or
    cache this project cannot take apart: see ``refuse``.
    """

    def __init__(self, model: PreTrainedModel, *, capacity: int):
        refuse(model.config)
        self.model, self.config = model, model.config
        self.context = min(capacity, model.config.max_position_embeddings)
        self.device, self.dtype = model.device, model.dtype
        self.embed, self.lm_head = model.get_input_embeddings(), model.get_output_embeddings()
        self.cache = KVCache(self.config, self.context + MAX_NODES, dtype=self.dtype, device=self.device)
        self._scored = 0

    def prefill(self, prompt: list[int]) -> Scores:
        self.cache.truncate(0)
        features_ND = self._forward(prompt, positions_N=None, mask=None)
        self._scored = 0
        return Scores(self.lm_head(features_ND[-1:]), features_ND)

    def score(self, tree: DraftTree) -> Scores:
        """One forward pass over all nodes; position = committed tokens + depth, attention = committed tokens + ancestors."""
        past, self._scored = self.cache.length, len(tree)
        shape = device_shape_of(tree.parents, self.device)
        mask = tree_mask(past, shape.ancestors_NN, self.config, self.dtype)
        features_ND = self._forward(tree.tokens, past + shape.depths_N, mask)
        return Scores(self.lm_head(features_ND), features_ND)

    def commit(self, path: list[int]) -> None:
        """Of the tree scored last, keep the nodes of ``path`` (root first) and drop the rest."""
        self.cache.keep(self.cache.length - self._scored, path)

    def _forward(self, tokens: list[int], positions_N: Tensor | None, mask: Tensor | None) -> Tensor:
        out = self.model.base_model(
            input_ids=torch.tensor([tokens], device=self.device),
            attention_mask=mask,
            position_ids=None if positions_N is None else positions_N[None],
            past_key_values=self.cache,
            use_cache=True,
        )
        return out.last_hidden_state[0]


def tree_mask(past: int, sees_NM: Tensor, config: PreTrainedConfig, dtype: torch.dtype) -> Tensor | None:
    """Attention mask 1 x 1 x N x (past + M): the whole past, then the M newest rows as ``sees_NM`` (bool) says.

    None where every row sees everything before it and nothing has to be hidden (one token): attention kernels are
    fastest without a mask. ``eager`` attention adds its mask, so there it has to be a float: a bool is silently wrong.
    """
    nodes = sees_NM.shape[0]
    if nodes == 1 and sees_NM.shape[1] == 1:
        return None
    allowed = torch.cat([sees_NM.new_ones(nodes, past), sees_NM], dim=1)[None, None]
    if config._attn_implementation != "eager":
        return allowed
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, torch.finfo(dtype).min)


def refuse(config: PreTrainedConfig) -> None:
    """Raise UserError, by name, for a model that cannot be a target."""
    kind = config.model_type
    if kind not in FAMILIES:
        raise UserError(f"target of type {kind!r} is not supported; supported types: {', '.join(FAMILIES)}")
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    sliding = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    if layers != {"full_attention"} or (kind == "mistral" and sliding):
        found = ", ".join(sorted(layers - {"full_attention"})) or "sliding_attention"
        raise UserError(
            f"target of type {kind!r} has {found} layers, whose cache cannot be rolled back to drop rejected drafts; "
            "choose a target with full attention in every layer (sliding_window null)"
        )
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rope in LENGTH_DEPENDENT_ROPE:
        raise UserError(
            f"target of type {kind!r} has {rope} rotary factors, which a tree reaching past a boundary switches for all its nodes; "
            "choose a target whose rotary factors do not depend on the length"
        )
    if config._attn_implementation not in ("sdpa", "eager"):
        raise UserError(f"attention {config._attn_implementation!r} takes no tree mask here; choose sdpa or eager")
