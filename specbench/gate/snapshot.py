"""Snapshots: the numbers that the gate compares, of one or more runs whose turns are pooled as repeats."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from methods.core.errors import UserError
from specbench.analysis import breakdown, metrics
from specbench.analysis.frames import pair, turns_frame
from specbench.config.arm import BASELINE
from specbench.store.describe import target_name
from specbench.store.manifest import IDENTITY, RunManifest, changed_facts
from specbench.store.records import Record, device_kind
from specbench.store.rundir import StoredRun, read_run

# Settings not compared by value: covered by a checksum, or free to differ.
NOT_IDENTITY = ("target", "suite", "repeats", "revision", "template", "system_prompt", "thinking")


class DepthAcceptance(NamedTuple):
    """Conditional acceptance rate at one depth of the draft tree, and the number of steps that it is a share of."""

    reached: int
    rate: float


@dataclass(frozen=True)
class ArmNumbers:
    """The settings and numbers of a drafting arm.

    ``log_speedups`` holds each question's logarithm of the speedup over vanilla, averaged over repeats.
    """

    settings: dict[str, Any]
    mat: float
    depths: dict[int, DepthAcceptance]
    log_speedups: dict[str, float]


@dataclass(frozen=True)
class Snapshot:
    """The numbers of pooled runs, or of a baseline file.

    ``noise`` is the largest logarithm of an end of the A/A intervals, None without an A/A arm. ``undigested`` says what carries no
    digest. ``pinned`` is set for a baseline file, which holds for its own versions only.
    """

    source: str
    code: str
    identity: dict[str, Any]
    versions: dict[str, str]
    arms: dict[str, ArmNumbers]
    categories: dict[str, str]
    noise: float | None
    undigested: str = ""
    pinned: bool = False


@dataclass(frozen=True)
class PooledRuns:
    """Finished runs of one kind, with one frame of turns each. Turns of other engines are left out: the gate checks our code."""

    run_dirs: tuple[Path, ...]
    manifests: tuple[RunManifest, ...]
    frames: tuple[pd.DataFrame, ...]
    undigested: str

    @property
    def manifest(self) -> RunManifest:
        """The manifest of the first run."""
        return self.manifests[0]

    @cached_property
    def turns(self) -> pd.DataFrame:
        """The turns of all runs. The repeats of each run are numbered on from those of the runs before it."""
        first, pooled = 0, []
        for manifest, frame in zip(self.manifests, self.frames, strict=True):
            pooled.append(frame.assign(repeat=frame["repeat"] + first))
            first += manifest.settings.repeats
        return pd.concat(pooled, ignore_index=True)

    @cached_property
    def failed(self) -> pd.DataFrame:
        """The failed turns of all runs."""
        return self.turns[self.turns["status"] != "ok"]


def read_runs(run_dirs: Sequence[Path]) -> PooledRuns:
    """Read finished runs to pool.

    Raises UserError for what is no run of specbench or not what its manifest planned, and for runs that cannot be pooled.
    """
    if len({run_dir.resolve() for run_dir in run_dirs}) < len(run_dirs):
        raise UserError(f"a run directory is named twice: {', '.join(map(str, run_dirs))}; name every run once, a copy is no second sample")
    runs = [read_run(run_dir) for run_dir in run_dirs]
    manifests = tuple(run.manifest for run in runs)
    frames = tuple(_finished_turns(run_dir, run) for run_dir, run in zip(run_dirs, runs, strict=True))

    facts, questions = [_facts(manifest) for manifest in manifests], [_categories(frame) for frame in frames]
    for run_dir, other_facts, other_questions in zip(run_dirs[1:], facts[1:], questions[1:], strict=True):
        changed = changed_facts(facts[0], other_facts) + changed_questions(questions[0], other_questions)
        if changed:
            raise UserError(f"{run_dirs[0]} and {run_dir} cannot be pooled: {'; '.join(changed)}; name runs of one kind")
    return PooledRuns(tuple(run_dirs), manifests, frames, " ".join(dict.fromkeys(run.undigested for run in runs if run.undigested)))


def take_snapshot(runs: PooledRuns) -> Snapshot:
    """Return the numbers of pooled runs. Arms that repeat another one measure the noise and have no numbers of their own."""
    turns, arms = runs.turns, runs.manifest.own
    drafting = [name for name, facts in arms.items() if name != BASELINE and not facts.repeat_of]
    floors = [metrics.noise_floor(turns, facts.repeat_of) for facts in arms.values() if facts.repeat_of]
    return Snapshot(
        source=", ".join(map(str, runs.run_dirs)),
        code=runs.manifest.git.sha,
        identity=identity(runs.manifest),
        versions=versions(runs.manifest),
        arms={name: _arm_numbers(turns, name, arm_settings(runs.manifest, name)) for name in drafting},
        categories=_categories(turns),
        noise=max((max(-log(floor.low), log(floor.high)) for floor in floors if floor.known), default=None),
        undigested=runs.undigested,
    )


def check_compatible(new: Snapshot, base: Snapshot) -> list[str]:
    """Return warnings about differences that are allowed. Raises UserError that lists every difference that is not.

    The code and the number of repeats may differ. Versions may differ between runs, but not from a baseline file.
    """
    apart = changed_facts(base.identity, new.identity) + changed_questions(base.categories, new.categories) + _changed_arms(new, base)
    updated = changed_facts(base.versions, new.versions)
    if base.pinned:
        apart += updated
    if apart:
        advice = "measure both under the same conditions" + (", or write another baseline: specbench baseline set" if base.pinned else "")
        raise UserError(f"{new.source} cannot be compared with {base.source}: {'; '.join(apart)}; {advice}")
    return [
        *(f"Versions differ: {change}." for change in updated),
        *(f"Arm {name} has no baseline." for name in new.arms if name not in base.arms),
        *(f"{numbers.source}: {numbers.undigested}" for numbers in (new, base) if numbers.undigested),
    ]


def _changed_arms(new: Snapshot, base: Snapshot) -> list[str]:
    if not base.arms:
        return ["the baseline has no drafting arm"]
    missing = [f"arm {name} is missing" for name in base.arms if name not in new.arms]
    both = [name for name in base.arms if name in new.arms]
    changed = {name: changed_facts(base.arms[name].settings, new.arms[name].settings) for name in both}
    return missing + [f"{name}: {change}" for name, changes in changed.items() for change in changes]


def identity(manifest: RunManifest) -> dict[str, Any]:
    """Return the facts that comparable runs share: settings, target, prompts, and machine.

    The seed counts only if something is sampled.
    """
    settings = {name: getattr(manifest.settings, name) for name in IDENTITY if name not in NOT_IDENTITY}
    if not manifest.settings.temperature:
        del settings["seed"]
    machine = ["gpu"] if manifest.environment.gpu else ["cpu", "threads"]
    if any(environment.workers for environment in manifest.environments):
        machine.append("workers")  # they share memory bandwidth, or the host's cores
    return settings | {
        "suite_sha256": manifest.suite.sha256,
        "questions": manifest.suite.categories,
        "template_sha256": manifest.template_sha256,
        "target": target_name(manifest),
        "target.weights_sha256": manifest.target.weights_sha256,
        **{name: _every_value(manifest, name) for name in machine},
    }


def arm_settings(manifest: RunManifest, arm: str) -> dict[str, Any]:
    """Return an arm's configuration, acceptance rule, back end, and weights."""
    facts = manifest.arms[arm]
    return {**facts.config, "acceptance": facts.acceptance, "backend": facts.backend, "weights_sha256": facts.weights_sha256}


