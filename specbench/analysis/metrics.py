"""Every definition by name, each a function of sums over questions, with its bootstrap interval; and the comparison table.

A method is compared with vanilla on the same (question, turn, repeat) only, and a question of which any turn failed in
either arm, or whose turns ran on different kinds of device, is left out of both (see ``turns.pair``).
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from specbench.analysis.agreement import NOTHING_TO_COMPARE, agreement
from specbench.analysis.frames import OVERALL, Pair, of_category, pair, sums
from specbench.analysis.stats import Array, Estimate, geometric_mean, interval, resampled_sums
from specbench.engines.registry import is_peer
from specbench.store.records import AGAIN, BASELINE, EAGER_BASELINE

PHYSICS_MARGIN = 1.05  # at batch 1 a speedup above MAT times this is an error of accounting


class Sums(NamedTuple):
    """Sums over the cells of a sample of questions: numbers, or arrays with one entry a resample.

    A cell is one repeat of one question, its turns added up. ``v_`` marks vanilla's. Seconds.
    """

    cells: Array
    stepped: Array  # cells in which the method took a step
    tokens: Array
    total_s: Array
    emitted: Array
    steps: Array
    decode_s: Array
    rate: Array  # tokens / total_s of a cell
    mat: Array  # emitted / steps of a cell
    v_tokens: Array
    v_total_s: Array
    v_emitted: Array
    v_decode_s: Array
    v_rate: Array
    v_text_rate: Array  # tokens of the text read back / total_s
    log_speedup: Array  # of a cell: vanilla's seconds per output token over the method's


def mat(s: Sums) -> Array:
    """Mean accepted tokens: emitted tokens over steps, pooled over everything (Spec-Bench's; the bonus counts, vanilla is 1)."""
    return s.emitted / s.steps


def mat_per_question(s: Sums) -> Array:
    """Emitted tokens over steps of each question, arithmetic mean over questions: short answers weigh as much as long ones."""
    return s.mat / s.stepped


def speedup(s: Sums) -> Array:
    """The headline: vanilla's end-to-end seconds per output token over the method's, geometric mean over paired questions and repeats."""
    return np.exp(s.log_speedup / s.cells)


def speedup_specbench(s: Sums) -> Array:
    """Spec-Bench's arithmetic with tokens counted alike: mean over questions of tokens/s, the method's over vanilla's."""
    return s.rate / s.v_rate


def speedup_specbench_legacy(s: Sums) -> Array:
    """Spec-Bench's arithmetic to the letter: vanilla's tokens are those of its text read back, which lacks a stop token.

    An answer of T tokens that ended by one favours the method by T / (T - 1). The leaderboard's numbers are of this definition.
    """
    return s.rate / s.v_text_rate


def speedup_micro(s: Sums) -> Array:
    """All of the method's tokens over all its seconds, over the same of vanilla: long answers weigh most."""
    return (s.tokens / s.total_s) / (s.v_tokens / s.v_total_s)


def latency_ratio(s: Sums) -> Array:
    """All of vanilla's seconds over all of the method's; a speedup only where both wrote answers of equal length."""
    return s.v_total_s / s.total_s


def speedup_decode(s: Sums) -> Array:
    """Vanilla's step seconds per emitted token over the method's, pooled over everything: MAT / R exactly, prefill left out."""
    return (s.v_decode_s / s.v_emitted) / (s.decode_s / s.emitted)


def round_cost(s: Sums) -> Array:
    """R: seconds of a round (draft, verify, commit) over seconds of a vanilla step, pooled over everything; MAT / ``speedup_decode``."""
    return (s.decode_s / s.steps) / (s.v_decode_s / s.v_emitted)


def speedup_over_mat(s: Sums) -> Array:
    """``speedup_micro`` over ``mat``: above 1 the method would gain more than a token a round for a vanilla step's time."""
    return speedup_micro(s) / mat(s)


def mat_needed(bound: float) -> "Definition":
    """The MAT at which ``speedup_micro`` would be ``bound``, with a round and all that is no round as measured; inf if none would do."""

    def needed(s: Sums) -> Array:
        left_s = s.v_total_s * s.tokens / s.v_tokens / bound - (s.total_s - s.decode_s)
        return np.where(left_s > 0, s.emitted * (s.decode_s / s.steps) / left_s, np.where(np.isnan(left_s), np.nan, np.inf))

    return needed


Definition = Callable[[Sums], Array]
OF_ONE_ARM: tuple[Definition, ...] = (mat, mat_per_question)
SPEEDUPS: tuple[Definition, ...] = (speedup, speedup_specbench, speedup_specbench_legacy, speedup_micro, latency_ratio)
OF_TWO_ARMS: tuple[Definition, ...] = (*SPEEDUPS, speedup_decode, round_cost, speedup_over_mat)
DEFINITIONS = {each.__name__: each for each in (*OF_ONE_ARM, *OF_TWO_ARMS)}


class Measured:
    """A pair's numbers under any definition; the resamples are drawn once."""

    def __init__(self, both: Pair):
        values_QC, strata = _by_question(both)
        self._total = Sums(*values_QC.sum(axis=0))
        self._resampled = Sums(*resampled_sums(values_QC, strata).T)

    def estimate(self, definition: Definition) -> Estimate:
        """The number with its interval; NaN where it cannot be formed."""
        with np.errstate(invalid="ignore", divide="ignore"):  # a resample may hold no step at all
            return Estimate(float(definition(self._total)), *interval(definition(self._resampled)))


def _by_question(both: Pair) -> tuple[Array, list[str]]:
    """(Q, C) the columns of ``Sums`` for each question, and its category."""
    ours, vanilla = both.cells
    stepped = (ours["steps"] > 0).astype(float)
    frame = pd.DataFrame(
        Sums(
            cells=pd.Series(1.0, ours.index),
            stepped=stepped,
            tokens=ours["tokens"],
            total_s=ours["total_s"],
            emitted=ours["emitted"],
            steps=ours["steps"],
            decode_s=ours["decode_s"],
            rate=ours["tokens"] / ours["total_s"],
            mat=(ours["emitted"] / ours["steps"]).where(stepped > 0, 0.0),  # an answer may end with the prefill
            v_tokens=vanilla["tokens"],
            v_total_s=vanilla["total_s"],
            v_emitted=vanilla["emitted"],
            v_decode_s=vanilla["decode_s"],
            v_rate=vanilla["tokens"] / vanilla["total_s"],
            v_text_rate=vanilla["text_tokens"] / vanilla["total_s"],
            log_speedup=_log_speedup(ours, vanilla),
        )._asdict()
    )
    questions = sums(frame, ["category", "question_id"])
    return questions.to_numpy(dtype=float), [str(category) for category in questions.index.get_level_values("category")]


def _log_speedup(ours: pd.DataFrame, vanilla: pd.DataFrame) -> pd.Series:
    return np.log((vanilla["total_s"] / vanilla["tokens"]) / (ours["total_s"] / ours["tokens"]))


def log_speedups(both: Pair) -> pd.Series:
    """Logarithm of the end-to-end speedup of each question, mean over its repeats; the index is (category, question_id)."""
    return _log_speedup(*both.cells).groupby(["category", "question_id"], sort=True).mean()


def noise_floor(turns: pd.DataFrame, method: str) -> Estimate:
    """What the two arms of an A/A run differ by: the repeated arm's speedup over the method; NaN where it did not run twice."""
    logs = log_speedups(pair(turns, method + AGAIN, reference=method)).dropna()
    return geometric_mean(logs.to_numpy(), [str(category) for category, _ in logs.index])


def tokens_per_s(rows: pd.DataFrame) -> float:
    """End to end: mean over questions and repeats of output tokens over seconds, turns added up (Spec-Bench's)."""
    cells = rows.groupby(["question_id", "repeat"])[["tokens", "total_s"]].sum()
    return float((cells["tokens"] / cells["total_s"]).mean())


def tokens_per_s_decode(rows: pd.DataFrame) -> float:
    """Emitted tokens over the seconds of all steps, pooled: prefill and its token are left out."""
    seconds = rows["decode_s"].sum()
    return float(rows["emitted"].sum() / seconds) if seconds else float("nan")


def accounting_error(measured: Measured, method: str) -> bool:
    """Whether a round came out cheaper than a vanilla step, or the speedup above MAT, beyond the interval: times or counts are wrong.

    Of an arm with a back end or an engine of its own nothing can be said: a faster one may well beat vanilla on the run's.
    """
    if method == BASELINE or "backend=" in method or is_peer(method):
        return False
    cheap_round = measured.estimate(round_cost).high < 1 / PHYSICS_MARGIN
    return cheap_round or measured.estimate(speedup_over_mat).low > PHYSICS_MARGIN


def measure(turns: pd.DataFrame, method: str) -> dict[str, Any]:
    """All numbers of one row of the comparison table: ``name``, ``name_low``, ``name_high`` of every definition, and more."""
    both = pair(turns, method)
    rows, measured = both.method, Measured(both)
    numbers = {name: measured.estimate(definition) for name, definition in DEFINITIONS.items()}
    numbers["speedup_over_eager"] = _over_eager(turns, method)
    if method == BASELINE and both.comparable:  # over itself: 1 by construction, and no interval to show
        numbers |= {each.__name__: Estimate(1.0, np.nan, np.nan) for each in OF_TWO_ARMS if np.isfinite(numbers[each.__name__].value)}
    flat = {f"{name}{end}": x for name, each in numbers.items() for end, x in zip(("", "_low", "_high"), each, strict=True)}
    paired = both.comparable and method != BASELINE
    return {
        "questions": rows["question_id"].nunique(),
        "turns": len(rows),
        "excluded_questions": both.excluded,
        "mixed_questions": both.mixed,
        **flat,
        "accounting_error": accounting_error(measured, method),
        "tokens_per_s": tokens_per_s(rows),
        "tokens_per_s_decode": tokens_per_s_decode(rows),
        "output_tokens": int(rows["tokens"].sum()),
        "stopped_by_length": float((rows.loc[rows["stop"] != "", "stop"] == "length").mean()),  # imported answers do not say
        "peak_mib": float(rows["peak_bytes"].max()) / 2**20,
        **(agreement(rows, both.reference) if paired else NOTHING_TO_COMPARE)._asdict(),
        "repetition": float(rows["repetition"].mean()),
    }


def _over_eager(turns: pd.DataFrame, method: str) -> Estimate:
    """``speedup`` with eager vanilla for the baseline; NaN where that did not run."""
    both = pair(turns, method, reference=EAGER_BASELINE)
    if method == EAGER_BASELINE or not both.comparable:
        return Estimate(1.0 if both.comparable else np.nan, np.nan, np.nan)
    return Measured(both).estimate(speedup)


def comparison(turns: pd.DataFrame, methods: Sequence[str], categories: Sequence[str]) -> pd.DataFrame:
    """One row per method and category, ``overall`` last; NaN where a number cannot be formed."""
    return pd.DataFrame(
        [
            {"method": method, "category": category, **measure(of_category(turns, category), method)}
            for method in methods
            for category in (*categories, OVERALL)
        ]
    )
