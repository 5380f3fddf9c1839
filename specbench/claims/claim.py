"""Published claims with their conditions, read from the TOML files of this package.

None stands for a condition that the source leaves open.
"""

import datetime
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

from methods.core.errors import unknown
from specbench.analysis.quantities import QUANTITIES
from specbench.config.arm import BASELINE
from specbench.store.describe import UNKNOWN
from specbench.util.stored import STRICT, FileFormat, validated
from specbench.util.text import one_line, shorten

FORMAT = FileFormat("claim", None, "docs/add-a-claim.md lists its fields")
DEVIATIONS = 2  # half-width of the range around a published point, in run-to-run standard deviations


@dataclass(frozen=True)
class _Point:
    """A published number, and its relative standard deviation."""

    __pydantic_config__ = STRICT

    value: float
    spread: float


@dataclass(frozen=True)
class Claim:
    """A published range, ``low`` to ``high``, with its source and conditions: how much better ``arm`` is than ``over`` in a quantity.

    Both arms are named as in ``--method``, with the options that the claim is about. ``high`` is None if the source
    gives a lower bound only. ``value`` and ``spread`` (relative standard deviation) are set if it gives a single number.
    ``confirmed`` says what the source itself states, ``second_hand`` what others report of it. ``leaderboard`` marks
    rows that stand beside other verdicts. ``covers`` says which questions the number is over. ``metric`` names the
    definition in ``QUANTITIES`` that the source used, ``judged_by`` the one that a run is judged by. ``tree`` holds
    options of the arm, ``gpu`` words of the device's name, ``parameters`` the size of the target.
    """

    __pydantic_config__ = STRICT

    name: str
    title: str
    arm: str
    low: float
    range_from: str
    confirmed: str
    second_hand: str
    covers: str | None
    mat: float | None
    source: str
    address: str
    date: datetime.date
    note: str
    suite: str | None
    suite_sha256: str | None
    questions: int | None
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
    high: float | None = None
    value: float | None = None
    spread: float | None = None
    over: str = BASELINE
    quantity: Literal["speedup", "MAT", "drafting time"] = "speedup"
    leaderboard: bool = False

    @property
    def range_text(self) -> str:
        """The range as ``2.26x-2.60x`` or ``at least 1.30x``, or a point with its range as ``1.71x (1.58x-1.84x)``."""
        if self.high is None:
            return f"at least {self.low:.2f}x"
        ends = f"{self.low:.2f}x-{self.high:.2f}x"
        return ends if self.value is None else f"{self.value:.2f}x ({ends})"


@cache
def load_claims() -> dict[str, Claim]:
    """Return every claim in the package, by name. Raises UserError for a file that holds something else."""
    folder = resources.files(__package__)
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".toml")), key=lambda file: file.name)
    return {name: claim for file in files for name, claim in parse_claims(file.read_text(encoding="utf-8"), file.name).items()}


def parse_claims(text: str, where: str) -> dict[str, Claim]:
    """Return the claims of one TOML file, called ``where`` in messages, by name. The table ``shared`` holds fields that all of them have.

    Raises UserError naming the first field that is wrong.
    """
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise FORMAT.error(where, one_line(str(error))) from None
    shared, rows = table.get("shared", {}), table.get("claims")
    if not isinstance(shared, dict) or not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise FORMAT.error(where, "it needs tables [claims.NAME], and may have [shared]")
    return {name: _claim(name, shared | row, f"{where}, {name}") for name, row in rows.items()}


def claim_named(name: str) -> Claim:
    """Return the claim of that name. Raises UserError if there is none."""
    if name not in load_claims():
        raise unknown("claim", name, load_claims())
    return load_claims()[name]


def _claim(name: str, row: Mapping[str, Any], where: str) -> Claim:
    fields: dict[str, Any] = {"name": name} | {key: None if value == UNKNOWN else value for key, value in row.items()}
    if "value" in fields:
        point = validated(_Point, {key: fields.get(key) for key in ("value", "spread")}, where, FORMAT)
        margin = DEVIATIONS * point.spread
        fields |= {"low": point.value * (1 - margin), "high": point.value * (1 + margin)}
    claim = validated(Claim, fields, where, FORMAT)
    definitions = [definition.__name__ for definition in QUANTITIES[claim.quantity]]
    if claim.judged_by not in definitions:
        raise FORMAT.error(
            where, f"judged_by: {shorten(claim.judged_by)} does not define {claim.quantity}; choices: {', '.join(definitions)}"
        )
    return claim
