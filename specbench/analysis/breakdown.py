"""Breakdowns of a run: time by part of a step, acceptance by depth, and MAT by position in the answer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from specbench.analysis.frames import OVERALL, of_category, pair

PARTS = {"draft": "draft_s", "verify": "verify_s", "commit": "commit_s", "other": "other_s", "prefill": "prefill_s"}
BIN = 16  # output tokens


def time_split(turns: pd.DataFrame, arms: Sequence[str], categories: Sequence[str]) -> pd.DataFrame:
    """Return each part's milliseconds per step, milliseconds per output token, and share of the end-to-end time.

    One row per arm, category, and part. ``other`` is the rest of a turn: its time without prefill and
    steps. The five shares add up to 1; the milliseconds per token add up to the end-to-end time per
    token. Prefill has no milliseconds per step, and imported answers have no parts: these are NaN.
    """
    rows: list[dict[str, Any]] = []
    for arm in arms:
        for category in (*categories, OVERALL):
            own = pair(of_category(turns, category), arm).arm
            sums = own[[*PARTS.values(), "total_s", "steps", "tokens"]].sum(min_count=1)
            rows += [{"arm": arm, "category": category, "part": part, **_shares(sums, part)} for part in PARTS]
    return pd.DataFrame(rows, columns=["arm", "category", "part", "ms_per_step", "ms_per_token", "share"])


def _shares(sums: pd.Series, part: str) -> dict[str, float]:
    seconds = float(sums[PARTS[part]])
    per_step = np.nan if part == "prefill" or not sums["steps"] else 1e3 * seconds / sums["steps"]
    per_token = 1e3 * seconds / sums["tokens"] if sums["tokens"] else np.nan
    share = seconds / sums["total_s"] if sums["total_s"] else np.nan
    return {"ms_per_step": per_step, "ms_per_token": per_token, "share": share}


def acceptance(turns: pd.DataFrame, arms: Sequence[str], categories: Sequence[str]) -> pd.DataFrame:
    """Return the acceptance rates at each depth d, from 1 to the depth of the deepest draft tree.

    One row per arm, category, and depth. ``marginal`` is the share of all ``steps`` that accepted at least d
    drafts; a step whose tree is shallower counts as one that did not. 1 + the sum over depths is MAT before
    clipping. ``drafted`` is the share of all steps whose tree reached depth d. ``reached`` is the number of steps
    that accepted at least d - 1 drafts of a tree of depth d or more, and ``conditional`` the share of these that
    accepted at least d drafts.
    """
    rows: list[dict[str, Any]] = []
    for arm in arms:
        for category in (*categories, OVERALL):
            own = pair(of_category(turns, category), arm).arm
            depths, accepted = (np.array([x for values in own[name] for x in values], dtype=int) for name in ("depths", "accepted"))
            deepest = depths.max(initial=0)
            rows += [{"arm": arm, "category": category, **_rates_at(depths, accepted, d)} for d in range(1, deepest + 1)]
    return pd.DataFrame(rows, columns=["arm", "category", "depth", "steps", "drafted", "reached", "marginal", "conditional"])


def _rates_at(depths: np.ndarray, accepted: np.ndarray, depth: int) -> dict[str, Any]:
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


def along_the_answer(turns: pd.DataFrame, arms: Sequence[str]) -> pd.DataFrame:
    """Return MAT by position in the answer, over all categories.

    One row per arm and bin: the steps that begin after ``start`` to ``start + BIN`` - 1 output tokens.
    """
    rows: list[dict[str, Any]] = []
    for arm in arms:
        own = pair(turns, arm).arm
        answers = list(zip(own["prefill_tokens"], own["emitted_by_step"], strict=True))
        emitted = np.array([x for _, steps in answers for x in steps], dtype=int)
        bins = np.array([x for first, steps in answers for x in np.cumsum([first, *steps])[:-1]], dtype=int) // BIN

        counts, totals = np.bincount(bins), np.bincount(bins, weights=emitted)
        rows += [{"arm": arm, "start": i * BIN, "steps": int(n), "mat": totals[i] / n if n else np.nan} for i, n in enumerate(counts)]
    return pd.DataFrame(rows, columns=["arm", "start", "steps", "mat"])
