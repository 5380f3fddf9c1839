"""From records to a frame of one row a turn, and from it to pairs: a method's turns beside the same turns of another arm."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from specbench.analysis.agreement import repetition
from specbench.store.records import BASELINE, Record, device_kind

OVERALL = "overall"
KEY = ["question_id", "turn", "repeat"]
CELL = ["category", "question_id", "repeat"]
FACTS = [
    "method", *KEY, "category", "status", "error", "prompt_sha256", "prompt_tokens", "prefill_tokens", "stop", "prefill_s", "total_s",
    "peak_bytes", "timing", "device",
]  # fmt: skip
PER_STEP = ["steps", "emitted", "draft_s", "verify_s", "commit_s", "decode_s", "other_s"]
LISTS = ["output_ids", "output_text", "depths", "accepted", "emitted_by_step"]  # what a table has no place for
COLUMNS = [*FACTS, "tokens", "text_tokens", *PER_STEP, "repetition", *LISTS]
PARTS = ["draft_s", "verify_s", "commit_s"]
UNKNOWN_IF_IMPORTED = ["prompt_tokens", "prefill_s", *PARTS, "decode_s", "other_s", "peak_bytes", "repetition"]
UNKNOWN_OF = {"parts": [], "rounds": PARTS, "answer": [*PARTS, "decode_s", "other_s", "peak_bytes"]}  # by a record's ``timing``
SUMMED = ["tokens", "text_tokens", "total_s", "emitted", "steps", "decode_s"]


def turns_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row a turn, failed ones included: the record's facts, the sums of its steps, and the columns in ``LISTS``.

    Times are seconds. ``text_tokens`` is NaN where the record does not have it; of imported answers so are a count of zero
    tokens, which some of Spec-Bench's files hold for not counted, and the columns in ``UNKNOWN_IF_IMPORTED``. Of other engines
    those in ``UNKNOWN_OF`` are; steps that only a server counted are sums without a list, and none where it did not.
    """
    return pd.DataFrame([_row(record) for record in records], columns=COLUMNS)


def _row(record: Record) -> dict[str, Any]:
    steps = record.steps
    draft_s, verify_s, commit_s = sum(steps.draft_s), sum(steps.verify_s), sum(steps.commit_s)
    decode_s = draft_s + verify_s + commit_s + sum(steps.round_s)
    rounds, emitted = len(steps.emitted), sum(steps.emitted)
    if record.drafting is not None:
        rounds, emitted = record.drafting.rounds, record.drafting.rounds + record.drafting.accepted
    row = {name: getattr(record, name) for name in FACTS} | {
        "tokens": record.token_count,
        "text_tokens": np.nan if record.text_tokens is None else record.text_tokens,
        "steps": rounds,
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
    unknown = UNKNOWN_OF[record.timing]
    if record.tokens is not None:
        row["tokens"] = record.tokens or np.nan
        unknown = UNKNOWN_IF_IMPORTED if record.timing == "parts" else [*unknown, "repetition"]
    return row | dict.fromkeys(unknown, np.nan)


@dataclass(frozen=True)
class Pair:
    """A method's turns and the reference's on the same keys; ``reference`` is empty when the run has none."""

    method: pd.DataFrame
    reference: pd.DataFrame
    failed: int  # questions left out of both arms because a turn failed in one of them
    mixed: int  # questions left out of both because their turns ran on devices of different kinds

    @property
    def excluded(self) -> int:
        return self.failed + self.mixed

    @property
    def comparable(self) -> bool:
        return not self.reference.empty

    @cached_property
    def cells(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The two arms' ``SUMMED`` columns with the turns of a cell added up, on one index, ``CELL``.

        A cell is one repeat of one question. Without a reference its columns are NaN.
        """
        ours, theirs = (sums(rows[[*CELL, *SUMMED]].set_index(CELL), CELL) for rows in (self.method, self.reference))
        return ours, theirs.reindex(ours.index)


def pair(turns: pd.DataFrame, method: str, reference: str = BASELINE) -> Pair:
    """The rows on which ``method`` is compared with ``reference``; where that did not run, all of the method's sound questions."""
    arms = turns[turns["method"].isin([method, reference])]
    failed = set(arms.loc[arms["status"] != "ok", "question_id"])
    mixed = _mixed(arms) - failed
    sound = arms[~arms["question_id"].isin(failed | mixed)]
    ours, theirs = sound[sound["method"] == method], sound[sound["method"] == reference]
    if (turns["method"] == reference).any():
        keys = pd.MultiIndex.from_frame(ours[KEY]), pd.MultiIndex.from_frame(theirs[KEY])
        ours, theirs = ours[keys[0].isin(keys[1])], theirs[keys[1].isin(keys[0])]
    return Pair(ours, theirs, len(failed), len(mixed))


def _mixed(arms: pd.DataFrame) -> set[str]:
    """Questions of which one repeat, all turns and arms together, ran on devices of more than one kind: a ratio would compare those.

    Whose device is unknown, a server, says nothing here; remarks do.
    """
    arms = arms[arms["timing"] != "answer"]
    kinds = arms["device"].map(device_kind).groupby([arms["question_id"], arms["repeat"]]).nunique()
    return set(kinds[kinds > 1].index.get_level_values("question_id"))


def sums(frame: pd.DataFrame, levels: list[str]) -> pd.DataFrame:
    """Column sums by levels of the index, sorted; one unknown makes a sum unknown, where pandas would take it for zero."""
    groups = frame.groupby(levels, sort=True)
    total = np.zeros((groups.ngroups, frame.shape[1]))
    np.add.at(total, groups.ngroup().to_numpy(), frame.to_numpy(dtype=float))
    return pd.DataFrame(total, index=groups.size().index, columns=frame.columns)


def of_category(turns: pd.DataFrame, category: str) -> pd.DataFrame:
    return turns if category == OVERALL else turns[turns["category"] == category]
