"""One decoder layer over [token embedding; target feature] (EAGLE, Li et al., 2024): shared by the drafters that use one.

Row i pairs the target's feature at token i with the embedding of token i + 1; its output estimates the target's feature at
token i + 1, from which the target's own head guesses token i + 2.
"""

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel, PreTrainedConfig

from methods.core.kv_cache import KVCache, head_dim
from methods.core.target import MAX_NODES, Target, tree_mask


def layer_config(target: PreTrainedConfig) -> LlamaConfig:
    """One Llama layer of the target's width, whatever the target's family."""
    config = LlamaConfig(
        vocab_size=target.vocab_size,
        hidden_size=target.hidden_size,
        intermediate_size=target.intermediate_size,
        num_hidden_layers=1,
        num_attention_heads=target.num_attention_heads,
        num_key_value_heads=target.num_key_value_heads,
        head_dim=head_dim(target),
        max_position_embeddings=target.max_position_embeddings,
        rms_norm_eps=target.rms_norm_eps,
        rope_parameters=target.rope_parameters,
    )
    config._attn_implementation = target._attn_implementation
    return config


class FeatureLayer(nn.Module):
    """The trained part: ``fc`` folds embedding and feature into one vector, then a Llama layer without its first norm."""

    def __init__(self, target: PreTrainedConfig):
        super().__init__()
        self.config = layer_config(target)
        self.fc = nn.Linear(2 * target.hidden_size, target.hidden_size)
        self.body = LlamaModel(self.config)
        for path in ("embed_tokens", "layers.0.input_layernorm", "norm"):
            self.body.set_submodule(path, nn.Identity())

    def start_from(self) -> None:
        """Begin by passing the feature on: the guess is then the target's own for one token earlier, not noise."""
        width = self.fc.out_features
        nn.init.normal_(self.fc.weight[:, :width], std=0.02)
        nn.init.eye_(self.fc.weight[:, width:])
        nn.init.zeros_(self.fc.bias)

    def forward(
        self,
        embeddings_BTD: Tensor,
        features_BTD: Tensor,
        positions_T: Tensor | None = None,
        mask: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Estimated features BTD. Without a cache: causal attention within the rows given (training)."""
        return self.body(
            inputs_embeds=self.fc(torch.cat([embeddings_BTD, features_BTD], dim=-1)),
            attention_mask=mask,
            position_ids=None if positions_T is None else positions_T[None],
            past_key_values=cache,
            use_cache=cache is not None,
        ).last_hidden_state


class FeatureStream:
    """A feature layer reading along while a text is decoded: true features of committed tokens, each read once."""

    def __init__(self, layer: FeatureLayer, target: Target):
        self.layer, self.embed, self.config = layer, target.embed, layer.config
        self.cache = KVCache(layer.config, target.context + MAX_NODES, dtype=target.dtype, device=target.device)

    def begin(self, prompt: list[int], features_ND: Tensor) -> None:
        """A new text: read the prompt now, with the prefill, all but its last row, whose next token is not known yet."""
        self.restart(features_ND[:-1])
        if len(prompt) > 1:
            self.read(prompt)
        self.unread_ND = features_ND[-1:]

    def restart(self, features_ND: Tensor) -> None:
        """Forget everything read; N tokens are committed and unread."""
        self.cache.truncate(0)
        self.unread_ND = features_ND

    def observe(self, features_ND: Tensor) -> None:
        """N more tokens were committed; the last lot has been read."""
        self.unread_ND = features_ND

    def read(self, tokens: list[int]) -> Tensor:
        """The estimated feature at the last committed token, 1D; reads what verification left, nothing again."""
        past, new = self.cache.length, len(self.unread_ND)
        token_ids = torch.tensor(tokens[-new:], device=self.unread_ND.device)
        causal = torch.ones(new, new, dtype=torch.bool, device=self.unread_ND.device).tril()
        mask = tree_mask(past, causal, self.config, self.unread_ND.dtype) if past else None
        positions = torch.arange(past, past + new, device=self.unread_ND.device)
        return self.extend(token_ids, self.unread_ND, positions, mask)[-1:]

    def extend(self, tokens_N: Tensor, features_ND: Tensor, positions_N: Tensor, mask: Tensor | None) -> Tensor:
        """Run the layer on N more rows and leave them in the cache; estimated features ND."""
        return self.layer(self.embed(tokens_N)[None], features_ND[None], positions_N, mask, self.cache)[0]
