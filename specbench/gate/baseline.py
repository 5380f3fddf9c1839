"""Baseline files: a side's numbers as reviewed JSON, one fact a line, written by ``specbench baseline set`` alone."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from math import exp, isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

from methods.core.errors import UserError
from specbench.gate import snapshot
from specbench.gate.outputs import one_line
from specbench.gate.rules import Explain, Outcome, failed_turns, losslessness
from specbench.gate.snapshot import Arm, Depth, Side, Snapshot, differences

SCHEMA = 1
FOLDER = Path("baselines")
DIGITS = 6
COLUMNS = "log_speedups"


def load(sources: Sequence[Path]) -> Snapshot:
    """BASE as given: one baseline file, or run directories without failed turns. Raises UserError."""
    files = [each for each in sources if not each.is_dir()]
    if not files:
        side = snapshot.read(sources)
        _refuse_failures(side)
        return snapshot.snapshot(side)
    if len(sources) > 1:
        raise UserError(f"--baseline {files[0]} is no run directory; give one baseline file, or run directories only")
    return read(files[0])


def admit(side: Side, explain: Explain) -> Snapshot:
    """The numbers of a side fit to be a baseline, named without its place on this machine.

    Raises UserError where a turn failed, a text is not the target's, or a number cannot be formed.
    """
    _refuse_failures(side)
    lossless = losslessness(side, explain)
    if lossless.outcome in (Outcome.FAIL, Outcome.INCONCLUSIVE):
        raise UserError(f"{side.run_dirs[0]} can be no baseline, losslessness: {one_line(lossless.evidence)}; see specbench agree")
    found = snapshot.snapshot(side)
    for name, arm in found.arms.items():
        if not (isfinite(arm.mat) and arm.log_speedups.keys() == found.categories.keys() and all(map(isfinite, arm.log_speedups.values()))):
            raise UserError(f"{side.run_dirs[0]} can be no baseline: {name} has no MAT or no speedup; ask for longer answers")
    return replace(found, source=", ".join(each.resolve().name for each in side.run_dirs))


def default_path(wanted: Snapshot) -> Path:
    """``baselines/<target>-<suite>-<dtype>-<machine>-<versions>-<hash of the identity>.json``: what a baseline holds for."""
    known = wanted.identity
    machine = known["gpu"] if "gpu" in known else f"{known['cpu']} {known['threads']} threads"
    parts = [known["target"], known["suite_sha256"][:8], known["dtype"], machine]
    parts += [f"{name} {version}" for name, version in wanted.versions.items() if version != "None"]
    parts.append(hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:8])
    return FOLDER / (re.sub(r"[^a-z0-9.]+", "-", " ".join(map(str, parts)).lower()).strip("-.") + ".json")


def write(wanted: Snapshot, path: Path) -> None:
    """Raises UserError where the file cannot be written."""
    arms = {}
    for name, arm in wanted.arms.items():
        depths = {str(depth): [each.reached, round(each.rate, DIGITS)] for depth, each in arm.depths.items() if each.reached}
        arms[name] = {"settings": arm.settings, "mat": round(arm.mat, DIGITS), "depths": depths}
    questions = {
        question: {"category": category, COLUMNS: {name: round(arm.log_speedups[question], DIGITS) for name, arm in wanted.arms.items()}}
        for question, category in wanted.categories.items()
    }
    facts = {
        "schema": SCHEMA,
        "source": wanted.source,
        "code": wanted.code,
        "noise": None if wanted.noise is None else round(wanted.noise, DIGITS),
        "identity": wanted.identity,
        "versions": wanted.versions,
        "arms": arms,
        "questions": questions,
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_one_fact_a_line(facts), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write the baseline {path} ({error.strerror}); choose another --out") from None


def read(path: Path) -> Snapshot:
    """Raises UserError for a missing or broken file and for one of another schema version."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
        if facts["schema"] != SCHEMA:
            raise UserError(
                f"{path}: baseline schema {facts['schema']}, this version reads {SCHEMA}; write it again: specbench baseline set"
            )
        questions = facts["questions"]
        arms = {}
        for name, arm in facts["arms"].items():
            depths = {int(depth): Depth(*each) for depth, each in arm["depths"].items()}
            logs = {question: float(each[COLUMNS][name]) for question, each in questions.items()}
            arms[name] = Arm(arm["settings"], float(arm["mat"]), depths, logs)
        categories = {question: each["category"] for question, each in questions.items()}
        source = f"{path} (of {facts['source']})"
        return Snapshot(source, facts["code"], facts["identity"], facts["versions"], arms, categories, facts["noise"], pinned=True)
    except OSError as error:
        raise UserError(f"cannot read the baseline {path} ({error.strerror}); give a run directory or what `baseline set` wrote") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no baseline ({type(error).__name__}: {error}); write it again: specbench baseline set") from None


def changes(old: Snapshot, new: Snapshot) -> list[str]:
    """What a new baseline changes against the one it replaces, one line a fact."""
    lines = differences(old.identity | old.versions, new.identity | new.versions) + differences({"code": old.code}, {"code": new.code})
    lines += [f"{name}: arm {'added' if name in new.arms else 'removed'}" for name in old.arms.keys() ^ new.arms.keys()]
    for name in [name for name in old.arms if name in new.arms]:
        before, after = _summary(old.arms[name]), _summary(new.arms[name])
        lines += [f"{name}: {each}" for each in differences(before, after)]
    return lines + differences({"A/A noise": _percent(old.noise)}, {"A/A noise": _percent(new.noise)})


def _summary(arm: Arm) -> dict[str, Any]:
    numbers = {"MAT": round(arm.mat, 4), "questions": len(arm.log_speedups), "speedup": f"{exp(fmean(arm.log_speedups.values())):.3f}x"}
    return (
        arm.settings | numbers | {f"acceptance at depth {depth}": f"{each.rate:.3f}" for depth, each in arm.depths.items() if each.reached}
    )


def _percent(noise: float | None) -> str:
    return "unknown" if noise is None else f"{noise:.2%}"


def _refuse_failures(side: Side) -> None:
    failed = failed_turns(side)
    if failed.outcome is Outcome.FAIL:
        raise UserError(f"{side.run_dirs[0]} can be no baseline, failed turns: {one_line(failed.evidence)}; measure it again")


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _one_fact_a_line(facts: dict[str, Any]) -> str:
    """JSON in which a reviewer sees every changed fact as one changed line."""
    parts = []
    for key, value in facts.items():
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        if isinstance(value, dict):
            lines = [f"  {json.dumps(name, ensure_ascii=False)}: {json.dumps(each, ensure_ascii=False)}" for name, each in value.items()]
            text = "{\n" + ",\n".join(lines) + "\n }"
        parts.append(f' "{key}": {text}')
    return "{\n" + ",\n".join(parts) + "\n}\n"
