"""From the runs of a sweep to rows: what was measured at each target with each method, and the cost model's word on the same."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
import pandas as pd

from methods.core.errors import UserError
from specbench.analysis import metrics
from specbench.analysis.frames import Pair, pair, sums, turns_frame
from specbench.analysis.metrics import Measured
from specbench.analysis.stats import Array, Estimate, interval, resampled_sums
from specbench.store import records
from specbench.store.manifest import RunManifest
from specbench.store.records import BASELINE, Record
from specbench.studies.roofline.cost import Cost, target_cost
from specbench.studies.scale import sizes
from specbench.studies.scale.sweep import Found
from specbench.targets import DTYPES
from specbench.targets.shapes import SHAPES

ESTIMATES = ("mat", "verify_ratio", "round_cost", "speedup_decode", "speedup")  # each with its _low and _high
BY_QUESTION = ["category", "question_id"]


def points(found: Found, out: Path) -> tuple[pd.DataFrame, list[str]]:
    """One row a measured target and method, and one with the model's numbers alone for every other shape; and what failed.

    Columns: target, parameters, method, title, nodes, ``ESTIMATES``, their limits by the cost model (``NAME_limit``), load_s,
    prepare_s and peak_mib of the target. NaN where a number was not measured or cannot be formed. Raises UserError where
    there is no row at all.
    """
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    for name in found.measured(out):
        own, failed = _of_target(name, found, out / name)
        rows += own
        failures += failed
    if not rows:
        why = "; ".join(failures) or "no method beside vanilla drafted anything"
        raise UserError(f"{out} has nothing to show: {why}; choose another --target, --dtype or --method, and another --out")
    last = {row["method"]: row for row in rows}
    measured = {row["target"] for row in rows}
    for name in sizes.smallest_first(SHAPES):
        if name not in measured:  # V(n) needs no drafter, so its curve goes on where nothing was run
            rows += [_unmeasured(name, found, row) for row in last.values()]
    return pd.DataFrame(rows), failures


def verify_ratio(both: Pair) -> Estimate:
    """V(n): seconds of verifying a tree of the method over those of a plain step, pooled, with its interval over questions."""
    parts = [sums(rows.set_index(BY_QUESTION)[["verify_s", "steps"]], BY_QUESTION) for rows in (both.method, both.reference)]
    values_QC = np.concatenate([part.to_numpy() for part in parts], axis=1)
    strata = [str(category) for category in parts[0].index.get_level_values("category")]

    def ratio(sums_RC: Array) -> Array:
        with np.errstate(invalid="ignore", divide="ignore"):
            return (sums_RC[..., 0] / sums_RC[..., 1]) / (sums_RC[..., 2] / sums_RC[..., 3])

    return Estimate(float(ratio(values_QC.sum(axis=0))), *interval(ratio(resampled_sums(values_QC, strata))))


def _of_target(name: str, found: Found, run_dir: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of the target, and what failed: a method without a sound question has no row."""
    manifest, answered = RunManifest.read(run_dir), records.read(run_dir)[0]
    turns = turns_frame(answered)
    prepared = manifest.prepared[-1:] or [{"seconds": np.nan, "peak_bytes": np.nan}]
    peak = max(float(turns["peak_bytes"].max()), prepared[0]["peak_bytes"]) / 2**20
    shared = {"load_s": found.load_s[name], "prepare_s": prepared[0]["seconds"], "peak_mib": peak}
    rows, failures = [], []
    for method in manifest.settings.methods:
        if method == BASELINE:
            continue
        both = pair(turns, method)
        if both.method["steps"].sum():
            rows.append(_row(name, method, found, manifest, both, answered) | shared)
        if both.failed:
            first = next(record.error for record in answered if record.method in (method, BASELINE) and record.error)
            failures.append(
                f"{name}, {manifest.methods[method].title}: {both.failed} question(s), a turn of each failed, the first: {first}"
            )
    return rows, failures


def _row(name: str, method: str, found: Found, manifest: RunManifest, both: Pair, answered: Sequence[Record]) -> dict[str, Any]:
    measured = Measured(both)
    numbers = {key: measured.estimate(getattr(metrics, key)) for key in ESTIMATES if key != "verify_ratio"}
    numbers["verify_ratio"] = verify_ratio(both)
    flat = {f"{key}{end}": value for key, each in numbers.items() for end, value in zip(("", "_low", "_high"), each, strict=True)}
    own = [record for record in answered if record.method == method and record.steps.nodes]
    nodes = round(fmean(count for record in own for count in record.steps.nodes))  # prompt lookup often finds nothing
    past = round(median(record.prompt_tokens + record.token_count / 2 for record in own))
    facts = {"target": name, "parameters": sizes.sized(name).parameters, "method": method, "title": manifest.methods[method].title}
    limits = _limits(name, found, nodes, past, found.draft[name][method], flat["mat"])
    return {**facts, "nodes": nodes, "past": past, **flat, **limits}


def _unmeasured(name: str, found: Found, like: dict[str, Any]) -> dict[str, Any]:
    facts = {key: like[key] for key in ("method", "title", "nodes", "past")}
    limits = _limits(name, found, like["nodes"], like["past"], None, np.nan)
    return {"target": name, "parameters": sizes.sized(name).parameters, **facts, **limits}


def _limits(name: str, found: Found, nodes: int, past: int, draft: Cost | None, mat: float) -> dict[str, float]:
    """The cost model's V(n), R and MAT / R: verifying and drafting at the device's limit, one after the other, commits for nothing."""
    size, width = sizes.sized(name), DTYPES[found.asked.dtype].itemsize
    plain, tree = (target_cost(size.config, size.parameters, n, past, width).seconds(found.device) for n in (1, nodes))
    round_cost = np.nan if draft is None else (tree + draft.seconds(found.device)) / plain
    return {"verify_ratio_limit": tree / plain, "round_cost_limit": round_cost, "speedup_decode_limit": mat / round_cost}
