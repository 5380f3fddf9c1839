"""The metrics: each a function of sums over questions, with its bootstrap interval; and the comparison table.

An arm is compared with vanilla on the same (question, turn, repeat) only; ``frames.pair`` says which questions count.
A cell is one repeat of one question, its turns added up. In a pair with another reference, that arm stands where the
definitions say vanilla.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from specbench.analysis.agreement import NOTHING_TO_COMPARE, agreement
from specbench.analysis.frames import OVERALL, Pair, of_category, pair, sums
from specbench.analysis.stats import Array, Estimate, geometric_mean, interval, resampled_sums
from specbench.config.arm import BASELINE

RUN_BY = ["backend", "engine"]
IMPOSSIBLE_MARGIN = 1.05  # at batch size 1, a speedup above MAT times this margin means that times or counts are wrong


class Sums(NamedTuple):
    """Sums over the cells of a sample of questions: numbers, or arrays with one entry per resample.

    The sums of the reference, which is vanilla as a rule, begin with ``ref_``. Times are seconds.
    """

    cells: Array  # number of cells
    stepped: Array  # cells in which the arm took a step
    tokens: Array
    total_s: Array
    emitted: Array
    steps: Array
    decode_s: Array
    draft_s: Array
    rate: Array  # sum over cells of tokens / total_s
    mat: Array  # sum over cells of emitted / steps
    ref_stepped: Array
    ref_tokens: Array
    ref_total_s: Array
    ref_emitted: Array
    ref_steps: Array
    ref_decode_s: Array
    ref_draft_s: Array
    ref_rate: Array
    ref_text_rate: Array  # sum over cells of tokens of the text, tokenised again / total_s
    ref_mat: Array
    log_speedup: Array  # sum over cells of log(the reference's seconds per output token / the arm's)


def mat(s: Sums) -> Array:
    """Mean accepted tokens: emitted tokens divided by steps, summed over all questions.

    The target's own next token counts, so vanilla has 1. This is Spec-Bench's definition. Long answers
    weigh more than short ones, and the last step of an answer counts only the tokens that were kept.
    """
    return s.emitted / s.steps


def mat_per_question(s: Sums) -> Array:
    """Mean over questions of emitted tokens divided by steps.

    Short answers weigh as much as long ones. An answer that ended with the prefill has no steps and is left out.
    """
    return s.mat / s.stepped


def speedup(s: Sums) -> Array:
    """Vanilla's seconds per output token divided by the arm's, end to end: geometric mean over questions and repeats.

    This is the headline number. Every question is paired with itself and weighs the same.
    """
    return np.exp(s.log_speedup / s.cells)


def speedup_specbench(s: Sums) -> Array:
    """Mean tokens per second of the arm divided by vanilla's, each mean over questions.

    This is Spec-Bench's arithmetic with both arms' tokens counted from token ids. Questions that
    are fast in both arms weigh more.
    """
    return s.rate / s.ref_rate


def speedup_specbench_legacy(s: Sums) -> Array:
    """Mean tokens per second of the arm divided by vanilla's, with vanilla's tokens counted as Spec-Bench's script does.

    That script tokenises vanilla's text again, which loses the stop token: an answer of T tokens that ended
    with one favours the arm by T / (T - 1). Use it only beside numbers of Spec-Bench's leaderboard.
    """
    return s.rate / s.ref_text_rate


def speedup_micro(s: Sums) -> Array:
    """Total tokens per total second of the arm divided by vanilla's, over all questions together.

    Long answers weigh most.
    """
    return (s.tokens / s.total_s) / (s.ref_tokens / s.ref_total_s)


def latency_ratio(s: Sums) -> Array:
    """Vanilla's total seconds divided by the arm's, over all questions together.

    It counts no tokens, so it is a speedup only if both arms wrote answers of equal length.
    """
    return s.ref_total_s / s.total_s


def speedup_decode(s: Sums) -> Array:
    """Vanilla's step seconds per emitted token divided by the arm's, over all steps together.

    Prefill is left out. It equals MAT / R exactly, where R is ``step_cost``.
    """
    return (s.ref_decode_s / s.ref_emitted) / (s.decode_s / s.emitted)


def step_cost(s: Sums) -> Array:
    """R: the arm's mean seconds per step divided by vanilla's, over all steps together.

    A step drafts, verifies, and commits. With R = 1.5 a method needs MAT above 1.5 to decode faster than vanilla.
    """
    return (s.decode_s / s.steps) / (s.ref_decode_s / s.ref_steps)


def speedup_over_mat(s: Sums) -> Array:
    """``speedup_micro`` divided by ``mat``.

    Above 1, a step would take less time than a step of vanilla. At batch size 1 and on one back end that is
    impossible, so a value above 1 beyond its interval is reported as an accounting error.
    """
    return speedup_micro(s) / mat(s)


def decode_mat_needed(bound: float) -> "Definition":
    """Return the metric that says at which MAT ``speedup_decode`` would be ``bound``, with seconds per step as measured."""
    return lambda s: bound * (s.decode_s / s.steps) / (s.ref_decode_s / s.ref_emitted)


def mat_needed(bound: float) -> "Definition":
    """Return the metric that says at which MAT ``speedup_micro`` would be ``bound``.

    Seconds per step, and seconds outside steps, are taken as measured. It is inf if no MAT is enough.
    """

    def needed(s: Sums) -> Array:
        left_s = s.ref_total_s * s.tokens / s.ref_tokens / bound - (s.total_s - s.decode_s)
        return np.where(left_s > 0, s.emitted * (s.decode_s / s.steps) / left_s, np.where(np.isnan(left_s), np.nan, np.inf))

    return needed


Definition = Callable[[Sums], Array]
OF_ONE_ARM: tuple[Definition, ...] = (mat, mat_per_question)
SPEEDUPS: tuple[Definition, ...] = (speedup, speedup_specbench, speedup_specbench_legacy, speedup_micro, latency_ratio)
OF_TWO_ARMS: tuple[Definition, ...] = (*SPEEDUPS, speedup_decode, step_cost, speedup_over_mat)
DEFINITIONS = {metric.__name__: metric for metric in (*OF_ONE_ARM, *OF_TWO_ARMS)}


class Measured:
    """The numbers of a pair of arms under any definition. The resamples are drawn once."""

    def __init__(self, both: Pair):
        values_QC, strata = _by_question(both)
        self._total = Sums(*values_QC.sum(axis=0))
        self._resampled = Sums(*resampled_sums(values_QC, strata).T)

    def estimate(self, definition: Definition) -> Estimate:
        """Return the number with its interval; NaN where it cannot be formed."""
        with np.errstate(invalid="ignore", divide="ignore"):  # a resample may hold no step
            return Estimate(float(definition(self._total)), *interval(definition(self._resampled)))


def _by_question(both: Pair) -> tuple[Array, list[str]]:
    """Return the columns C of ``Sums`` for each question Q, and the question's category."""
    ours, reference = both.cells
    frame = pd.DataFrame(
        Sums(
            cells=pd.Series(1.0, ours.index),
            stepped=_stepped(ours),
            tokens=ours["tokens"],
            total_s=ours["total_s"],
            emitted=ours["emitted"],
            steps=ours["steps"],
            decode_s=ours["decode_s"],
            draft_s=ours["draft_s"],
            rate=ours["tokens"] / ours["total_s"],
            mat=_mat(ours),
            ref_stepped=_stepped(reference),
            ref_tokens=reference["tokens"],
            ref_total_s=reference["total_s"],
            ref_emitted=reference["emitted"],
            ref_steps=reference["steps"],
            ref_decode_s=reference["decode_s"],
            ref_draft_s=reference["draft_s"],
            ref_rate=reference["tokens"] / reference["total_s"],
            ref_text_rate=reference["text_tokens"] / reference["total_s"],
            ref_mat=_mat(reference),
            log_speedup=_log_speedup(ours, reference),
        )._asdict()
    )
    questions = sums(frame, ["category", "question_id"])
    return questions.to_numpy(dtype=float), [str(category) for category in questions.index.get_level_values("category")]


