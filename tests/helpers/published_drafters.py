"""Tiny drafters in published layouts, and a reference computation of their logits in plain torch.

Medusa's and EAGLE's layouts, as their authors' repositories on the hub have them.
"""

import json
from typing import Any

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

H, I = 32, 48  # noqa: E741 (a width, as in the layouts' facts)
LLAMA = {"architectures": ["LlamaForCausalLM"], "hidden_size": H, "intermediate_size": I, "num_hidden_layers": 1, "num_attention_heads": 4}
BASE = {"medusa_num_heads": 2, "medusa_num_layers": 1, "base_model_name_or_path": "someone/target"}
SHAPE = {  # of a layer that fits helpers.tiny_target
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "num_hidden_layers": 1,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-3,
    "vocab_size": 259,
}
# Layout -> kind, config.json, arguments of the tensors' shapes.
LAYOUTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "medusa": ("medusa", BASE, {"heads": 4, "blocks": 1}),  # configs of published weights count two heads, whatever the file has
    "medusa-2-blocks": ("medusa", BASE | {"medusa_num_layers": 2, "medusa_num_heads": 3}, {"heads": 3, "blocks": 2}),
    "eagle": ("eagle", LLAMA, {"bias": True}),
    "eagle-no-bias": ("eagle", LLAMA | {"bias": False, "num_key_value_heads": 1}, {"bias": False, "groups": 1}),
    "eagle-own-rope": (
        "eagle",
        LLAMA | {"rope_theta": 500.0, "rms_norm_eps": 0.1, "head_dim": 6, "num_key_value_heads": 2},
        {"width": 6, "groups": 2},
    ),
    "eagle-linear-rope": ("eagle", LLAMA | {"rope_scaling": {"type": "linear", "factor": 4.0}}, {"embed": "target"}),
    "eagle-own-embedding": ("eagle", LLAMA, {"embed": "own"}),
    "eagle-qwen2": ("eagle", LLAMA | {"qkv_bias": True, "model_type": "qwen2"}, {"qkv_bias": True, "embed": "target"}),
}
NAMES = {("medusa", "pt"): "medusa_lm_head.pt", ("eagle", "pt"): "pytorch_model.bin"}
NAMES |= {("medusa", "safetensors"): "medusa_lm_head.safetensors", ("eagle", "safetensors"): "model.safetensors"}


def tensors_of(layout, target):
    """Return random tensors of a layout in fp32, large enough that a wrong one changes the logits."""
    kind, _, made = LAYOUTS[layout]
    shapes = medusa_shapes(target.config.vocab_size, **made) if kind == "medusa" else eagle_shapes(target.config.vocab_size, **made)
    rng = torch.Generator().manual_seed(5)
    tensors = {name: torch.randn(shape, generator=rng) * 0.3 for name, shape in shapes.items()}
    if made.get("embed") == "target":
        tensors["embed_tokens.weight"] = target.get_input_embeddings().weight.detach().float().clone()
    return tensors


def medusa_shapes(vocab, heads, blocks):
    """Return the tensor shapes of Medusa heads."""
    shapes: dict[str, tuple[int, ...]] = {}
    for h in range(heads):
        for r in range(blocks):
            shapes |= {f"{h}.{r}.linear.weight": (H, H), f"{h}.{r}.linear.bias": (H,)}
        shapes[f"{h}.{blocks}.weight"] = (vocab, H)
    return shapes


def eagle_shapes(vocab, bias=True, groups=4, width=8, qkv_bias=False, embed=None):
    """Return the tensor shapes of an EAGLE drafter."""
    layer = {"mlp.gate_proj": (I, H), "mlp.up_proj": (I, H), "mlp.down_proj": (H, I), "post_attention_layernorm": (H,)}
    layer |= {f"self_attn.{name}_proj": (heads * width, H) for name, heads in (("q", 4), ("k", groups), ("v", groups))}
    layer["self_attn.o_proj"] = (H, 4 * width)
    shapes = {"fc.weight": (H, 2 * H)} | {f"layers.0.{name}.weight": shape for name, shape in layer.items()}
    if bias:
        shapes["fc.bias"] = (H,)
    if qkv_bias:
        shapes |= {f"layers.0.self_attn.{name}_proj.bias": (layer[f"self_attn.{name}_proj"][0],) for name in "qkv"}
    return shapes | ({"embed_tokens.weight": (vocab, H)} if embed else {})


def write(folder, layout, tensors, form="safetensors", **config):
    """Write a drafter's folder and return its weight file; ``config`` overrides entries of config.json."""
    kind, facts, _ = LAYOUTS[layout]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(facts | config))
    path = folder / NAMES[kind, form]
    save_file(tensors, path) if form == "safetensors" else torch.save(tensors, path)
    return path


