"""The losslessness report, ``specbench agree RUN --json``, as part of the report: read from the run's directory, never made here."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from methods.core.errors import UserError
from specbench.analysis.agreement import first_divergence, without_ids
from specbench.lossless import text
from specbench.report.blocks import Block, Bullets, Paragraph
from specbench.store.manifest import RunManifest
from specbench.store.records import BASELINE, Record

if TYPE_CHECKING:
    from specbench.lossless.divergence import ArmAgreement, Divergence, Explained

FILE = "agreement.json"
NOT_JUDGED = (
    "specbench agree asks the target again, in fp32, at every first difference and tells a numeric tie from a violation. This report "
    f"knows no answer, so a difference in it may be either: specbench agree RUN --json > RUN/{FILE} brings it in."
)


@dataclass(frozen=True)
class Judged:
    """What ``specbench agree`` found, and the rule it was found by, in its words of that time."""

    explained: "Explained"
    rule: str


def read(run_dir: Path, manifest: RunManifest, records: Sequence[Record]) -> Judged | None:
    """The run's losslessness report; None without one. Raises UserError for a file that is none or is of other records."""
    path = run_dir / FILE
    if not path.is_file():
        return None
    again = f"make it again: specbench agree {run_dir} --json > {path}"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        schema, name, rule = fields["schema"], fields["run"], str(fields["tolerance"]["rule"])
        if schema != text.SCHEMA:
            raise UserError(f"{path}: agreement schema {schema}, this version reads {text.SCHEMA}; {again}")
        if name != manifest.name:
            raise UserError(f"{path} is of the run {name!r}, not of {manifest.name!r}; {again}")
        explained = _explained(fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a losslessness report ({type(error).__name__}: {error}); {again}") from None
    if explained.dtype != manifest.settings.dtype or _told(explained) != _counted(manifest, records):
        raise UserError(f"{path} is not of the records beside it; {again}")
    return Judged(explained, rule)


def blocks(judged: Judged | None, manifest: RunManifest, labels: Mapping[str, str]) -> list[Block]:
    """Each arm's ties and violations, the rule, and every violation; of a greedy run without the report, how to have it."""
    if judged is None:
        return [] if manifest.settings.temperature else [Paragraph(NOT_JUDGED)]
    found = replace(judged.explained, arms=tuple(_labelled(arm, labels) for arm in judged.explained.arms))
    lines = list(text.violations(found))
    end: Block = Bullets(lines) if lines else Paragraph("No violation: every difference is a numeric tie by that rule.")
    return [text.table(found), Paragraph(judged.rule), end]


def _explained(fields: dict[str, Any]) -> "Explained":
    """Raises ValueError where the parts do not give the whole: a file that was edited or is cut short."""
    from specbench.lossless.divergence import Explained

    explained = Explained(fields["run"], fields["dtype"], tuple(map(_arm, fields["arms"])))
    formed = json.loads(json.dumps(text.as_fields(explained)))
    if any(formed[name] != fields[name] for name in ("violations", "arms")):
        raise ValueError("its numbers contradict one another")
    return explained


def _arm(fields: dict[str, Any]) -> "ArmAgreement":
    from specbench.lossless.divergence import ArmAgreement

    apart = fields["not_compared"]
    divergences = tuple(map(_divergence, fields["divergences"]))
    return ArmAgreement(fields["method"], fields["compared"], apart["other_prompt"], apart["unanswered"], divergences)


def _divergence(fields: dict[str, Any]) -> "Divergence":
    from specbench.lossless.divergence import Divergence

    own = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items() if name != "verdict"}
    return Divergence(**own | {"shortfall": inf if own["shortfall"] is None else own["shortfall"]})


Place = tuple[str, str, int, int, int]  # a record's key and the index of the first token that differs


def _told(explained: "Explained") -> tuple[dict[str, int], set[Place]]:
    places = {(each.method, each.question_id, each.turn, each.repeat, each.position) for each in explained.divergences}
    return {arm.method: arm.compared for arm in explained.arms}, places


def _counted(manifest: RunManifest, records: Sequence[Record]) -> tuple[dict[str, int], set[Place]]:
    """How many turns of each arm can be compared, and where they part, by the records."""
    vanilla = {record.key[1:]: record for record in records if record.method == BASELINE and record.status == "ok"}
    texts = without_ids(records)
    compared = {name: 0 for name in manifest.settings.methods if name not in {BASELINE, *texts}}
    places: set[Place] = set()
    for record in records:
        theirs = vanilla.get(record.key[1:])
        if record.method in compared and record.status == "ok" and theirs and theirs.prompt_sha256 == record.prompt_sha256:
            compared[record.method] += 1
            position = first_divergence(record.output_ids, theirs.output_ids)
            places |= set() if position is None else {(*record.key, position)}
    return compared, places


def _labelled(arm: "ArmAgreement", labels: Mapping[str, str]) -> "ArmAgreement":
    label = labels[arm.method]
    return replace(arm, method=label, divergences=tuple(replace(each, method=label) for each in arm.divergences))
