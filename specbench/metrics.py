"""From records to numbers: pure functions on a frame of one row a turn.

Times are seconds unless a name ends in ``_ms``. A question's turns and repeats are summed before anything is compared.
A method is compared with vanilla on the same (question, turn, repeat) only, and a question of which any turn failed in
either arm is left out of both (see ``pair``).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from specbench.agreement import NOTHING_TO_COMPARE, agreement, repetition
from specbench.records import BASELINE, Record
from specbench.stats import UNKNOWN, Estimate, geometric_mean, ratio_of_sums

OVERALL = "overall"
PHYSICS_MARGIN = 1.05  # at batch 1 a decode speedup above MAT times this is an error of accounting (DESIGN rule 7)
KEY = ["question_id", "turn", "repeat"]
FACTS = ["method", *KEY, "category", "status", "error", "prompt_sha256", "prompt_tokens", "stop", "prefill_s", "total_s", "peak_bytes"]
PER_STEP = ["steps", "emitted", "draft_s", "verify_s", "commit_s", "decode_s", "other_s"]
COLUMNS = [*FACTS, "tokens", *PER_STEP, "repetition", "output_ids", "depths", "accepted"]


def turns_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row a turn, failed ones included: the record's facts, the sums of its steps, and three list columns."""
    return pd.DataFrame([_row(record) for record in records], columns=COLUMNS)


def _row(record: Record) -> dict[str, Any]:
    steps = record.steps
    draft_s, verify_s, commit_s = sum(steps.draft_s), sum(steps.verify_s), sum(steps.commit_s)
    decode_s = draft_s + verify_s + commit_s
    return {name: getattr(record, name) for name in FACTS} | {
        "tokens": len(record.output_ids),
        "steps": len(steps.emitted),
        "emitted": sum(steps.emitted),
        "draft_s": draft_s,
        "verify_s": verify_s,
        "commit_s": commit_s,
        "decode_s": decode_s,
        "other_s": record.total_s - record.prefill_s - decode_s,
        "repetition": repetition(record.output_ids),
        "output_ids": record.output_ids,
        "depths": steps.depth,
        "accepted": steps.accepted,
    }


@dataclass(frozen=True)
class Pair:
    """A method's turns and vanilla's on the same keys; ``vanilla`` is empty when the run has none."""

    method: pd.DataFrame
    vanilla: pd.DataFrame
    excluded: int  # questions left out of both arms because a turn failed in one of them

    @property
    def comparable(self) -> bool:
        return not self.vanilla.empty


def pair(turns: pd.DataFrame, method: str) -> Pair:
    """The rows on which ``method`` is compared with vanilla; without a vanilla arm, all of the method's sound questions."""
    arms = turns[turns["method"].isin([method, BASELINE])]
    failed = set(arms.loc[arms["status"] != "ok", "question_id"])
    sound = arms[~arms["question_id"].isin(failed)]
    ours, vanilla = sound[sound["method"] == method], sound[sound["method"] == BASELINE]
    if (turns["method"] == BASELINE).any():
        keys = pd.MultiIndex.from_frame(ours[KEY]), pd.MultiIndex.from_frame(vanilla[KEY])
        ours, vanilla = ours[keys[0].isin(keys[1])], vanilla[keys[1].isin(keys[0])]
    return Pair(ours, vanilla, len(failed))


def _questions(rows: pd.DataFrame) -> pd.DataFrame:
    """Sums over each question's turns and repeats; the index is (category, question_id)."""
    return rows.groupby(["category", "question_id"], sort=True)[["tokens", "total_s", "emitted", "steps", "decode_s"]].sum()


def _categories(questions: pd.DataFrame) -> list[str]:
    return [str(category) for category in questions.index.get_level_values("category")]


def mat(rows: pd.DataFrame) -> Estimate:
    """Mean accepted tokens: emitted tokens over steps, pooled over all turns (Spec-Bench's; the bonus counts, vanilla is 1)."""
    questions = _questions(rows)
    return ratio_of_sums(questions["emitted"].to_numpy(), questions["steps"].to_numpy(), _categories(questions))


def tokens_per_s(rows: pd.DataFrame) -> float:
    """End to end: mean over questions of output tokens over seconds, both summed over the question's turns (Spec-Bench's)."""
    questions = _questions(rows)
    return float((questions["tokens"] / questions["total_s"]).mean())