def eagle3_tensors(drafted=259, width=32, embeds=False, seed=0, *, features=2, layer="midlayer", biases=(), norms=()):
    """EAGLE-3's tensors for a target of 259 tokens, 32 wide; heads 8 wide, one of keys for four of queries.

    ``features`` of the target's layers go into ``fc``; ``biases`` are the linear parts that have one, ``norms`` those of attention.
    """
    rng = torch.Generator().manual_seed(seed)
    shapes = {
        **({"fc.weight": (width, features * 32)} if features else {}),
        **{f"{layer}.{name}.weight": (width,) for name in ("hidden_norm", "input_layernorm", "post_attention_layernorm")},
        f"{layer}.self_attn.q_proj.weight": (32, 2 * width),
        **{f"{layer}.self_attn.{name}_proj.weight": (8, 2 * width) for name in "kv"},
        f"{layer}.self_attn.o_proj.weight": (width, 32),
        **{f"{layer}.mlp.{name}_proj.weight": (48, width) for name in ("gate", "up")},
        f"{layer}.mlp.down_proj.weight": (width, 48),
        "norm.weight": (width,),
        "lm_head.weight": (drafted, width),
        **({"embed_tokens.weight": (259, width)} if embeds else {}),
        **{f"{layer}.self_attn.{name}_norm.weight": (8,) for name in norms},
    }
    for name in biases:
        own = name if name == "fc" else f"{layer}.{name}"
        shapes[f"{own}.bias"] = shapes[f"{own}.weight"][:1]
    tensors = {name: torch.randn(shape, generator=rng) * 0.3 + ("norm" in name) for name, shape in shapes.items()}
    if drafted < 259:
        chosen = torch.randperm(259, generator=rng)[:drafted].sort().values
        tensors["d2t"] = chosen - torch.arange(drafted)
        tensors["t2d"] = torch.zeros(259, dtype=torch.bool).index_fill(0, chosen, True)
    return tensors


def medusa_logits(layout, tensors, model, tokens, features_TD, path):
    """Return the logits after ``path``, from the feature of the last token."""
    head, x_D = len(path), features_TD[-1]
    for block in range(LAYOUTS[layout][2]["blocks"]):
        x_D = x_D + F.silu(tensors[f"{head}.{block}.linear.weight"] @ x_D + tensors[f"{head}.{block}.linear.bias"])
    return tensors[f"{head}.{LAYOUTS[layout][2]['blocks']}.weight"] @ x_D


def eagle_logits(layout, tensors, model, tokens, features_TD, path):
    """Return the logits after ``path``.

    Row i reads the embedding of token i + 1 and the feature of token i; drafts are read with estimated features.
    """
    embedding = tensors.get("embed_tokens.weight", model.get_input_embeddings().weight)
    for token in (*path, None):
        x_TD = torch.cat([embedding[torch.tensor(tokens[1:])], features_TD], dim=-1) @ tensors["fc.weight"].T
        estimate_D = eagle_layer(LAYOUTS[layout][1], tensors, x_TD + tensors.get("fc.bias", 0.0))[-1]
        tokens, features_TD = [*tokens, token], torch.cat([features_TD, estimate_D[None]])
    return model.lm_head.weight @ estimate_D


def eagle_layer(config, tensors, x_TD):
    """Compute a Llama layer without its first norm."""
    places, heads = len(x_TD), config["num_attention_heads"]
    width = config.get("head_dim", H // heads)

    def projected(name):
        own = f"layers.0.self_attn.{name}_proj"
        return (x_TD @ tensors[f"{own}.weight"].T + tensors.get(f"{own}.bias", 0.0)).view(places, -1, width).transpose(0, 1)

    turned = angles(config, places, width)
    query, key = (turn(projected(name), turned) for name in "qk")
    key, value = (each.repeat_interleave(heads // len(each), dim=0) for each in (key, projected("v")))
    scores = query @ key.transpose(1, 2) / width**0.5
    scores = scores.masked_fill(torch.ones(places, places).triu(1).bool(), -torch.inf)
    x_TD = x_TD + (scores.softmax(-1) @ value).transpose(0, 1).flatten(1) @ tensors["layers.0.self_attn.o_proj.weight"].T
    mean_square = x_TD.pow(2).mean(-1, keepdim=True) + config.get("rms_norm_eps", 1e-6)
    normed_TD = tensors["layers.0.post_attention_layernorm.weight"] * x_TD / mean_square.sqrt()
    gate, up, down = (tensors[f"layers.0.mlp.{name}_proj.weight"] for name in ("gate", "up", "down"))
    return x_TD + (F.silu(normed_TD @ gate.T) * (normed_TD @ up.T)) @ down.T


def angles(config, places, width):
    """Return the rotary angles of each position."""
    scale = config.get("rope_scaling", {}).get("factor", 1.0)
    speed = config.get("rope_theta", 10000.0) ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.arange(places, dtype=torch.float64)[:, None] / scale * speed


def turn(x_GTD, angles_T):
    """Rotate coordinate i with coordinate i + D / 2."""
    first, second = x_GTD.chunk(2, dim=-1)
    cos, sin = angles_T.cos(), angles_T.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


REFERENCE = {"medusa": medusa_logits, "eagle": eagle_logits}
