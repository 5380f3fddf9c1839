"""Baseline files: the numbers of a run as JSON to review and commit, one fact per line.

Only ``specbench baseline set`` writes them.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import exp, isfinite
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

from pydantic import Field

from methods.core.errors import UserError
from specbench.gate import snapshot
from specbench.gate.rules import Explain, Outcome, check_failed_turns, check_losslessness
from specbench.gate.snapshot import ArmNumbers, DepthAcceptance, PooledRuns, Snapshot
from specbench.store.manifest import changed_facts
from specbench.store.records import MOST
from specbench.util.files import write_text
from specbench.util.stored import STRICT, FileFormat, read_json, validated
from specbench.util.text import one_line

SCHEMA = 1
FOLDER = Path("baselines")
DIGITS = 6
FORMAT = FileFormat("baseline", SCHEMA, "give a run directory, or write it again: specbench baseline set")


@dataclass(frozen=True)
class StoredArm:
    """An arm of a baseline file."""

    settings: dict[str, Any]
    mat: float
    depths: dict[Annotated[int, Field(ge=0, le=MOST)], DepthAcceptance]


@dataclass(frozen=True)
class StoredQuestion:
    """A question of a baseline file, with the logarithm of each arm's speedup."""

    category: str
    log_speedups: dict[str, float]


@dataclass(frozen=True)
class StoredBaseline:
    """The contents of a baseline file, without its schema version."""

    __pydantic_config__ = STRICT

    source: str
    code: str
    noise: float | None
    identity: dict[str, Any]
    versions: dict[str, str]
    arms: dict[str, StoredArm]
    questions: dict[str, StoredQuestion]


def load_baseline(sources: Sequence[Path]) -> Snapshot:
    """Return the numbers of a baseline file, or of run directories without failed turns. Raises UserError."""
    files = [source for source in sources if not source.is_dir()]
    if not files:
        runs = snapshot.read_runs(sources)
        _refuse_failures(runs)
        return snapshot.take_snapshot(runs)
    if len(sources) > 1:
        raise UserError(f"--baseline {files[0]} is not a run directory; give one baseline file, or run directories only")
    return read_baseline(files[0])


def baseline_of(runs: PooledRuns, explain: Explain) -> Snapshot:
    """Return the numbers of runs that may serve as a baseline, named without their place on this machine.

    Raises UserError if a turn failed, a text is not the target's, or a number cannot be formed.
    """
    _refuse_failures(runs)
    lossless = check_losslessness(runs, explain)
    if lossless.outcome in (Outcome.FAIL, Outcome.INCONCLUSIVE):
        raise UserError(f"{runs.run_dirs[0]} can be no baseline, losslessness: {one_line(lossless.evidence)}; see specbench agree")

    numbers = snapshot.take_snapshot(runs)
    for name, arm in numbers.arms.items():
        complete = arm.log_speedups.keys() == numbers.categories.keys() and all(map(isfinite, arm.log_speedups.values()))
        if not (isfinite(arm.mat) and complete):
            raise UserError(f"{runs.run_dirs[0]} can be no baseline: {name} has no MAT or no speedup; ask for longer answers")
    return replace(numbers, source=", ".join(run_dir.resolve().name for run_dir in runs.run_dirs))


def default_path(baseline: Snapshot) -> Path:
    """Return ``baselines/<target>-<suite>-<dtype>-<machine>-<versions>-<hash of the identity>.json``."""
    known = baseline.identity
    machine = known["gpu"] if "gpu" in known else f"{known['cpu']} {known['threads']} threads"
    parts = [known["target"], known["suite_sha256"][:8], known["dtype"], machine]
    parts += [f"{name} {version}" for name, version in baseline.versions.items() if version != "None"]
    parts.append(hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:8])
    return FOLDER / (re.sub(r"[^a-z0-9.]+", "-", " ".join(map(str, parts)).lower()).strip("-.") + ".json")


