"""A claim held against a run: whether the measured interval agrees with the published range, and under which conditions."""

from dataclasses import dataclass

import pandas as pd

from methods.core.errors import UserError, unknown
from specbench.analysis import metrics
from specbench.analysis.frames import pair
from specbench.analysis.metrics import Measured
from specbench.analysis.stats import FEWEST, Estimate
from specbench.claims import Claim, claims
from specbench.claims.conditions import SAME, Condition, Extent, conditions, same_suite
from specbench.report.tables import method_label
from specbench.store.describe import cost_matched
from specbench.store.manifest import MethodFacts, RunManifest
from specbench.store.records import BASELINE

REPRODUCED, ABOVE, BELOW = "reproduced", "above", "below"
INCONCLUSIVE, NOT_COMPARABLE = "inconclusive", "not comparable"
EXIT_CODES = {REPRODUCED: 0, ABOVE: 0, BELOW: 1, INCONCLUSIVE: 3, NOT_COMPARABLE: 3}


@dataclass(frozen=True)
class Judged:
    """The outcome under one definition of speedup; ``why`` is its reason in a few words."""

    definition: str
    speedup: Estimate
    outcome: str
    why: str


@dataclass(frozen=True)
class Decomposition:
    """Decode speedup = MAT / R, and the MAT that either end of the claimed range asks for at the measured R.

    ``round_cost`` is R, of the decode loop; ``decode_mat_for_low`` and ``_high``, bound x R, would reach the range in that loop
    alone. ``mat_for_low`` and ``_high`` would reach it end to end, over all tokens and seconds, with prefill as measured.
    """

    mat: Estimate
    round_cost: Estimate
    speedup_decode: Estimate
    decode_mat_for_low: Estimate
    decode_mat_for_high: Estimate
    mat_for_low: Estimate
    mat_for_high: Estimate


@dataclass(frozen=True)
class Published:
    """A leaderboard row, for context."""

    name: str
    title: str
    speedup: float
    mat: float


@dataclass(frozen=True)
class Verdict:
    """A claim's verdict on one arm of a run. ``noise_floor`` is NaN where no A/A arm ran; ``questions`` counts those compared."""

    claim: Claim
    run: str
    arm: str
    label: str
    judged: Judged
    questions: int
    conditions: list[Condition]
    by_definition: list[Judged]
    decomposition: Decomposition
    noise_floor: Estimate
    context: list[Published]
    caveats: list[str]

    @property
    def outcome(self) -> str:
        return self.judged.outcome

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.outcome]

    @property
    def matching(self) -> bool:
        return all(condition.status == SAME for condition in self.conditions)

    def named(self, status: str) -> list[str]:
        """The conditions of a status, by name."""
        return [condition.name for condition in self.conditions if condition.status == status]


def judge(claim: Claim, manifest: RunManifest, turns: pd.DataFrame, method: str | None = None) -> Verdict:
    """Hold the turns (``turns_frame`` rows) of an arm, by default the claim's, against the claim.

    Raises UserError for an arm that the run does not have or that cannot have a speedup.
    """
    arm = _checked(method or claim.arm, manifest)
    both = pair(turns, arm)
    measured, questions = Measured(both), int(both.method["question_id"].nunique())
    blocked = _not_comparable(claim, manifest, turns, arm, measured) or _too_few(questions)
    decomposition = _decomposition(claim, measured)
    by_definition = [_judged(each.__name__, measured.estimate(each), claim, blocked) for each in metrics.SPEEDUPS]
    return Verdict(
        claim=claim,
        run=manifest.name,
        arm=arm,
        label=method_label(arm, manifest.methods[arm]),
        judged=next(each for each in by_definition if each.definition == claim.judged_by),
        questions=questions,
        conditions=conditions(claim, manifest, arm, Extent(questions, both.excluded, len(turns))),
        by_definition=by_definition,
        decomposition=decomposition,
        noise_floor=metrics.noise_floor(turns, arm),
        context=_context(claim),
        caveats=[*cost_matched([manifest]), *_unknown_metric(claim), *_too_shallow(decomposition, manifest.methods[arm]), claim.note],
    )


