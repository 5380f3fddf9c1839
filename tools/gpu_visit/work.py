"""What a visit to a GPU is about, and what of it is done: one small file a piece, beside what the piece itself leaves."""

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
from specbench.util.environment import environment, git_state
from specbench.util.files import whole

ASKED = "asked.json"
OUTCOME = "outcome.txt"
SURROUNDINGS = ("gpu", "torch", "transformers")
LARGEST = 16 * 2**20  # bytes of a file that is to be brought back


@dataclass(frozen=True)
class Asked:
    """The settings all pieces share, defaults resolved."""

    target: str
    device: str
    dtype: str
    limit: int  # questions a category of the run
    tuning: str | None  # suite file to tune on

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What two pieces have to agree on to lie side by side: settings, contents of the tuning file, code, device and versions."""
        tuning = hashlib.sha256(Path(self.tuning).read_bytes()).hexdigest()[:12] if self.tuning else None
        found = environment(torch.device(self.device))
        return {**asdict(self), "tuning": tuning, "code": code_sha256()[:12], **{name: found[name] for name in SURROUNDINGS}}

    def fingerprint(self) -> str:
        """Eight hex digits of the identity, for a folder name that the same command finds again."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class Work:
    """The settings, where everything goes, and the seconds that a piece may take."""

    asked: Asked
    out: Path
    seconds: float

    def done(self, piece: str) -> dict[str, Any] | None:
        """What a finished piece noted, None for one that is left to do."""
        path = self._file(piece)
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def finish(self, piece: str, facts: dict[str, Any]) -> None:
        """Note the piece as done, and by which code."""
        _write(self._file(piece), {**facts, "code": self.asked.identity["code"], "git": git_state()})

    def begin(self) -> None:
        """Forget how the visit before ended."""
        (self.out / OUTCOME).unlink(missing_ok=True)

    def end(self, outcome: str) -> None:
        """One line on how the visit ended, for whoever reads the folder or, as make does, loses the exit code."""
        with whole(self.out / OUTCOME) as file:
            file.write_text(outcome + "\n", encoding="utf-8")

    def claim(self) -> None:
        """Raises UserError where the folder is of a visit with another identity: pieces of two programs would be read as one."""
        path, now = self.out / ASKED, self.asked.identity
        if not path.is_file():
            _write(path, now)
            return
        then = json.loads(path.read_text(encoding="utf-8"))
        changed = [f"{name} {then.get(name)} -> {value}" for name, value in now.items() if then.get(name) != value]
        if changed:
            raise UserError(f"{self.out} holds a visit with other settings: {'; '.join(changed)}; choose another --out")

    def listing(self) -> list[str]:
        """Every file to bring back with its size, the largest last; those above ``LARGEST`` say so."""
        files = sorted((path for path in self.out.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
        total = sum(path.stat().st_size for path in files)
        lines = [f"{path.stat().st_size / 1024:10,.1f} KiB  {path}{_remark(path)}" for path in files]
        return [*lines, f"{total / 1024:10,.1f} KiB in {len(files)} files to bring back"]

    def _file(self, piece: str) -> Path:
        return self.out / "pieces" / f"{piece}.json"


@lru_cache
def code_sha256() -> str:
    """Of every file of this project's packages: a commit does not tell one changed checkout from another."""
    digest = hashlib.sha256()
    for package in (methods, specbench):
        root = Path(package.__path__[0])
        for path in sorted(root.rglob("*")):
            name = path.relative_to(root)
            if path.is_file() and not any(part == "__pycache__" or part.startswith(".") for part in name.parts):
                digest.update(f"{package.__name__}/{name.as_posix()} {path.stat().st_size}\n".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _remark(path: Path) -> str:
    return f"  (above {LARGEST // 2**20} MiB: leave it or pack it)" if path.stat().st_size > LARGEST else ""


def _write(path: Path, facts: dict[str, Any]) -> None:
    with whole(path) as file:
        file.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
