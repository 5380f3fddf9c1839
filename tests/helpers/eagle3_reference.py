"""EAGLE-3's guesses computed in plain torch from tensors of the published names, over whole texts and without a cache."""

from functools import lru_cache

import torch
from torch.nn import functional as F

HEAD = 8  # width of a head in every small model here


def reference_logits(tensors, model, reads, tokens, path, *, eps, theta=10000.0, norm_before_residual=False):
    """Return the logits over the draft vocabulary after ``tokens`` and ``path``.

    ``reads`` are the target's layers that are read, none for its final features. Biases, norms of queries and
    keys, and an embedding are used where the tensors hold them.
    """
    tensors = {name.replace("layers.0.", "midlayer."): tensor for name, tensor in tensors.items()}
    embedding_VD = tensors.get("embed_tokens.weight", model.get_input_embeddings().weight)
    hidden_TD, rows = entering(model, tuple(tokens[:-1]), tuple(reads)), tokens[1:]
    if reads:
        hidden_TD = linear(tensors, "fc", hidden_TD)
    out_D = last_output(tensors, embedding_VD[rows], hidden_TD, eps, theta, norm_before_residual)
    for token in path:
        rows, hidden_TD = [*rows, token], torch.cat([hidden_TD, out_D[None]])
        out_D = last_output(tensors, embedding_VD[rows], hidden_TD, eps, theta, norm_before_residual)
    return tensors["lm_head.weight"] @ normed(tensors["norm.weight"], out_D, eps)


@lru_cache(maxsize=1)
def entering(model, tokens, reads):
    """Return the inputs of these target layers, side by side; the number of layers stands for the last norm's input."""
    seen, body = {}, model.base_model
    parts = [*body.layers, body.norm] if reads else []
    hooks = [part.register_forward_pre_hook(lambda part, given, i=i: seen.update({i: given[0][0]})) for i, part in enumerate(parts)]
    final_TD = body(input_ids=torch.tensor([list(tokens)]), use_cache=False).last_hidden_state[0]
    for hook in hooks:
        hook.remove()
    return torch.cat([seen[layer] for layer in reads], dim=-1) if reads else final_TD


def linear(tensors, name, x):
    return x @ tensors[f"{name}.weight"].T + tensors.get(f"{name}.bias", 0.0)


def last_output(tensors, embeddings_TD, hidden_TD, eps, theta, norm_before_residual):
    """Run the decoder layer over all rows and return its output at the last."""
    norms = [tensors[f"midlayer.{name}.weight"] for name in ("input_layernorm", "hidden_norm", "post_attention_layernorm")]
    x = torch.cat([normed(norms[0], embeddings_TD, eps), normed(norms[1], hidden_TD, eps)], dim=-1)
    query, key, value = (linear(tensors, f"midlayer.self_attn.{name}_proj", x).unflatten(-1, (-1, HEAD)).transpose(0, 1) for name in "qkv")
    if "midlayer.self_attn.q_norm.weight" in tensors:
        query, key = (normed(tensors[f"midlayer.self_attn.{name}_norm.weight"], each, eps) for name, each in (("q", query), ("k", key)))
    query, key = turned(query, theta), turned(key, theta)
    key, value = (each.repeat_interleave(len(query) // len(key), dim=0) for each in (key, value))
    later_TT = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    scores = (query @ key.transpose(1, 2) / HEAD**0.5).masked_fill(later_TT, -torch.inf)
    seen_TD = linear(tensors, "midlayer.self_attn.o_proj", (scores.softmax(-1) @ value).transpose(0, 1).flatten(1))
    if norm_before_residual:
        hidden_TD = normed(norms[1], hidden_TD, eps)
    hidden_D = (hidden_TD + seen_TD)[-1]
    x_D = normed(norms[2], hidden_D, eps)
    gate, up = (linear(tensors, f"midlayer.mlp.{name}_proj", x_D) for name in ("gate", "up"))
    return hidden_D + linear(tensors, "midlayer.mlp.down_proj", F.silu(gate) * up)


def normed(weight_D, x, eps):
    return weight_D * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def turned(x_HTD, theta):
    """Apply the rotary embedding at positions 0, 1, …; angles are in fp32, as in transformers."""
    angles = torch.arange(x_HTD.shape[1]).float()[:, None] * (1.0 / theta ** (torch.arange(0, HEAD, 2).float() / HEAD))
    cos, sin = angles.cos().double().repeat(1, 2), angles.sin().double().repeat(1, 2)
    half = torch.cat([-x_HTD[..., HEAD // 2 :], x_HTD[..., : HEAD // 2]], dim=-1)
    return x_HTD * cos + half * sin
