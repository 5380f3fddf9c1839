"""Where a method's time goes, and how deep its drafts are accepted: one row per method, category and part or depth."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from specbench.analysis.frames import OVERALL, of_category, pair

PARTS = {"draft": "draft_s", "verify": "verify_s", "commit": "commit_s", "other": "other_s", "prefill": "prefill_s"}
BIN = 16  # tokens


def time_split(turns: pd.DataFrame, methods: Sequence[str], categories: Sequence[str]) -> pd.DataFrame:
    """Milliseconds per step and per output token, and share of the end-to-end time, of each part.

    ``other`` is what remains of a turn beside prefill and steps. The five shares add up to 1, the milliseconds per token
    to the turns' end-to-end time per token. Prefill has no milliseconds per step; imported answers have no parts: NaN.
    """
    rows: list[dict[str, Any]] = []
    for method in methods:
        for category in (*categories, OVERALL):
            sums = pair(of_category(turns, category), method).method[[*PARTS.values(), "total_s", "steps", "tokens"]].sum(min_count=1)
            rows += [{"method": method, "category": category, "part": part, **_shares(sums, part)} for part in PARTS]
    return pd.DataFrame(rows, columns=["method", "category", "part", "ms_per_step", "ms_per_token", "share"])


def _shares(sums: pd.Series, part: str) -> dict[str, float]:
    seconds = float(sums[PARTS[part]])
    per_step = np.nan if part == "prefill" or not sums["steps"] else 1e3 * seconds / sums["steps"]
    per_token = 1e3 * seconds / sums["tokens"] if sums["tokens"] else np.nan
    return {"ms_per_step": per_step, "ms_per_token": per_token, "share": seconds / sums["total_s"] if sums["total_s"] else np.nan}


def acceptance(turns: pd.DataFrame, methods: Sequence[str], categories: Sequence[str]) -> pd.DataFrame:
    """Acceptance rates at each depth d >= 1 of the deepest tree.

    ``marginal``: share of all ``steps`` that accepted at least d drafts, a shallower tree being one that did not; 1 + the sum
    over depths is MAT before clipping. ``drafted``: share of all steps whose tree reached depth d. ``conditional``: share of
    the ``reached`` steps, those that accepted at least d - 1 drafts of a tree of depth d or more, that accepted at least d.
    """
    rows: list[dict[str, Any]] = []
    for method in methods:
        for category in (*categories, OVERALL):
            chosen = pair(of_category(turns, category), method).method
            depths, accepted = (np.array([x for one in chosen[name] for x in one], dtype=int) for name in ("depths", "accepted"))
            rows += [
                {"method": method, "category": category, **_at_depth(depths, accepted, d)} for d in range(1, depths.max(initial=0) + 1)
            ]
    return pd.DataFrame(rows, columns=["method", "category", "depth", "steps", "drafted", "reached", "marginal", "conditional"])


def _at_depth(depths: np.ndarray, accepted: np.ndarray, depth: int) -> dict[str, Any]:
    drafted, passed = depths >= depth, accepted >= depth
    reached = drafted & (accepted >= depth - 1)
    return {
        "depth": depth,
        "steps": len(accepted),
        "drafted": float(drafted.mean()),
        "reached": int(reached.sum()),
        "marginal": float(passed.mean()),
        "conditional": float(passed.sum() / reached.sum()) if reached.any() else np.nan,
    }


def along_the_answer(turns: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    """MAT by place in the answer: steps that begin between ``start`` and ``start + BIN`` emitted tokens, over all categories."""
    rows: list[dict[str, Any]] = []
    for method in methods:
        rows_of = pair(turns, method).method
        answers = list(zip(rows_of["prefill_tokens"], rows_of["emitted_by_step"], strict=True))
        emitted = np.array([x for _, one in answers for x in one], dtype=int)
        places = np.array([x for first, one in answers for x in np.cumsum([first, *one])[:-1]], dtype=int) // BIN
        counts, totals = np.bincount(places), np.bincount(places, weights=emitted)
        rows += [{"method": method, "start": i * BIN, "steps": int(n), "mat": totals[i] / n if n else np.nan} for i, n in enumerate(counts)]
    return pd.DataFrame(rows, columns=["method", "start", "steps", "mat"])
