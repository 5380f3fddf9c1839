"""A comparison of the time of reading a long prompt with transformers' own forward pass, where query heads share key heads."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from methods.core.target import Target
from specbench.studies.bench.finding import Finding
from specbench.studies.roofline.measure import filler, laps
from specbench.util.memory import gc_paused
from specbench.util.terminal import Console

TOKENS = 8000
PAIRS = 4
WANTED = 1 / 1.2  # at most 1.2 times transformers' time


def prefill_finding(dtype: torch.dtype, device: torch.device, console: Console, *, tokens: int = TOKENS, pairs: int = PAIRS) -> Finding:
    """Return transformers' seconds over ours for one prompt, pair by pair, on random weights that are nearly all attention."""
    what = f"prefill of {tokens:,} tokens, 8 query and 2 key heads / transformers' forward"
    console.print(f"measuring: {what}", markup=False)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=tokens + 1,
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa", dtype=dtype).to(device).eval().requires_grad_(False)
    prompt = filler(tokens, config.vocab_size)
    target, ids = Target(model, capacity=tokens + 1), torch.tensor([prompt], device=device)

    def ours() -> None:
        target.prefill(prompt)

    def theirs() -> None:
        model(input_ids=ids, use_cache=True, logits_to_keep=1)

    ratios = []
    with torch.inference_mode(), gc_paused():
        for side in (ours, theirs):
            laps(side, 1, device)
        for pair in range(pairs):
            seconds = {side: laps(side, 1, device)[0] for side in ((ours, theirs) if pair % 2 == 0 else (theirs, ours))}
            ratios.append(seconds[theirs] / seconds[ours])
    return Finding(f"{what}, speed", ratios, WANTED)