def outcome(speedup: Estimate, low: float, high: float) -> tuple[str, str]:
    """The outcome of an interval against a range, and why."""
    if not speedup.known:
        return INCONCLUSIVE, "no interval could be formed"
    if speedup.high - speedup.low > high - low:
        return INCONCLUSIVE, "the interval is wider than the range"
    if speedup.low > high:
        return ABOVE, "the interval lies above the range"
    if speedup.high < low:
        return BELOW, "the interval lies below the range"
    if low <= speedup.low and speedup.high <= high:
        return REPRODUCED, "the interval lies inside the range"
    return REPRODUCED, "the interval only overlaps the range"


def _checked(arm: str, manifest: RunManifest) -> str:
    if arm == BASELINE:
        raise UserError(f"--method {arm} is what speedups are measured against; name one of the run's other arms")
    if arm not in manifest.methods:
        raise unknown("arm of this run (--method)", arm, manifest.own.keys() - {BASELINE})
    if manifest.methods[arm].engine:
        raise UserError(f"--method {arm} is another engine ({manifest.methods[arm].engine}): a claim is held against specbench's own arms")
    return arm


def _not_comparable(claim: Claim, manifest: RunManifest, turns: pd.DataFrame, arm: str, measured: Measured) -> tuple[str, str] | None:
    if not same_suite(claim, manifest):
        return NOT_COMPARABLE, f"the sha256 of the run's suite, {manifest.settings.suite}, is not that of the claim's, {claim.suite}"
    answered = set(turns.loc[turns["status"] == "ok", "method"])
    for needed in (BASELINE, arm):
        if needed not in answered:
            return NOT_COMPARABLE, f"no answered turn of {needed} is recorded"
    if metrics.accounting_error(measured, arm):
        return NOT_COMPARABLE, "accounting error: the decode speedup exceeds MAT beyond its interval, so times or counts are wrong"
    return None


def _too_few(questions: int) -> tuple[str, str] | None:
    return (INCONCLUSIVE, f"{questions} questions were compared, fewer than {FEWEST}") if questions < FEWEST else None


def _judged(definition: str, speedup: Estimate, claim: Claim, blocked: tuple[str, str] | None) -> Judged:
    return Judged(definition, speedup, *(blocked or outcome(speedup, claim.low, claim.high)))


def _decomposition(claim: Claim, measured: Measured) -> Decomposition:
    cost = measured.estimate(metrics.round_cost)
    return Decomposition(
        mat=measured.estimate(metrics.mat),
        round_cost=cost,
        speedup_decode=measured.estimate(metrics.speedup_decode),
        decode_mat_for_low=Estimate(*(claim.low * end for end in cost)),
        decode_mat_for_high=Estimate(*(claim.high * end for end in cost)),
        mat_for_low=measured.estimate(metrics.mat_needed(claim.low)),
        mat_for_high=measured.estimate(metrics.mat_needed(claim.high)),
    )


def _context(claim: Claim) -> list[Published]:
    """Leaderboard rows of the same method and, on the same target, of other methods; all where the claim names no target."""
    return [
        Published(row.name, row.title, row.value, row.mat)
        for row in claims().values()
        if row.value is not None and row.mat is not None and (row.arm == claim.arm or claim.target in (None, row.target))
    ]


def _too_shallow(found: Decomposition, facts: MethodFacts) -> list[str]:
    """A sentence where the arm's trees cannot give the MAT that the range asks for."""
    depth = facts.config.get("depth")
    if depth is None or not found.decode_mat_for_low.value > depth + 1:
        return []
    return [
        f"The trees of this arm are {depth} deep, so its MAT cannot exceed {depth + 1}: at the measured cost of a round it cannot reach "
        f"the range, whatever its drafter; a deeper tree would cost more a round."
    ]


def _unknown_metric(claim: Claim) -> list[str]:
    if claim.metric is not None:
        return []
    return [f"The source does not say how its speedup is defined; the verdict is by {claim.judged_by}, since {claim.judged_because}."]
