"""The manifest of a run directory: everything needed to make the run again, and what must be equal to resume it."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from math import isnan, nan
from pathlib import Path
from typing import Any, Self

from methods.core.errors import UserError

SCHEMA = 1
FILE = "manifest.json"
IMPORTED = "imported"  # label of a target of imported answers, of which nothing is known


@dataclass(frozen=True)
class Settings:
    """What was asked for, defaults resolved."""

    methods: list[str]
    target: str
    suite: str
    suite_sha256: str  # of the source, before ``limit`` and ``categories`` choose from it
    limit: int | None
    categories: list[str]
    max_new_tokens: int
    temperature: float  # NaN where imported answers do not say; null in the file
    seed: int
    dtype: str
    device: str
    attention: str
    repeats: int
    turns: str  # whose first answer a second turn sees: "own" or "shared" (vanilla's)
    backend: str = "eager"  # of arms that name none; runs from before there was a choice do not say
    revision: str | None = None  # the commit, of a target from the hub
    template: str = "chat"
    system_prompt: str | None = None
    thinking: str | None = None
    device_map: str | None = None


LATER = {"revision": None, "template": "chat", "system_prompt": None, "thinking": None, "device_map": None}


@dataclass(frozen=True)
class MethodFacts:
    """A method as it ran: its row of the table and its resolved configuration."""

    title: str
    lossless: bool | None  # None: imported answers do not say
    reconstruction: bool
    config: dict[str, Any]
    acceptance: str
    weights_sha256: str | None
    backend: str = "eager"
    drafter: str | None = None  # the file, folder or hub id its weights are from; runs from before they could be chosen do not say
    state: str = ""  # what is kept from one turn to the next
    engine: str = ""  # another program than specbench that decoded, in words; "": specbench


@dataclass(frozen=True)
class RunManifest:
    """``manifest.json``. ``status`` is "running", "complete" or "interrupted"."""

    name: str
    created: str
    settings: Settings
    methods: dict[str, MethodFacts]
    target: dict[str, Any]
    categories: dict[str, int]
    units_total: int
    suite_version: str
    template_sha256: str
    environment: dict[str, Any]
    git: dict[str, Any]
    argv: list[str]
    overrides: list[str]  # --set, as given: ``resume`` repeats them
    suite_file: str | None
    hf_columns: dict[str, str]
    drafter_files: dict[str, str]
    resumed: list[dict[str, Any]] = field(default_factory=list)  # created, environment, git and argv of every later start
    prepared: list[dict[str, Any]] = field(default_factory=list)  # of every start and worker: seconds and peak bytes before its first turn
    config: dict[str, Any] | None = None  # --config, as read: ``resume`` needs no file
    status: str = "running"

    @property
    def own(self) -> dict[str, MethodFacts]:
        """The arms that specbench decoded, without those of other engines."""
        return {name: facts for name, facts in self.methods.items() if not facts.engine}

    @property
    def served(self) -> bool:
        """Whether servers answered beside this machine."""
        return any(facts.backend == "server" for facts in self.methods.values())

    @property
    def environments(self) -> list[dict[str, Any]]:
        """Of every start."""
        return [self.environment, *(start["environment"] for start in self.resumed)]

    def identity(self) -> dict[str, Any]:
        """Flat facts that decide what a record means; two runs that agree on them may share a directory."""
        flat = _stored(self.settings)
        for name, method in self.methods.items():
            flat |= {f"{name}.{key}": value for key, value in method.config.items()}
            flat |= {f"{name}.acceptance": method.acceptance, f"{name}.weights_sha256": method.weights_sha256}
            flat |= {f"{name}.backend": method.backend}
        flat |= {"target.weights_sha256": self.target.get("weights_sha256"), "template_sha256": self.template_sha256}
        return flat

    def fingerprint(self) -> str:
        """Eight hex digits of the identity, for a directory name that the same command finds again."""
        # What came to be asked after the first runs counts only where it was: the same command finds those runs too.
        later = {name: default for name, default in LATER.items() if getattr(self.settings, name) == default}
        flat = {key: value for key, value in self.identity().items() if key not in later}
        return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()[:8]

    def write(self, run_dir: Path) -> None:
        """Replaces the file as a whole: a process killed at any moment leaves the old manifest or the new one."""
        temporary = run_dir / f".{FILE}.tmp"
        with temporary.open("w", encoding="utf-8") as file:
            fields = {"schema": SCHEMA, "status": self.status, **asdict(self), "settings": _stored(self.settings)}
            json.dump(fields, file, indent=1, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(run_dir / FILE)

    @classmethod
    def read(cls, run_dir: Path) -> Self:
        """Raises UserError for a missing or broken manifest and for one of another schema version."""
        path = run_dir / FILE
        if not path.is_file():
            raise UserError(f"{run_dir} holds no {FILE}, so it is no run directory; give the directory that `specbench run` printed")
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is not a manifest ({error}); restore it or use another --out") from None
        schema = facts.pop("schema", None) if isinstance(facts, dict) else None
        if schema != SCHEMA:
            raise UserError(f"{path}: schema version {schema}, this version reads {SCHEMA}; use another --out or the version that wrote it")
        try:
            facts["settings"] = _restored(facts["settings"])
            facts["methods"] = {name: MethodFacts(**method) for name, method in facts["methods"].items()}
            return cls(**facts)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not a manifest ({error}); restore it or use another --out") from None


def _stored(settings: Settings) -> dict[str, Any]:
    """The settings as the file and the identity have them: an unknown temperature is None, which JSON has and which equals itself."""
    fields = asdict(settings)
    return fields | {"temperature": None} if isnan(settings.temperature) else fields


def _restored(fields: dict[str, Any]) -> Settings:
    return Settings(**(fields | {"temperature": nan} if fields["temperature"] is None else fields))


def differences(old: RunManifest, new: RunManifest) -> list[str]:
    """``name old -> new`` of each fact of the identity on which the two disagree.

    A method only one of them has is named once, by the list of methods, and not again option by option.
    """
    before, after = old.identity(), new.identity()
    one_sided = old.methods.keys() ^ new.methods.keys()
    keys = [key for key in before | after if key.split(".")[0] not in one_sided]
    changed = [key for key in keys if before.get(key) != after.get(key)]
    return [f"{key} {_short(before.get(key))} -> {_short(after.get(key))}" for key in changed]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] + "…" if len(text) == 64 else text
