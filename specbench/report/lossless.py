"""The losslessness report that ``specbench agree RUN --json`` wrote, as part of the report.

It is read from the run's directory and never made here, because that takes the target.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import Any

from methods.core.errors import UserError
from specbench.analysis.agreement import arms_without_ids, first_divergence
from specbench.config.arm import BASELINE
from specbench.lossless import text
from specbench.lossless.differences import ArmAgreement, Divergence, LosslessReport
from specbench.report.blocks import Block, Bullets, Paragraph
from specbench.store.manifest import RunManifest
from specbench.store.records import Record
from specbench.util import files
from specbench.util.stored import FileFormat, read_json

FILE = files.AGREEMENT
NOT_JUDGED = (
    "The differences were not judged: each may be a rounding tie or a bug. "
    f"To judge them by the target's fp32 logits: specbench agree RUN --json > RUN/{FILE}."
)


@dataclass(frozen=True)
class SavedLosslessReport:
    """A losslessness report with its rule in the words that were written then."""

    report: LosslessReport
    rule: str


def read_lossless_report(run_dir: Path, manifest: RunManifest, records: Sequence[Record]) -> SavedLosslessReport | None:
    """Return the run's losslessness report, or None if there is none.

    Raises UserError for a file that is not one or that belongs to other records.
    """
    path = run_dir / FILE
    if not path.is_file():
        return None
    again = f"make it again: specbench agree {run_dir} --json > {path}"
    fields = read_json(path, FileFormat("losslessness report", text.SCHEMA, again))
    try:
        schema, name, rule = fields["schema"], fields["run"], str(fields["tolerance"]["rule"])
        if schema != text.SCHEMA:
            raise UserError(f"{path}: agreement schema {schema}, this version reads {text.SCHEMA}; {again}")
        if name != manifest.name:
            raise UserError(f"{path} is of the run {name!r}, not of {manifest.name!r}; {again}")
        report = _parse_report(fields)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(f"{path}: not a losslessness report ({type(error).__name__}: {error}); {again}") from None

    if report.dtype != manifest.settings.dtype or _summary_of_report(report) != _summary_of_records(manifest, records):
        raise UserError(f"{path} is not of the records beside it; {again}")
    return SavedLosslessReport(report, rule)


def blocks(saved: SavedLosslessReport | None, manifest: RunManifest, labels: Mapping[str, str]) -> list[Block]:
    """Return each arm's ties and violations, the rule, and every violation.

    Without a report, a greedy run gets the command that makes one.
    """
    if saved is None:
        return [] if manifest.settings.temperature else [Paragraph(NOT_JUDGED)]
    labelled = replace(saved.report, arms=tuple(_with_label(arm, labels) for arm in saved.report.arms))
    lines = list(text.violations(labelled))
    end: Block = Bullets(lines) if lines else Paragraph("No violation: every difference is a numeric tie by that rule.")
    return [text.table(labelled), Paragraph(saved.rule), end]


def _parse_report(fields: dict[str, Any]) -> LosslessReport:
    """Parse a report. Raises ValueError if its totals contradict its parts: it was edited or is cut short."""
    report = LosslessReport(fields["run"], fields["dtype"], tuple(map(_parse_arm, fields["arms"])))
    formed = json.loads(json.dumps(text.as_fields(report)))
    if any(formed[name] != fields[name] for name in ("violations", "arms")):
        raise ValueError("its numbers contradict one another")
    return report


def _parse_arm(fields: dict[str, Any]) -> ArmAgreement:
    not_compared = fields["not_compared"]
    divergences = tuple(map(_parse_divergence, fields["divergences"]))
    return ArmAgreement(
        fields["arm"], fields["engine"], fields["compared"], not_compared["other_prompt"], not_compared["unanswered"], divergences
    )


def _parse_divergence(fields: dict[str, Any]) -> Divergence:
    own = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items() if name != "verdict"}
    return Divergence(**own | {"shortfall": inf if own["shortfall"] is None else own["shortfall"]})


DivergencePlace = tuple[str, str, int, int, int]  # a record's key and the index of the first token that differs


def _summary_of_report(report: LosslessReport) -> tuple[dict[str, int], set[DivergencePlace]]:
    """Return the number of compared turns of each arm, and where they diverge, by the report."""
    places = {(one.arm, one.question_id, one.turn, one.repeat, one.position) for one in report.divergences}
    return {arm.arm: arm.compared for arm in report.arms}, places


def _summary_of_records(manifest: RunManifest, records: Sequence[Record]) -> tuple[dict[str, int], set[DivergencePlace]]:
    """Return the number of comparable turns of each arm, and where they diverge, by the records."""
    vanilla = {record.key[1:]: record for record in records if record.arm == BASELINE and record.status == "ok"}
    text_only = arms_without_ids(records)
    compared = {name: 0 for name in manifest.arms if name not in {BASELINE, *text_only}}
    places: set[DivergencePlace] = set()
    for record in records:
        theirs = vanilla.get(record.key[1:])
        if record.arm in compared and record.status == "ok" and theirs and theirs.prompt_sha256 == record.prompt_sha256:
            compared[record.arm] += 1
            position = first_divergence(record.output_ids, theirs.output_ids)
            places |= set() if position is None else {(*record.key, position)}
    return compared, places


def _with_label(arm: ArmAgreement, labels: Mapping[str, str]) -> ArmAgreement:
    label = labels[arm.arm]
    return replace(arm, arm=label, divergences=tuple(replace(divergence, arm=label) for divergence in arm.divergences))
