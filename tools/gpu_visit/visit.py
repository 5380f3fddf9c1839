"""A visit: its settings, its folder, and which of its steps are done."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch

import methods
import specbench
from methods.core.errors import UserError
from specbench.config.options import RunConfig
from specbench.studies.base import write_json
from specbench.util.environment import environment, git_state
from specbench.util.files import write_text
from specbench.util.stored import FileFormat, read_json
from tools import gpu_visit

SETTINGS = "settings.json"
FORMAT = FileFormat("file of a visit", None, "choose another --out")
OUTCOME = "outcome.txt"
SURROUNDINGS = ("gpu", "torch", "transformers")  # facts of the environment that must stay the same
LARGEST = 16 * 2**20  # bytes of a file that can be brought back


@dataclass(frozen=True)
class VisitSettings:
    """The settings that all steps share. ``config`` is settled; its limit is that of the run."""

    config: RunConfig
    tuning: Path | None = None  # suite file to tune on

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The facts on which all steps of a folder must agree: settings, tuning prompts, code, device, and versions."""
        prompts = hashlib.sha256(self.tuning.read_bytes()).hexdigest()[:12] if self.tuning else None
        machine = asdict(environment(torch.device(self.config.device)))
        return {
            "target": self.config.target,
            "device": self.config.device,
            "dtype": self.config.dtype,
            "limit": self.config.limit,
            "tuning": prompts,
            "code": code_sha256()[:12],
            **{name: machine[name] for name in SURROUNDINGS},
        }

    def fingerprint(self) -> str:
        """Return eight hex digits of the identity, for a folder name that the same command finds again."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Visit:
    """The settings of a visit, its folder, and the seconds that are left to it or to its current step."""

    settings: VisitSettings
    out: Path
    seconds: float

    @property
    def config(self) -> RunConfig:
        """The settled settings that all steps share."""
        return self.settings.config

    def done(self, step: str) -> dict[str, Any] | None:
        """Return the facts that a finished step stored, or None if it is not done."""
        path = self._file(step)
        return read_json(path, FORMAT) if path.is_file() else None

    def finish(self, step: str, facts: dict[str, Any]) -> None:
        """Store that a step is done, its facts, and the code that did it."""
        write_json(self._file(step), {**facts, "code": self.settings.identity["code"], "git": asdict(git_state())})

    def begin(self) -> None:
        """Remove the outcome of the call before."""
        (self.out / OUTCOME).unlink(missing_ok=True)

    def end(self, outcome: str) -> None:
        """Write the outcome in one line; ``make`` loses the exit code."""
        write_text(self.out / OUTCOME, outcome + "\n")

    def claim(self) -> None:
        """Store the identity in the folder. Raises UserError if the folder holds a visit with another one."""
        path, now = self.out / SETTINGS, self.settings.identity
        if not path.is_file():
            write_json(path, now)
            return
        then = read_json(path, FORMAT)
        changed = [f"{name} {then.get(name)} -> {value}" for name, value in now.items() if then.get(name) != value]
        if changed:
            raise UserError(f"{self.out} holds a visit with other settings: {'; '.join(changed)}; choose another --out")

    def listing(self) -> list[str]:
        """Return a line for every file with its size, the largest last, and a total; files above ``LARGEST`` are marked."""
        files = sorted((path for path in self.out.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        total = sum(path.stat().st_size for path in files)
        lines = [f"{path.stat().st_size / 1024:10,.1f} KiB  {path}{_too_large(path)}" for path in files]
        return [*lines, f"{total / 1024:10,.1f} KiB in {len(files)} files to bring back"]

    def _file(self, step: str) -> Path:
        return self.out / "steps" / f"{step}.json"


@lru_cache
def code_sha256() -> str:
    """Return a checksum of every file of this project's packages; a commit does not identify a changed checkout."""
    digest = hashlib.sha256()
    for package in (methods, specbench, gpu_visit):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root)
            if path.is_file() and not any(part == "__pycache__" or part.startswith(".") for part in name.parts):
                digest.update(f"{package.__name__}/{name.as_posix()} {path.stat().st_size}\n".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _too_large(path: Path) -> str:
    return f"  (above {LARGEST // 2**20} MiB: leave it or pack it)" if path.stat().st_size > LARGEST else ""