def _stepped(cells: pd.DataFrame) -> pd.Series:
    return (cells["steps"] > 0).astype(float)


def _mat(cells: pd.DataFrame) -> pd.Series:
    return (cells["emitted"] / cells["steps"]).where(cells["steps"] > 0, 0.0)  # an answer that ended with the prefill has no step


def _log_speedup(ours: pd.DataFrame, reference: pd.DataFrame) -> pd.Series:
    return np.log((reference["total_s"] / reference["tokens"]) / (ours["total_s"] / ours["tokens"]))


def log_speedups(both: Pair) -> pd.Series:
    """Return the logarithm of each question's end-to-end speedup, averaged over its repeats.

    The index is (category, question_id).
    """
    return _log_speedup(*both.cells).groupby(["category", "question_id"], sort=True).mean()


def noise_floor(turns: pd.DataFrame, arm: str) -> Estimate:
    """Return the speedup of an A/A run's repeat over the arm it repeats; NaN if the arm did not run twice."""
    repeats = turns.loc[turns["repeat_of"] == arm, "arm"]
    logs = log_speedups(pair(turns, repeats.iloc[0] if len(repeats) else "", reference=arm)).dropna()
    return geometric_mean(logs.to_numpy(), [str(category) for category, _ in logs.index])


def tokens_per_s(rows: pd.DataFrame) -> float:
    """Return output tokens per second end to end, averaged over questions and repeats (Spec-Bench's definition).

    The turns of a question are added up first.
    """
    cells = rows.groupby(["question_id", "repeat"])[["tokens", "total_s"]].sum()
    return float((cells["tokens"] / cells["total_s"]).mean())


