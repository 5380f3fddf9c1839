"""How often a drafter's guesses are the target's choice, on held-out text."""

from typing import Any

import numpy as np
import torch

from methods.core import weights
from methods.core.training import MAX_DEPTH, Batch

RANKS = 8  # how many of a drafter's guesses the static trees may use
POSITIONS = 512  # of a batch, at most


@torch.no_grad()
def rank_accuracy(module: Any, batches: list[Batch], at_most: int = POSITIONS) -> weights.RankAccuracy:
    """How often each rank of each level's guesses was the target's choice, on text whose earlier tokens are given."""
    hits = torch.zeros(MAX_DEPTH - 1, RANKS, dtype=torch.float64)
    seen, levels = torch.zeros(MAX_DEPTH - 1, 1, dtype=torch.float64), 0
    module.eval()
    for batch in batches:
        torch.manual_seed(0)
        flat_P = batch.positions(at_most)
        low_precision = next(batch.lm_head.parameters()).dtype != torch.float32
        with torch.autocast(flat_P.device.type, torch.bfloat16, enabled=low_precision):
            for i, level in enumerate(module.levels(batch, flat_P, MAX_DEPTH - 1)):
                counts_P = batch.counts_at(flat_P + i + 1)
                right_P1 = batch.lm_head(batch.features_at(flat_P + i + 1)).argmax(dim=-1, keepdim=True)
                right_PK = (level.logits_PV.topk(RANKS).indices == right_P1)[counts_P]
                hits[i] += right_PK.double().sum(dim=0).cpu()
                seen[i] += len(right_PK)
                levels = max(levels, i + 1)
    module.train()
    return tuple(tuple(round(p, 5) for p in row) for row in (hits / seen.clamp(min=1))[:levels].tolist())


def line(accuracy: weights.RankAccuracy) -> str:
    """For a human to follow."""
    first = [row[0] for row in accuracy]
    chain = 1 + sum(np.cumprod(first))
    return "held-out acceptance by level " + " ".join(f"{p:.3f}" for p in first) + f"  chain MAT {chain:.2f}"