def versions(manifest: RunManifest) -> dict[str, str]:
    """Return the versions of software that can change times; of Python the minor version."""
    python = ".".join(_every_value(manifest, "python").split(".")[:2])
    return {name: _every_value(manifest, name) for name in ("driver", "torch", "transformers")} | {"python": python}


def changed_questions(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Return one line with the number of questions, given as id and category, that only one of the two has."""
    apart = {question for question, _ in old.items() ^ new.items()}
    return [f"{len(apart)} of {len(old.keys() | new.keys())} questions are not the same"] if apart else []


def _categories(turns: pd.DataFrame) -> dict[str, str]:
    questions = turns.drop_duplicates("question_id")
    return dict(zip(questions["question_id"], questions["category"], strict=True))


def _every_value(manifest: RunManifest, name: str) -> str:
    """Return a fact of the environment.

    A run that was resumed elsewhere lists all its values, so that it equals no other run.
    """
    return " then ".join(dict.fromkeys(str(getattr(environment, name)) for environment in manifest.environments))


def _facts(manifest: RunManifest) -> dict[str, Any]:
    arms = {name: arm_settings(manifest, name) for name in manifest.own}
    return identity(manifest) | versions(manifest) | {"code": manifest.git.sha, "arms": arms}


def _finished_turns(run_dir: Path, run: StoredRun) -> pd.DataFrame:
    manifest, recorded = run.manifest, run.records
    if manifest.imported:
        raise UserError(f"{run_dir} is imported, so its settings and machine are unknown; the gate compares runs of `specbench run` only")
    others = sorted({record.arm for record in recorded} - manifest.arms.keys())
    if others:
        raise UserError(f"{run_dir} holds records of {', '.join(others)}, no arm of its manifest; the files were edited, measure again")

    planned = manifest.units_total
    if run.torn or len(recorded) < planned:
        raise UserError(f"{run_dir} is unfinished: {len(recorded)} of {planned} turns; first: specbench resume {run_dir}")
    if len(recorded) > planned or not _same_turns_in_all_arms(recorded, manifest):
        raise UserError(f"{run_dir} does not hold each of its {planned} planned turns once; the files were edited, measure again")

    kinds = sorted({device_kind(record.device) for record in recorded if record.device})
    if len(kinds) > 1:
        raise UserError(f"{run_dir} was measured on devices of {len(kinds)} kinds ({'; '.join(kinds)}); the gate compares runs on one kind")
    return turns_frame((record for record in recorded if record.arm in manifest.own), manifest.arms)


def _same_turns_in_all_arms(recorded: Sequence[Record], manifest: RunManifest) -> bool:
    answered = {name: {record.key[1:] for record in recorded if record.arm == name} for name in manifest.arms}
    return len(set(map(frozenset, answered.values()))) == 1 and all(record.repeat < manifest.settings.repeats for record in recorded)


def _arm_numbers(turns: pd.DataFrame, name: str, settings: dict[str, Any]) -> ArmNumbers:
    both = pair(turns, name)
    rates = breakdown.acceptance(turns, [name], []).to_dict("records")
    logs = metrics.log_speedups(both).dropna()
    return ArmNumbers(
        settings,
        mat=metrics.Measured(both).estimate(metrics.mat).value,
        depths={int(row["depth"]): DepthAcceptance(int(row["reached"]), float(row["conditional"])) for row in rates},
        log_speedups={str(question): float(value) for (_, question), value in logs.items()},
    )