def write_baseline(baseline: Snapshot, path: Path) -> None:
    """Write a baseline file. Raises UserError if it cannot be written."""
    arms = {}
    for name, arm in baseline.arms.items():
        depths = {depth: DepthAcceptance(at.reached, round(at.rate, DIGITS)) for depth, at in arm.depths.items() if at.reached}
        arms[name] = StoredArm(arm.settings, round(arm.mat, DIGITS), depths)
    questions = {
        question: StoredQuestion(category, {name: round(arm.log_speedups[question], DIGITS) for name, arm in baseline.arms.items()})
        for question, category in baseline.categories.items()
    }
    noise = None if baseline.noise is None else round(baseline.noise, DIGITS)
    stored = StoredBaseline(baseline.source, baseline.code, noise, baseline.identity, baseline.versions, arms, questions)
    write_text(path, _one_fact_a_line({"schema": SCHEMA, **asdict(stored)}), "choose another --out")


def read_baseline(path: Path) -> Snapshot:
    """Read a baseline file. Raises UserError if it is missing, broken, or of another schema version."""
    stored = validated(StoredBaseline, read_json(path, FORMAT), str(path), FORMAT)
    for question, entry in stored.questions.items():
        if entry.log_speedups.keys() != stored.arms.keys():
            raise FORMAT.error(str(path), f"question {question} has other arms than the file")
    arms = {
        name: ArmNumbers(
            arm.settings, arm.mat, arm.depths, {question: entry.log_speedups[name] for question, entry in stored.questions.items()}
        )
        for name, arm in stored.arms.items()
    }
    categories = {question: entry.category for question, entry in stored.questions.items()}
    source = f"{path} (of {stored.source})"
    return Snapshot(source, stored.code, stored.identity, stored.versions, arms, categories, stored.noise, pinned=True)


def changes(old: Snapshot, new: Snapshot) -> list[str]:
    """Return what a new baseline changes in the one it replaces, one line per fact."""
    lines = changed_facts(old.identity | old.versions, new.identity | new.versions)
    lines += changed_facts({"code": old.code}, {"code": new.code})
    lines += [f"{name}: arm {'added' if name in new.arms else 'removed'}" for name in old.arms.keys() ^ new.arms.keys()]
    for name in [name for name in old.arms if name in new.arms]:
        before, after = _summary(old.arms[name]), _summary(new.arms[name])
        lines += [f"{name}: {change}" for change in changed_facts(before, after)]
    return lines + changed_facts({"A/A noise": _percent(old.noise)}, {"A/A noise": _percent(new.noise)})


def _summary(arm: ArmNumbers) -> dict[str, Any]:
    numbers = {"MAT": round(arm.mat, 4), "questions": len(arm.log_speedups), "speedup": f"{exp(fmean(arm.log_speedups.values())):.3f}x"}
    rates = {f"acceptance at depth {depth}": f"{at.rate:.3f}" for depth, at in arm.depths.items() if at.reached}
    return arm.settings | numbers | rates


def _percent(noise: float | None) -> str:
    return "unknown" if noise is None else f"{noise:.2%}"


def _refuse_failures(runs: PooledRuns) -> None:
    failed = check_failed_turns(runs)
    if failed.outcome is Outcome.FAIL:
        raise UserError(f"{runs.run_dirs[0]} can be no baseline, failed turns: {one_line(failed.evidence)}; measure it again")


def _one_fact_a_line(facts: dict[str, Any]) -> str:
    """Return JSON in which each changed fact is one changed line of a diff."""
    parts = []
    for key, value in facts.items():
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        if isinstance(value, dict):
            lines = [f"  {json.dumps(name, ensure_ascii=False)}: {json.dumps(inner, ensure_ascii=False)}" for name, inner in value.items()]
            text = "{\n" + ",\n".join(lines) + "\n }"
        parts.append(f' "{key}": {text}')
    return "{\n" + ",\n".join(parts) + "\n}\n"
