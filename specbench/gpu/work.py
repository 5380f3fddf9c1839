"""What a visit to a GPU is about, and what of it is done: one small file a piece, beside what the piece itself leaves."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from methods.core.errors import UserError
from specbench.train.files import whole

ASKED = "asked.json"
LARGEST = 16 * 2**20  # bytes of a file that is to be brought back


@dataclass(frozen=True)
class Asked:
    """The settings all pieces share; None stands for a default that depends on the device."""

    target: str
    device: str
    dtype: str
    limit: int  # questions a category of the run
    tuning: str | None  # suite file to tune on


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
        _write(self._file(piece), facts)

    def claim(self) -> None:
        """Raises UserError where the folder is of a visit with other settings; a tuning file may come later."""
        path = self.out / ASKED
        now = {each.name: getattr(self.asked, each.name) for each in fields(self.asked) if each.name != "tuning"}
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


def _remark(path: Path) -> str:
    return f"  (above {LARGEST // 2**20} MiB: leave it or pack it)" if path.stat().st_size > LARGEST else ""


def _write(path: Path, facts: dict[str, Any]) -> None:
    with whole(path) as file:
        file.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
