"""Published speedups and the conditions they were made under, one TOML table each; None stands for what a source leaves open."""

import datetime
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from methods.core.errors import unknown

UNKNOWN = "unknown"
DEVIATIONS = 2  # a published point stands for the range of so many run-to-run standard deviations to either side


@dataclass(frozen=True)
class Claim:
    """A published range of speedups, ``low`` to ``high``, with its source and conditions.

    ``value`` and ``spread`` (relative standard deviation) are set where a single number was published. ``metric`` names the
    definition in ``metrics.SPEEDUPS`` it was computed by, ``judged_by`` the one that a run is judged by. ``tree`` holds
    options of the arm, ``gpu`` words of the device's name, ``parameters`` the target's. ``covers`` is what the number is over.
    """

    name: str
    title: str
    arm: str
    low: float
    high: float
    range_from: str
    covers: str | None
    mat: float | None
    source: str
    address: str
    date: datetime.date
    note: str
    suite: str
    suite_sha256: str
    questions: int
    target: str | None
    parameters: int | None
    tree: dict[str, int] | None
    drafter: str | None
    drafter_sha256: str | None
    template: str | None
    template_sha256: str | None
    turns: str | None
    gpu: str | None
    torch: str | None
    dtype: str | None
    temperature: float | None
    max_new_tokens: int | None
    batch_size: int | None
    backend: str | None
    lossless: bool | None
    metric: str | None
    judged_by: str
    judged_because: str
    value: float | None = None
    spread: float | None = None

    @property
    def range_text(self) -> str:
        """``2.26x-2.60x``, or a point with the range it stands for: ``1.71x (1.58x-1.84x)``."""
        ends = f"{self.low:.2f}x-{self.high:.2f}x"
        return ends if self.value is None else f"{self.value:.2f}x ({ends})"


@cache
def claims() -> dict[str, Claim]:
    """Every claim in the package, by name."""
    files = sorted((file for file in resources.files(__name__).iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
    tables = [tomllib.loads(file.read_text(encoding="utf-8")) for file in files]
    return {name: _claim(name, table.get("shared", {}) | row) for table in tables for name, row in table["claims"].items()}


def named(name: str) -> Claim:
    """Raises UserError for a name that no claim has."""
    if name not in claims():
        raise unknown("claim", name, claims())
    return claims()[name]


def _claim(name: str, row: Mapping[str, Any]) -> Claim:
    facts: dict[str, Any] = {key: None if value == UNKNOWN else value for key, value in row.items()}
    if "value" in facts:
        margin = DEVIATIONS * facts["spread"]
        facts |= {"low": facts["value"] * (1 - margin), "high": facts["value"] * (1 + margin)}
    return Claim(name=name, **facts)
