"""The rows of a sweep, made from its runs: the measured numbers of each target and method, and the cost model's."""

from collections.abc import Sequence
from math import nan
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
from specbench.config.arm import BASELINE
from specbench.store.manifest import Prepared, RunManifest
from specbench.store.records import Record
from specbench.store.rundir import read_run
from specbench.studies.roofline.cost import Cost, target_cost, verify_ratio
from specbench.studies.scale import sizes
from specbench.studies.scale.sweep import Sweep
from specbench.targets import DTYPES
from specbench.targets.widen import SHAPES

DEFINITIONS = {
    "mat": metrics.mat,
    "step_cost": metrics.step_cost,
    "speedup_decode": metrics.speedup_decode,
    "speedup": metrics.speedup,
}
BY_QUESTION = ["category", "question_id"]


def points(sweep: Sweep, out: Path) -> tuple[pd.DataFrame, list[str]]:
    """Return one row for each measured target and method and for each other shape, and sentences on what failed.

    Columns: target, parameters, arm, title, nodes, past; verify_ratio and ``DEFINITIONS``, each with _low
    and _high; their limits by the cost model (``NAME_limit``); load_s, prepare_s and peak_mib of the
    target. Shapes that were not measured have the cost model's numbers alone; numbers that are unknown
    are NaN. Raises UserError if there is no row at all.
    """
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    for name in sweep.measured(out):
        own, failed = _of_target(name, sweep, out / name)
        rows += own
        failures += failed
    if not rows:
        why = "; ".join(failures) or "no method beside vanilla drafted anything"
        raise UserError(f"{out} has nothing to show: {why}; choose another --target, --dtype or --method, and another --out")

    last = {row["arm"]: row for row in rows}
    measured = {row["target"] for row in rows}
    for name in sizes.smallest_first(SHAPES):
        if name not in measured:  # V(n) needs no drafter, so its curve covers shapes that were not run
            rows += [_unmeasured(name, sweep, row) for row in last.values()]
    return pd.DataFrame(rows), failures


def measured_verify_ratio(arms: Pair) -> Estimate:
    """Return the measured V(n): seconds of verifying a method's tree over those of a plain step, pooled over questions."""
    parts = [sums(rows.set_index(BY_QUESTION)[["verify_s", "steps"]], BY_QUESTION) for rows in (arms.arm, arms.reference)]
    values_QC = np.concatenate([part.to_numpy() for part in parts], axis=1)
    strata = [str(category) for category in parts[0].index.get_level_values("category")]

    def ratio(sums_RC: Array) -> Array:
        with np.errstate(invalid="ignore", divide="ignore"):
            return (sums_RC[..., 0] / sums_RC[..., 1]) / (sums_RC[..., 2] / sums_RC[..., 3])

    return Estimate(float(ratio(values_QC.sum(axis=0))), *interval(ratio(resampled_sums(values_QC, strata))))


def _of_target(name: str, sweep: Sweep, run_dir: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return a target's rows, and what failed. A method all of whose questions failed has no row."""
    run = read_run(run_dir)
    manifest, answered = run.manifest, run.records
    turns = turns_frame(answered, manifest.arms)
    prepared = manifest.prepared[-1] if manifest.prepared else Prepared(nan, 0)
    peak = max(float(turns["peak_bytes"].max()), prepared.peak_bytes) / 2**20
    shared = {"load_s": sweep.load_s[name], "prepare_s": prepared.seconds, "peak_mib": peak}

    rows, failures = [], []
    for arm, facts in manifest.arms.items():
        if arm == BASELINE:
            continue
        arms = pair(turns, arm)
        if arms.arm["steps"].sum():
            rows.append(_row(name, arm, sweep, manifest, arms, answered) | shared)
        if arms.failed:
            first = next(record.error for record in answered if record.arm in (arm, BASELINE) and record.error)
            failures.append(f"{name}, {facts.title}: {arms.failed} question(s), a turn of each failed, the first: {first}")
    return rows, failures


def _row(name: str, arm: str, sweep: Sweep, manifest: RunManifest, arms: Pair, answered: Sequence[Record]) -> dict[str, Any]:
    measured = Measured(arms)
    numbers = {key: measured.estimate(definition) for key, definition in DEFINITIONS.items()}
    numbers["verify_ratio"] = measured_verify_ratio(arms)
    flat = {f"{key}{end}": value for key, number in numbers.items() for end, value in zip(("", "_low", "_high"), number, strict=True)}

    own = [record for record in answered if record.arm == arm and record.steps.tree_size]
    nodes = round(fmean(size for record in own for size in record.steps.tree_size)) - 1  # a mean: prompt lookup often finds no draft
    past = round(median(record.prompt_tokens + record.token_count / 2 for record in own))
    facts = {"target": name, "parameters": sizes.size_of(name).parameters, "arm": arm, "title": manifest.arms[arm].title}
    limits = _limits(name, sweep, nodes, past, sweep.draft[name][arm], flat["mat"])
    return {**facts, "nodes": nodes, "past": past, **flat, **limits}


def _unmeasured(name: str, sweep: Sweep, like: dict[str, Any]) -> dict[str, Any]:
    facts = {key: like[key] for key in ("arm", "title", "nodes", "past")}
    limits = _limits(name, sweep, like["nodes"], like["past"], None, nan)
    return {"target": name, "parameters": sizes.size_of(name).parameters, **facts, **limits}


def _limits(name: str, sweep: Sweep, nodes: int, past: int, draft: Cost | None, mat: float) -> dict[str, float]:
    """Return the cost model's V(n), R and MAT / R: verifying and drafting at the device's limit, one after the other."""
    size, width = sizes.size_of(name), DTYPES[sweep.request.config.dtype].itemsize
    ratio = verify_ratio(size.config, size.parameters, nodes + 1, past, width, sweep.device)
    plain = target_cost(size.config, size.parameters, 1, past, width).seconds(sweep.device)
    step_cost = nan if draft is None else ratio + draft.seconds(sweep.device) / plain
    return {"verify_ratio_limit": ratio, "step_cost_limit": step_cost, "speedup_decode_limit": mat / step_cost}
