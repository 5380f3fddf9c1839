"""The manifest of a run directory: everything needed to make the run again, and the facts that must be equal to resume it.

Like a record, the file ends in a digest of itself (``store.digest``).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from math import isnan, nan
from pathlib import Path
from typing import Any, Self

from methods.core.errors import UserError
from specbench.config.options import RunConfig
from specbench.store.digest import add_digest, check_digest, take_digest
from specbench.util import files
from specbench.util.environment import Environment, GitState
from specbench.util.stored import FileFormat, parse_json, read_bytes, validated

SCHEMA = 2
FORMAT = FileFormat("manifest", SCHEMA, "restore it or use another --out")
FILE = files.MANIFEST
COST_MATCHED = "cost-matched"  # label of a target in the shape of a larger model, without its weights
IDENTITY = tuple(f.name for f in fields(RunConfig) if f.metadata["option"].identity)


@dataclass(frozen=True)
class ArmFacts:
    """An arm as it ran: its method or engine with every option resolved."""

    title: str
    method: str  # a row of the methods table, or the name of an engine
    lossless: bool | None  # None: imported answers do not say
    reconstruction: bool
    config: dict[str, Any]
    acceptance: str
    weights_sha256: str | None
    backend: str
    drafter: str | None = None  # file, folder, or hub id of its weights
    state: str = ""  # description of what the drafter keeps from one turn to the next
    engine: str = ""  # name and version of the program that decoded; "": specbench
    repeat_of: str = ""  # the arm that this one repeats in an A/A run


@dataclass(frozen=True)
class TargetFacts:
    """The target as it was loaded."""

    name: str
    label: str = ""  # COST_MATCHED where the weights are not a real model's of that shape
    note: str = ""  # a sentence that a reader of the results must know
    parameters: int | None = None
    weights_sha256: str | None = None
    layers: dict[str, int] = field(default_factory=dict)  # decoder layers on each device


@dataclass(frozen=True)
class SuiteFacts:
    """The questions that were asked."""

    name: str
    version: str
    sha256: str  # of the source, before ``limit`` and ``categories`` choose from it
    categories: dict[str, int]  # questions asked in each


@dataclass(frozen=True)
class Start:
    """A later start of a run that was resumed."""

    created: str
    environment: Environment
    git: GitState
    argv: list[str]


@dataclass(frozen=True)
class Prepared:
    """Time and peak memory of the warm-up, in one process or in one worker."""

    seconds: float
    peak_bytes: int
    worker: int | None = None
    device: str = ""


@dataclass(frozen=True)
class ImportSource:
    """A file of answers that an arm was imported from."""

    arm: str
    file: str
    sha256: str
    model_ids: list[str]


@dataclass(frozen=True)
class Ending:
    """The records that a run had when it ended: their number, and one digest of all."""

    records: int
    digest: str


@dataclass(frozen=True)
class RunManifest:
    """The contents of ``manifest.json``.

    ``settings`` has every default resolved. ``status`` is "running", "complete" or "interrupted". ``ending`` is None
    while it is "running", and in manifests from before there were digests.
    """

    name: str
    created: str
    settings: RunConfig
    arms: dict[str, ArmFacts]
    target: TargetFacts
    suite: SuiteFacts
    units_total: int
    template_sha256: str
    environment: Environment
    git: GitState
    argv: list[str]
    resumed: list[Start] = field(default_factory=list)
    prepared: list[Prepared] = field(default_factory=list)  # of every start and worker
    imported: list[ImportSource] = field(default_factory=list)  # empty for a run that specbench measured
    status: str = "running"
    ending: Ending | None = None

    @property
    def own(self) -> dict[str, ArmFacts]:
        """The arms that specbench decoded, without those of other engines."""
        return {name: facts for name, facts in self.arms.items() if not facts.engine}

    @property
    def served(self) -> bool:
        """Whether any arm was answered by a server."""
        return any(facts.backend == "server" for facts in self.arms.values())

    @property
    def environments(self) -> list[Environment]:
        """The environment of every start."""
        return [self.environment, *(start.environment for start in self.resumed)]

    def identity(self) -> dict[str, Any]:
        """Return the facts that decide what a record means, by dotted name. Runs that agree on them may share a directory."""
        settings = _jsonable(asdict(self.settings))
        facts: dict[str, Any] = {"arms": list(self.arms), **{name: settings[name] for name in IDENTITY}, "suite_sha256": self.suite.sha256}
        facts["target"] = files.absolute(facts["target"])  # older manifests hold a folder's path as it was typed
        for name in self.arms:
            facts |= self.arm_identity(name)
        return facts | {"target.weights_sha256": self.target.weights_sha256, "template_sha256": self.template_sha256}

    def arm_identity(self, name: str) -> dict[str, Any]:
        """Return the part of the identity that describes one arm, by dotted name."""
        arm = self.arms[name]
        facts = {**arm.config, "acceptance": arm.acceptance, "weights_sha256": arm.weights_sha256, "backend": arm.backend}
        return {f"{name}.{key}": value for key, value in facts.items()}

    def fingerprint(self) -> str:
        """Return eight hex digits of the identity's hash: part of the directory name, so that the same command finds it again."""
        return hashlib.sha256(json.dumps(self.identity(), sort_keys=True).encode()).hexdigest()[:8]

    def write(self, run_dir: Path) -> None:
        """Replace the file atomically. Raises UserError where it cannot be written."""
        stored = {"schema": SCHEMA, "status": self.status, **_jsonable(asdict(self))}
        text = add_digest(json.dumps(stored, indent=1, ensure_ascii=False)) + "\n"
        files.write_text(run_dir / FILE, text, f"make room, then: specbench resume {run_dir}")

    @classmethod
    def read(cls, run_dir: Path) -> Self:
        """Read a manifest. Raises UserError if it is missing, broken, changed, or of another schema version."""
        path = run_dir / FILE
        if not path.exists():
            raise UserError(f"{run_dir} holds no {FILE}, so it is not a run directory; give the directory that `specbench run` printed")
        raw = read_bytes(path, FORMAT)
        stored = parse_json(raw, str(path), FORMAT)
        digest = take_digest(stored)
        settings = stored.get("settings") if isinstance(stored, dict) else None
        if isinstance(settings, dict) and settings.get("temperature", 0) is None:
            settings["temperature"] = nan
        manifest = validated(cls, stored, str(path), FORMAT)
        check_digest(digest, raw, str(path))
        return manifest


