"""EAGLE-3's guesses computed in plain torch from tensors of the published names, over whole texts and without a cache."""

import torch
from torch.nn import functional as F

from helpers.small_models import entered

HEAD = 8  # width of a head in every small model here


def reference_logits(tensors, model, reads, tokens, path, *, eps, theta=10000.0):
    """Return the logits over the draft vocabulary after ``tokens`` and ``path``; ``reads`` are the target's layers that are read."""
    embedding_VD = tensors.get("embed_tokens.weight", model.get_input_embeddings().weight)
    hidden_TD, rows = entered(model, tokens[:-1], reads) @ tensors["fc.weight"].T, tokens[1:]
    out_D = last_output(tensors, embedding_VD[rows], hidden_TD, eps, theta)
    for token in path:
        rows, hidden_TD = [*rows, token], torch.cat([hidden_TD, out_D[None]])
        out_D = last_output(tensors, embedding_VD[rows], hidden_TD, eps, theta)
    return tensors["lm_head.weight"] @ normed(tensors["norm.weight"], out_D, eps)


def last_output(tensors, embeddings_TD, hidden_TD, eps, theta):
    """Run the decoder layer over all rows and return its output at the last."""
    norms = [tensors[f"midlayer.{name}.weight"] for name in ("input_layernorm", "hidden_norm", "post_attention_layernorm")]
    x = torch.cat([normed(norms[0], embeddings_TD, eps), normed(norms[1], hidden_TD, eps)], dim=-1)
    query, key, value = (
        (x @ tensors[f"midlayer.self_attn.{name}_proj.weight"].T).unflatten(-1, (-1, HEAD)).transpose(0, 1) for name in "qkv"
    )
    query, key = turned(query, theta), turned(key, theta)
    key, value = (each.repeat_interleave(len(query) // len(key), dim=0) for each in (key, value))
    later_TT = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    scores = (query @ key.transpose(1, 2) / HEAD**0.5).masked_fill(later_TT, -torch.inf)
    seen_TD = (scores.softmax(-1) @ value).transpose(0, 1).flatten(1) @ tensors["midlayer.self_attn.o_proj.weight"].T
    hidden_D = (hidden_TD + seen_TD)[-1]
    x_D = normed(norms[2], hidden_D, eps)
    gate, up, down = (tensors[f"midlayer.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
    return hidden_D + down @ (F.silu(gate @ x_D) * (up @ x_D))


def normed(weight_D, x, eps):
    return weight_D * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def turned(x_HTD, theta):
    """Apply the rotary embedding at positions 0, 1, …; angles are in fp32, as in transformers."""
    angles = torch.arange(x_HTD.shape[1]).float()[:, None] * (1.0 / theta ** (torch.arange(0, HEAD, 2).float() / HEAD))
    cos, sin = angles.cos().double().repeat(1, 2), angles.sin().double().repeat(1, 2)
    half = torch.cat([-x_HTD[..., HEAD // 2 :], x_HTD[..., : HEAD // 2]], dim=-1)
    return x_HTD * cos + half * sin
