"""Data frames of a run: one row per turn, and the turns on which two arms are compared."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from specbench.analysis.agreement import repetition
from specbench.config.arm import BASELINE
from specbench.store.manifest import ArmFacts
from specbench.store.records import OVERALL, STEP_PARTS, Record, device_kind

KEY = ["question_id", "turn", "repeat"]
CELL = ["category", "question_id", "repeat"]
ARM_COLUMNS = ["method", "backend", "engine", "repeat_of"]  # from the manifest
RECORD_COLUMNS = [
    "arm", *KEY, "category", "status", "error", "prompt_sha256", "prompt_tokens", "prefill_tokens", "stop", "prefill_s", "total_s",
    "peak_bytes", "timing", "device",
]  # fmt: skip
SUM_COLUMNS = ["steps", "emitted", *STEP_PARTS, "decode_s", "other_s"]
LIST_COLUMNS = ["output_ids", "output_text", "depths", "accepted", "emitted_by_step"]  # left out of written tables
COLUMNS = [*RECORD_COLUMNS, *ARM_COLUMNS, "tokens", "text_tokens", *SUM_COLUMNS, "repetition", *LIST_COLUMNS]
UNKNOWN_IF_IMPORTED = ["prompt_tokens", "prefill_s", *STEP_PARTS, "decode_s", "other_s", "peak_bytes", "repetition"]
UNKNOWN_BY_TIMING = {"parts": [], "steps": [*STEP_PARTS], "answer": [*STEP_PARTS, "decode_s", "other_s", "peak_bytes"]}
CELL_SUMS = ["tokens", "text_tokens", "total_s", "emitted", "steps", "decode_s", "draft_s"]


def turns_frame(records: Iterable[Record], arms: Mapping[str, ArmFacts]) -> pd.DataFrame:
    """Return one row per turn, failed ones included: facts of the record and its arm, and sums over its steps.

    Times are seconds. NaN stands for what a record does not hold:

    - ``text_tokens`` where it was not recorded;
    - of imported answers the columns in ``UNKNOWN_IF_IMPORTED``, and ``tokens`` where the file says 0,
      which Spec-Bench's files do for answers that were not counted;
    - of other engines the columns that ``UNKNOWN_BY_TIMING`` lists for the record's ``timing``.

    Steps that only a server counted are sums without lists. They are 0 where the server did not count them.
    """
    frame = pd.DataFrame([_row(record) | _arm_values(arms.get(record.arm)) for record in records], columns=COLUMNS)
    texts = [name for name, dtype in frame.dtypes.items() if dtype == "str"]
    # Rows are selected often: of Arrow's strings, pandas' default, and of columns kept one by one that is slow. A copy keeps
    # the columns of a type together.
    return frame.astype(dict.fromkeys(texts, object)).copy()


def _arm_values(facts: ArmFacts | None) -> dict[str, Any]:
    """Return the columns of an arm; none if the manifest does not have the arm."""
    return {} if facts is None else {name: getattr(facts, name) for name in ARM_COLUMNS}


def _row(record: Record) -> dict[str, Any]:
    steps = record.steps
    draft_s, verify_s, commit_s = sum(steps.draft_s), sum(steps.verify_s), sum(steps.commit_s)
    decode_s = draft_s + verify_s + commit_s + sum(steps.step_s)
    count, emitted = len(steps.emitted), sum(steps.emitted)
    if record.drafting is not None:
        count, emitted = record.drafting.steps, record.drafting.steps + record.drafting.accepted

    row = {name: getattr(record, name) for name in RECORD_COLUMNS} | {
        "tokens": record.token_count,
        "text_tokens": np.nan if record.text_tokens is None else record.text_tokens,
        "steps": count,
        "emitted": emitted,
        "draft_s": draft_s,
        "verify_s": verify_s,
        "commit_s": commit_s,
        "decode_s": decode_s,
        "other_s": record.total_s - record.prefill_s - decode_s,
        "repetition": repetition(record.output_ids),
        "output_ids": record.output_ids,
        "output_text": record.output_text,
        "depths": steps.depth,
        "accepted": steps.accepted,
        "emitted_by_step": steps.emitted,
    }

    unknown = UNKNOWN_BY_TIMING[record.timing]
    if record.tokens is not None:
        row["tokens"] = record.tokens or np.nan
        unknown = UNKNOWN_IF_IMPORTED if record.timing == "parts" else [*unknown, "repetition"]
    return row | dict.fromkeys(unknown, np.nan)


@dataclass(frozen=True)
class Pair:
    """The turns of an arm and of its reference on the same questions; ``reference`` is empty if the run has none."""

    arm: pd.DataFrame
    reference: pd.DataFrame
    failed: int  # questions left out because a turn failed in one of the arms
    mixed: int  # questions left out because their turns ran on devices of different kinds

    @property
    def excluded(self) -> int:
        """The number of questions left out of both arms."""
        return self.failed + self.mixed

    @property
    def comparable(self) -> bool:
        """Whether the reference has turns to compare with."""
        return not self.reference.empty

    @cached_property
    def cells(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The ``CELL_SUMS`` of the arm and of the reference, added up over turns, on one index, ``CELL``.

        A cell is one repeat of one question. Without a reference its columns are NaN.
        """
        ours, theirs = (sums(rows[[*CELL, *CELL_SUMS]].set_index(CELL), CELL) for rows in (self.arm, self.reference))
        return ours, theirs.reindex(ours.index)


