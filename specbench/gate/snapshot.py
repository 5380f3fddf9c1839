"""What the gate compares: the numbers of one side, from run directories whose turns are pooled as repeats."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from math import log
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from methods.core.errors import UserError
from specbench.analysis import breakdown, metrics
from specbench.analysis.frames import pair, turns_frame
from specbench.store import records
from specbench.store.manifest import IMPORTED, RunManifest
from specbench.store.records import AGAIN, BASELINE, Record, device_kind

# Paths and names of what a hash identifies, and what may differ between the two sides.
NOT_IDENTITY = ("methods", "target", "suite", "repeats", "revision", "template", "system_prompt", "thinking")  # hashes stand for some


class Depth(NamedTuple):
    """Conditional acceptance at one depth of the draft tree, and the number of steps it is a share of."""

    reached: int
    rate: float


@dataclass(frozen=True)
class Arm:
    """A drafting arm: its settings, and its numbers; ``log_speedups`` over vanilla by question id, mean over repeats."""

    settings: dict[str, Any]
    mat: float
    depths: dict[int, Depth]
    log_speedups: dict[str, float]


@dataclass(frozen=True)
class Snapshot:
    """One side. ``noise`` is the largest |log bound| of its A/A intervals, None without an A/A arm.

    ``pinned``: of a baseline file, which holds for its versions only.
    """

    source: str
    code: str
    identity: dict[str, Any]
    versions: dict[str, str]
    arms: dict[str, Arm]
    categories: dict[str, str]
    noise: float | None
    pinned: bool = False


@dataclass(frozen=True)
class Side:
    """Finished run directories made under the same conditions from the same code, and their turns one frame each.

    Turns of other engines are left out: they are no code of ours that could regress.
    """

    run_dirs: tuple[Path, ...]
    manifests: tuple[RunManifest, ...]
    frames: tuple[pd.DataFrame, ...]

    @property
    def manifest(self) -> RunManifest:
        return self.manifests[0]

    @cached_property
    def turns(self) -> pd.DataFrame:
        """All turns; a later directory's repeats are numbered on from those before it."""
        first, pooled = 0, []
        for manifest, frame in zip(self.manifests, self.frames, strict=True):
            pooled.append(frame.assign(repeat=frame["repeat"] + first))
            first += manifest.settings.repeats
        return pd.concat(pooled, ignore_index=True)

    @cached_property
    def failed(self) -> pd.DataFrame:
        return self.turns[self.turns["status"] != "ok"]


def read(run_dirs: Sequence[Path]) -> Side:
    """Raises UserError for a directory that is no run of ours, is named twice or is not what its manifest planned, and for runs
    that cannot be pooled.
    """
    if len({each.resolve() for each in run_dirs}) < len(run_dirs):
        raise UserError(f"a run directory is named twice: {', '.join(map(str, run_dirs))}; name every run once, a copy is no second sample")
    manifests = tuple(RunManifest.read(each) for each in run_dirs)
    side = Side(tuple(run_dirs), manifests, tuple(_finished(each, m) for each, m in zip(run_dirs, manifests, strict=True)))
    facts = [_facts(manifest) for manifest in manifests]
    asked = [_categories(frame) for frame in side.frames]
    for run_dir, other, questions in zip(run_dirs[1:], facts[1:], asked[1:], strict=True):
        changed = differences(facts[0], other) + questions_apart(asked[0], questions)
        if changed:
            raise UserError(f"{run_dirs[0]} and {run_dir} cannot be pooled: {'; '.join(changed)}; name runs of one kind")
    return side


def snapshot(side: Side) -> Snapshot:
    """The side's numbers. Arms of an A/A run's second kind measure the noise and are no arms of their own."""
    turns, methods = side.turns, side.manifest.own
    drafting = [name for name in methods if name != BASELINE and not name.endswith(AGAIN)]
    floors = [metrics.noise_floor(turns, name.removesuffix(AGAIN)) for name in methods if name.endswith(AGAIN)]
    return Snapshot(
        source=", ".join(map(str, side.run_dirs)),
        code=str(side.manifest.git.get("sha", "")),
        identity=identity(side.manifest),
        versions=versions(side.manifest),
        arms={name: _arm(turns, name, arm_settings(side.manifest, name)) for name in drafting},
        categories=_categories(turns),
        noise=max((max(-log(floor.low), log(floor.high)) for floor in floors if floor.known), default=None),
    )