def tokens_per_s_decode(rows: pd.DataFrame) -> float:
    """Emitted tokens over the seconds of all steps, pooled: prefill and its token are left out."""
    return _ratio(rows["emitted"].sum(), rows["decode_s"].sum())


def speedup(both: Pair) -> Estimate:
    """The headline: vanilla's end-to-end time per output token over the method's, geometric mean over paired questions."""
    return _paired_ratio(both, "total_s", "tokens")


def speedup_decode(both: Pair) -> Estimate:
    """Vanilla's step time per emitted token over the method's, geometric mean over paired questions that emitted any."""
    return _paired_ratio(both, "decode_s", "emitted")


def _paired_ratio(both: Pair, time: str, count: str) -> Estimate:
    logs = (_log_time(both.vanilla, time, count) - _log_time(both.method, time, count)).dropna()
    return geometric_mean(logs.to_numpy(), _categories(logs.to_frame()))


def _log_time(rows: pd.DataFrame, time: str, count: str) -> pd.Series:
    """Log seconds per token of each question; NaN where all its answers ended with the prefill and no step was timed."""
    questions = _questions(rows)
    return pd.Series(np.log(questions[time].astype(float) / questions[count].astype(float)), index=questions.index)


def speedup_specbench(both: Pair) -> float:
    """The ratio of the two arms' ``tokens_per_s``, Spec-Bench's own arithmetic: only to compare with published tables."""
    return _ratio(tokens_per_s(both.method), tokens_per_s(both.vanilla))


def round_cost(both: Pair) -> float:
    """R = MAT / ``speedup_decode``: what a round (draft, verify, commit) costs, in vanilla steps.

    Of the decode loop, for prefill is no round: end to end, a long prompt would make every round look dearer.
    """
    return _ratio(mat(both.method).value, speedup_decode(both).value)


def speedup_over_mat(both: Pair) -> Estimate:
    """``speedup_decode`` over MAT question by question, geometric mean: above 1 a round would be cheaper than a vanilla step."""
    questions = _questions(both.method)
    per_question = np.log(questions["emitted"].astype(float) / questions["steps"].astype(float))
    logs = (_log_time(both.vanilla, "decode_s", "emitted") - _log_time(both.method, "decode_s", "emitted") - per_question).dropna()
    return geometric_mean(logs.to_numpy(), _categories(logs.to_frame()))


def _ratio(numerator: float, denominator: float) -> float:
    return float(numerator / denominator) if denominator else float("nan")


def measure(turns: pd.DataFrame, method: str) -> dict[str, Any]:
    """All numbers of one row of the comparison table."""
    both = pair(turns, method)
    rows = both.method
    paired = both.comparable and method != BASELINE
    alone = UNKNOWN._replace(value=1.0) if both.comparable else UNKNOWN  # vanilla over itself
    accepted = mat(rows)
    return {
        "questions": rows["question_id"].nunique(),
        "turns": len(rows),
        "excluded_questions": both.excluded,
        **_named("speedup", speedup(both) if paired else alone),
        "speedup_specbench": speedup_specbench(both) if paired else alone.value,
        **_named("speedup_decode", speedup_decode(both) if paired else alone),
        **_named("mat", accepted),
        "round_cost": round_cost(both) if paired else alone.value,
        "accounting_error": paired and speedup_over_mat(both).low > PHYSICS_MARGIN,
        "tokens_per_s": tokens_per_s(rows),
        "tokens_per_s_decode": tokens_per_s_decode(rows),
        "output_tokens": int(rows["tokens"].sum()),
        "stopped_by_length": float((rows["stop"] == "length").mean()),
        "peak_mib": float(rows["peak_bytes"].max()) / 2**20,
        **(agreement(rows, both.vanilla) if paired else NOTHING_TO_COMPARE)._asdict(),
        "repetition": float(rows["repetition"].mean()),
    }


def _named(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def comparison(turns: pd.DataFrame, methods: Sequence[str], categories: Sequence[str]) -> pd.DataFrame:
    """One row per method and category, ``overall`` last; NaN where a number cannot be formed."""
    return pd.DataFrame(
        [
            {"method": method, "category": category, **measure(of_category(turns, category), method)}
            for method in methods
            for category in (*categories, OVERALL)
        ]
    )


def of_category(turns: pd.DataFrame, category: str) -> pd.DataFrame:
    return turns if category == OVERALL else turns[turns["category"] == category]
