"""Where an arm first left vanilla's greedy text, and whether the target was torn there: a numeric tie or a violation.

Tree and one-token forwards round differently, so in bf16 a near tie between two tokens can fall either way. The target is
asked again, in fp32, after the text both arms agree on: its top-1/top-2 gap tells a tie from a bug.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.table import Table

from methods.core.errors import UserError
from specbench import prompts, records
from specbench.agreement import first_divergence
from specbench.manifest import RunManifest
from specbench.records import BASELINE, Record
from specbench.runner import Session
from specbench.session import Options, prepare
from specbench.targets import DTYPES

ROUNDINGS = 4  # a tie: the gap is within so many roundings, at the run's precision, of the largest logit


@dataclass(frozen=True)
class Divergence:
    """``position`` counts output tokens from 0; ``gap`` is the fp32 logit of the target's first choice less its second's."""

    method: str
    question_id: str
    turn: int
    repeat: int
    position: int
    tokens: tuple[int, int]  # vanilla's and the arm's
    gap: float
    tolerance: float
    between_top_two: bool

    @property
    def is_tie(self) -> bool:
        return self.between_top_two and self.gap <= self.tolerance


@dataclass(frozen=True)
class Explained:
    """Turns with vanilla's prompt, per method, and every divergence among them."""

    compared: dict[str, int]
    divergences: list[Divergence]

    @property
    def violations(self) -> list[Divergence]:
        return [each for each in self.divergences if not each.is_tie]


def explain(run_dir: Path) -> Explained:
    """Compare every arm of a greedy run with vanilla. Raises UserError for a run at a temperature: there texts may differ."""
    manifest = RunManifest.read(run_dir)
    if manifest.settings.temperature:
        raise UserError(
            f"{run_dir} was sampled at temperature {manifest.settings.temperature}; only greedy runs can be compared token by token"
        )
    found = {record.key: record for record in records.read(run_dir)[0]}
    session = prepare(replace(Options.of(manifest), dtype="fp32"))
    precision = torch.finfo(DTYPES[manifest.settings.dtype]).eps
    compared = dict.fromkeys((name for name in manifest.settings.methods if name != BASELINE), 0)
    divergences = []
    for ours, theirs in _pairs(found):
        compared[ours.method] += 1
        position = first_divergence(ours.output_ids, theirs.output_ids)
        if position is not None:
            divergences.append(_explained(session, found, ours, theirs, position, precision))
    return Explained(compared, divergences)


def table(explained: Explained) -> Table:
    """One row a method: how many turns agree, and the widest gap among those that do not."""
    rows = Table("method", "turns compared", "same tokens", "numeric ties", "violations", "widest gap")
    for method, compared in explained.compared.items():
        mine = [each for each in explained.divergences if each.method == method]
        ties = sum(each.is_tie for each in mine)
        widest = f"{max(each.gap for each in mine):.2g}" if mine else "-"
        rows.add_row(method, str(compared), str(compared - len(mine)), str(ties), str(len(mine) - ties), widest)
    return rows


def _pairs(found: dict[tuple[str, str, int, int], Record]) -> Iterator[tuple[Record, Record]]:
    for record in found.values():
        vanilla = found.get((BASELINE, *record.key[1:]))
        if record.method == BASELINE or vanilla is None or not record.status == vanilla.status == "ok":
            continue
        if record.prompt_sha256 == vanilla.prompt_sha256:
            yield record, vanilla


def _explained(session: Session, found: dict, ours: Record, theirs: Record, position: int, precision: float) -> Divergence:
    question = next(each for each in session.suite.questions if each.id == ours.question_id)
    earlier = [found[BASELINE, ours.question_id, turn, ours.repeat].output_text for turn in range(ours.turn)]
    prompt = prompts.encode(session.tokenizer, question.turns[: ours.turn + 1], earlier)
    assert prompts.ids_sha256(prompt) == theirs.prompt_sha256, "the prompt cannot be made again from the suite"
    with torch.inference_mode():
        logits_V = session.target.prefill([*prompt, *theirs.output_ids[:position]]).logits_NV[-1]
    top = logits_V.topk(2)
    tokens = (_token(theirs, position), _token(ours, position))
    return Divergence(
        ours.method,
        ours.question_id,
        ours.turn,
        ours.repeat,
        position,
        tokens,
        gap=float(top.values[0] - top.values[1]),
        tolerance=ROUNDINGS * precision * float(logits_V.abs().max()),
        between_top_two=set(tokens) == set(top.indices.tolist()),
    )


def _token(record: Record, position: int) -> int:
    return record.output_ids[position] if position < len(record.output_ids) else -1