def identity(manifest: RunManifest) -> dict[str, Any]:
    """What two comparable sides share: settings, target, prompts and machine. The seed counts only where something is sampled."""
    asked = {name: value for name, value in asdict(manifest.settings).items() if name not in NOT_IDENTITY}
    if not manifest.settings.temperature:
        del asked["seed"]
    machine = ["gpu"] if manifest.environment.get("gpu") else ["cpu", "threads"]
    if any("workers" in each for each in manifest.environments):
        machine.append("workers")  # they share memory bandwidth, or the host's cores
    return asked | {
        "questions": manifest.categories,
        "template_sha256": manifest.template_sha256,
        "target": manifest.target.get("name"),
        "target.weights_sha256": manifest.target.get("weights_sha256"),
        **{name: _ever(manifest, name) for name in machine},
    }


def arm_settings(manifest: RunManifest, arm: str) -> dict[str, Any]:
    facts = manifest.methods[arm]
    return {**facts.config, "acceptance": facts.acceptance, "backend": facts.backend, "weights_sha256": facts.weights_sha256}


def versions(manifest: RunManifest) -> dict[str, str]:
    """Software that moves times; of Python the minor version."""
    python = ".".join(_ever(manifest, "python").split(".")[:2])
    return {name: _ever(manifest, name) for name in ("driver", "torch", "transformers")} | {"python": python}


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """``name old -> new`` of every fact on which the two disagree."""
    changed = [key for key in old | new if not _equal(old.get(key), new.get(key))]
    return [f"{key} {_short(old.get(key))} -> {_short(new.get(key))}" for key in changed]


def questions_apart(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """One line on how many questions, given as id and category, only one of the two has."""
    apart = {question for question, _ in old.items() ^ new.items()}
    return [f"{len(apart)} of {len(old.keys() | new.keys())} questions are not the same"] if apart else []


def _categories(turns: pd.DataFrame) -> dict[str, str]:
    asked = turns.drop_duplicates("question_id")
    return dict(zip(asked["question_id"], asked["category"], strict=True))


def _equal(old: Any, new: Any) -> bool:
    return bool(old == new or (old != old and new != new))  # an unknown number, NaN, equals another


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] + "…" if len(text) == 64 else text  # a sha256


def _ever(manifest: RunManifest, name: str) -> str:
    """A fact of the environment; of a run resumed elsewhere all values it had, so that it equals no other's."""
    return " then ".join(dict.fromkeys(str(each.get(name)) for each in manifest.environments))


def _facts(manifest: RunManifest) -> dict[str, Any]:
    arms = {name: arm_settings(manifest, name) for name in manifest.own}
    return identity(manifest) | versions(manifest) | {"code": manifest.git.get("sha"), "arms": arms}


def _finished(run_dir: Path, manifest: RunManifest) -> pd.DataFrame:
    if manifest.target.get("label") == IMPORTED or any(facts.lossless is None for facts in manifest.own.values()):
        raise UserError(f"{run_dir} is imported, so its settings and machine are unknown; the gate compares runs of `specbench run` only")
    found, torn = records.read(run_dir)
    strangers = sorted({record.method for record in found} - manifest.methods.keys())
    if strangers:
        raise UserError(f"{run_dir} holds records of {', '.join(strangers)}, no arm of its manifest; the files were edited, measure again")
    planned, keys = manifest.units_total, {record.key for record in found}
    if torn or len(keys) < planned:
        raise UserError(f"{run_dir} is unfinished: {len(keys)} of {planned} turns; first: specbench resume {run_dir}")
    if len(found) > planned or not _one_plan(found, manifest):
        raise UserError(f"{run_dir} does not hold each of its {planned} planned turns once; the files were edited, measure again")
    kinds = sorted({device_kind(record.device) for record in found if record.device})
    if len(kinds) > 1:
        raise UserError(f"{run_dir} was measured on devices of {len(kinds)} kinds ({'; '.join(kinds)}); the gate compares runs on one kind")
    return turns_frame(record for record in found if record.method in manifest.own)


def _one_plan(found: Sequence[Record], manifest: RunManifest) -> bool:
    """Whether every arm answered the same turns, in repeats that were planned."""
    answered = {name: {record.key[1:] for record in found if record.method == name} for name in manifest.methods}
    return len(set(map(frozenset, answered.values()))) == 1 and all(record.repeat < manifest.settings.repeats for record in found)


def _arm(turns: pd.DataFrame, name: str, settings: dict[str, Any]) -> Arm:
    both = pair(turns, name)
    rates = breakdown.acceptance(turns, [name], []).to_dict("records")
    logs = metrics.log_speedups(both).dropna()
    return Arm(
        settings,
        mat=metrics.Measured(both).estimate(metrics.mat).value,
        depths={int(row["depth"]): Depth(int(row["reached"]), float(row["conditional"])) for row in rates},
        log_speedups={str(question): float(value) for (_, question), value in logs.items()},
    )