def tokens_per_s_decode(rows: pd.DataFrame) -> float:
    """Return emitted tokens per second of step time, over all steps together. Prefill and its token are left out."""
    seconds = rows["decode_s"].sum()
    return float(rows["emitted"].sum() / seconds) if seconds else float("nan")


def accounting_error(both: Pair, measured: Measured) -> bool:
    """Return whether the numbers are impossible at batch size 1, beyond their interval, so that times or counts must be wrong.

    They are if a step took less time than a step of vanilla, or if the speedup exceeds MAT. Nothing can be said
    if the arm's back end or engine is not vanilla's: a faster one may beat vanilla.
    """
    if (
        not both.comparable
        or both.arm["arm"].iloc[0] == BASELINE
        or len(pd.concat([both.arm, both.reference])[RUN_BY].drop_duplicates()) > 1
    ):
        return False
    cheap_step = measured.estimate(step_cost).high < 1 / IMPOSSIBLE_MARGIN
    return cheap_step or measured.estimate(speedup_over_mat).low > IMPOSSIBLE_MARGIN


def measure(turns: pd.DataFrame, arm: str) -> dict[str, Any]:
    """Return one row of the comparison table: ``name``, ``name_low``, ``name_high`` of every definition, and counts."""
    both = pair(turns, arm)
    rows, measured = both.arm, Measured(both)
    numbers = {name: measured.estimate(definition) for name, definition in DEFINITIONS.items()}
    numbers["speedup_over_eager"] = _over_eager(turns, arm)
    if arm == BASELINE and both.comparable:  # vanilla over itself: 1 by construction, without an interval
        two_arms = [metric.__name__ for metric in OF_TWO_ARMS]
        numbers |= {name: Estimate(1.0, np.nan, np.nan) for name in two_arms if np.isfinite(numbers[name].value)}
    flat = {f"{name}{end}": x for name, estimate in numbers.items() for end, x in zip(("", "_low", "_high"), estimate, strict=True)}

    paired = both.comparable and arm != BASELINE
    return {
        "questions": rows["question_id"].nunique(),
        "turns": len(rows),
        "excluded_questions": both.excluded,
        "mixed_questions": both.mixed,
        **flat,
        "accounting_error": accounting_error(both, measured),
        "tokens_per_s": tokens_per_s(rows),
        "tokens_per_s_decode": tokens_per_s_decode(rows),
        "output_tokens": int(rows["tokens"].sum()),
        "stopped_by_length": float((rows.loc[rows["stop"] != "", "stop"] == "length").mean()),  # imported answers do not say
        "peak_mib": float(rows["peak_bytes"].max()) / 2**20,
        **(agreement(rows, both.reference) if paired else NOTHING_TO_COMPARE)._asdict(),
        "repetition": float(rows["repetition"].mean()),
    }


def _over_eager(turns: pd.DataFrame, arm: str) -> Estimate:
    """Return ``speedup`` with the arm of eager vanilla as the baseline; NaN if that did not run."""
    is_other = (turns["arm"] != BASELINE) & (turns["repeat_of"] == "")
    eager = turns.loc[(turns["method"] == BASELINE) & (turns["backend"] == "eager") & is_other, "arm"]
    if eager.empty:
        return Estimate(np.nan, np.nan, np.nan)
    reference = eager.iloc[0]
    both = pair(turns, arm, reference=reference)
    if arm == reference or not both.comparable:
        return Estimate(1.0 if both.comparable else np.nan, np.nan, np.nan)
    return Measured(both).estimate(speedup)


def comparison(turns: pd.DataFrame, arms: Sequence[str], categories: Sequence[str]) -> pd.DataFrame:
    """Return one row per arm and category, ``overall`` last; NaN where a number cannot be formed."""
    return pd.DataFrame(
        [
            {"arm": arm, "category": category, **measure(of_category(turns, category), arm)}
            for arm in arms
            for category in (*categories, OVERALL)
        ]
    )