def pair(turns: pd.DataFrame, arm: str, reference: str = BASELINE) -> Pair:
    """Return the turns on which two arms are compared.

    A question is left out of both arms if a turn of it failed in one of them or if its turns ran on
    devices of different kinds. If the reference did not run, only the arm's own turns decide.
    """
    both = turns[turns["arm"].isin([arm, reference])]
    failed = set(both.loc[both["status"] != "ok", "question_id"])
    mixed = _mixed_devices(both) - failed
    sound = both[~both["question_id"].isin(failed | mixed)] if failed or mixed else both
    ours, theirs = sound[sound["arm"] == arm], sound[sound["arm"] == reference]
    keys = [list(zip(*(rows[name] for name in KEY), strict=True)) for rows in (ours, theirs)]
    if keys[0] != keys[1] and (turns["arm"] == reference).any():
        shared = set(keys[0]) & set(keys[1])
        ours, theirs = (
            rows[np.array([key in shared for key in of_rows], bool)] for rows, of_rows in zip((ours, theirs), keys, strict=True)
        )
    return Pair(ours, theirs, len(failed), len(mixed))


def _mixed_devices(turns: pd.DataFrame) -> set[str]:
    """Return the questions of which one repeat ran on devices of more than one kind, over all turns and arms.

    Server rows have no device and are ignored here; report/findings.py warns about them.
    """
    own = turns[turns["timing"] != "answer"]
    kind_of = {device: device_kind(device) for device in own["device"].unique()}
    if len(set(kind_of.values())) < 2:
        return set()
    kinds = own["device"].map(kind_of).groupby([own["question_id"], own["repeat"]]).nunique()
    return set(kinds[kinds > 1].index.get_level_values("question_id"))


def sums(frame: pd.DataFrame, levels: list[str]) -> pd.DataFrame:
    """Return column sums by levels of the index, sorted. A NaN makes its sum NaN; pandas would skip it."""
    groups = frame.groupby(levels, sort=True)
    total = np.zeros((groups.ngroups, frame.shape[1]))
    np.add.at(total, groups.ngroup().to_numpy(), frame.to_numpy(dtype=float))
    return pd.DataFrame(total, index=groups.size().index, columns=frame.columns)


def of_category(turns: pd.DataFrame, category: str) -> pd.DataFrame:
    """Return the turns of a category; all turns for ``OVERALL``."""
    return turns if category == OVERALL else turns[turns["category"] == category]