def _jsonable(value: Any) -> Any:
    """Return a value as JSON stores it: paths as text, NaN (an unknown temperature) as null."""
    if isinstance(value, dict):
        return {key: _jsonable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_jsonable(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and isnan(value) else value


def differences(old: RunManifest, new: RunManifest) -> list[str]:
    """Return ``name old -> new`` for each fact of the identity on which the two disagree.

    The options of an arm that only one of them has are left out: the list of arms shows it already.
    """
    pairs = ((old, new), (new, old))
    one_sided = {fact for run, other in pairs for name in run.arms.keys() - other.arms for fact in run.arm_identity(name)}
    before, after = ({name: fact for name, fact in run.identity().items() if name not in one_sided} for run in (old, new))
    return changed_facts(before, after)


def changed_facts(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return ``name old -> new`` for each fact on which the two disagree. An unknown number, NaN, equals another."""
    both = [(name, old.get(name), new.get(name)) for name in {**old, **new}]
    return [f"{name} {_shown(before)} -> {_shown(after)}" for name, before, after in both if not _equal(before, after)]


def _equal(old: Any, new: Any) -> bool:
    return bool(old == new or (old != old and new != new))


def _shown(fact: Any) -> str:
    text = ", ".join(map(str, fact)) if isinstance(fact, list) else "" if fact is None else str(fact)
    return text[:12] + "…" if len(text) == 64 else text or "none"  # 64 characters: a sha256
