"""The verdict of a run on a claim: whether the measured interval agrees with the published range, and how the conditions compare."""

from dataclasses import dataclass

import pandas as pd

from methods.core.errors import UserError, unknown
from specbench.analysis import metrics
from specbench.analysis.agreement import agreement
from specbench.analysis.frames import Pair, pair
from specbench.analysis.metrics import Measured
from specbench.analysis.stats import FEWEST, Estimate
from specbench.claims.claim import Claim, load_claims
from specbench.claims.conditions import SAME, Condition, Extent, compare_conditions, same_suite
from specbench.config.arm import BASELINE
from specbench.store.describe import arm_label, cost_matched
from specbench.store.manifest import ArmFacts, RunManifest

REPRODUCED, ABOVE, BELOW = "reproduced", "above", "below"
INCONCLUSIVE, NOT_COMPARABLE = "inconclusive", "not comparable"
LEAST_SHARE = 0.9  # of the questions asked that must be compared
EXIT_CODES = {REPRODUCED: 0, ABOVE: 0, BELOW: 1, INCONCLUSIVE: 3, NOT_COMPARABLE: 3}


@dataclass(frozen=True)
class DefinitionOutcome:
    """The outcome under one definition of speedup, with its reason in a few words."""

    definition: str
    speedup: Estimate
    outcome: str
    why: str


@dataclass(frozen=True)
class Decomposition:
    """The parts of a speedup: decode speedup = MAT / R, and the MAT that each end of the claimed range needs.

    R is ``step_cost``. With R as measured, ``decode_mat_for_low`` and ``decode_mat_for_high`` would reach the ends
    of the range in the decode loop alone. ``mat_for_low`` and ``mat_for_high`` would reach them end to end.
    """

    mat: Estimate
    step_cost: Estimate
    speedup_decode: Estimate
    decode_mat_for_low: Estimate
    decode_mat_for_high: Estimate
    mat_for_low: Estimate
    mat_for_high: Estimate


@dataclass(frozen=True)
class Published:
    """A row of a published leaderboard, for context."""

    name: str
    title: str
    speedup: float
    mat: float


@dataclass(frozen=True)
class Verdict:
    """The verdict on a claim by one arm of a run.

    ``questions`` counts those compared. ``noise_floor`` is NaN if no A/A arm ran.
    """

    claim: Claim
    run: str
    arm: str
    label: str
    judged: DefinitionOutcome
    questions: int
    conditions: list[Condition]
    by_definition: list[DefinitionOutcome]
    decomposition: Decomposition
    noise_floor: Estimate
    context: list[Published]
    caveats: list[str]

    @property
    def outcome(self) -> str:
        """The outcome under the definition that the claim is judged by."""
        return self.judged.outcome

    @property
    def exit_code(self) -> int:
        """The exit code of ``specbench verify``."""
        return EXIT_CODES[self.outcome]

    @property
    def matching(self) -> bool:
        """Whether every condition is the same."""
        return all(condition.status == SAME for condition in self.conditions)

    def conditions_with(self, status: str) -> list[str]:
        """Return the names of the conditions of a status."""
        return [condition.name for condition in self.conditions if condition.status == status]


def judge(claim: Claim, manifest: RunManifest, turns: pd.DataFrame, arm: str | None = None, undigested: str = "") -> Verdict:
    """Judge a claim by the turns (rows of ``turns_frame``) of an arm, by default the arm that the claim names.

    ``undigested`` says what of the run carries no digest; it becomes a caveat.

    Raises UserError for an arm that the run does not have or that cannot have a speedup.
    """
    arm = _checked(arm or claim.arm, manifest)
    both = pair(turns, arm)
    measured, questions = Measured(both), int(both.arm["question_id"].nunique())
    blocked = _not_comparable(claim, manifest, turns, both, measured, arm) or _too_few(questions, manifest)
    decomposition = _decomposition(claim, measured)
    by_definition = [_judge_definition(metric.__name__, measured.estimate(metric), claim, blocked) for metric in metrics.SPEEDUPS]
    return Verdict(
        claim=claim,
        run=manifest.name,
        arm=arm,
        label=arm_label(manifest.arms[arm]),
        judged=next(result for result in by_definition if result.definition == claim.judged_by),
        questions=questions,
        conditions=compare_conditions(claim, manifest, arm, Extent(questions, both.excluded, len(turns))),
        by_definition=by_definition,
        decomposition=decomposition,
        noise_floor=metrics.noise_floor(turns, arm),
        context=_context(claim),
        caveats=[
            *cost_matched([manifest]),
            *_unknown_metric(claim),
            *_too_shallow(decomposition, manifest.arms[arm]),
            *_other_answers(both, manifest, arm),
            claim.note,
            *([undigested] if undigested else []),
        ],
    )


def outcome(speedup: Estimate, low: float, high: float) -> tuple[str, str]:
    """Return the outcome of an interval against a range, and the reason."""
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
    if arm not in manifest.arms:
        raise unknown("arm of this run (--method)", arm, manifest.own.keys() - {BASELINE})
    if manifest.arms[arm].engine:
        raise UserError(f"--method {arm} is another engine ({manifest.arms[arm].engine}): a claim is held against specbench's own arms")
    return arm


def _not_comparable(
    claim: Claim, manifest: RunManifest, turns: pd.DataFrame, both: Pair, measured: Measured, arm: str
) -> tuple[str, str] | None:
    if not same_suite(claim, manifest):
        return NOT_COMPARABLE, f"the sha256 of the run's suite, {manifest.suite.name}, is not that of the claim's, {claim.suite}"
    answered = set(turns.loc[turns["status"] == "ok", "arm"])
    for needed in (BASELINE, arm):
        if needed not in answered:
            return NOT_COMPARABLE, f"no answered turn of {needed} is recorded"
    if metrics.accounting_error(both, measured):
        return NOT_COMPARABLE, "accounting error: the decode speedup exceeds MAT beyond its interval, so times or counts are wrong"
    return None


def _too_few(questions: int, manifest: RunManifest) -> tuple[str, str] | None:
    asked = sum(manifest.suite.categories.values())
    if questions < FEWEST:
        return INCONCLUSIVE, f"{questions} questions were compared, fewer than {FEWEST}"
    if questions < LEAST_SHARE * asked:
        return INCONCLUSIVE, f"only {questions} of the {asked} questions asked were compared; those left out may be the slow ones"
    return None


def _judge_definition(definition: str, speedup: Estimate, claim: Claim, blocked: tuple[str, str] | None) -> DefinitionOutcome:
    return DefinitionOutcome(definition, speedup, *(blocked or outcome(speedup, claim.low, claim.high)))


def _decomposition(claim: Claim, measured: Measured) -> Decomposition:
    cost = measured.estimate(metrics.step_cost)
    return Decomposition(
        mat=measured.estimate(metrics.mat),
        step_cost=cost,
        speedup_decode=measured.estimate(metrics.speedup_decode),
        decode_mat_for_low=Estimate(*(claim.low * end for end in cost)),
        decode_mat_for_high=Estimate(*(claim.high * end for end in cost)),
        mat_for_low=measured.estimate(metrics.mat_needed(claim.low)),
        mat_for_high=measured.estimate(metrics.mat_needed(claim.high)),
    )


def _context(claim: Claim) -> list[Published]:
    """Return leaderboard rows of the same method, and of other methods on the same target; all rows if the claim names no target."""
    return [
        Published(row.name, row.title, row.value, row.mat)
        for row in load_claims().values()
        if row.value is not None and row.mat is not None and (row.arm == claim.arm or claim.target in (None, row.target))
    ]


def _too_shallow(parts: Decomposition, facts: ArmFacts) -> list[str]:
    """Return a sentence if the arm's trees are too shallow for the MAT that the range needs."""
    depth = facts.config.get("depth")
    if depth is None or not parts.decode_mat_for_low.value > depth + 1:
        return []
    return [
        f"The draft trees of this arm are {depth} deep, so its MAT cannot exceed {depth + 1}. At the measured step cost, even a "
        "perfect drafter could not reach the range. A deeper tree would cost more per step."
    ]


def _other_answers(both: Pair, manifest: RunManifest, arm: str) -> list[str]:
    """Return a sentence if greedy answers of a lossless arm differ from vanilla's, whose length changes a speedup."""
    seen = agreement(both.arm, both.reference)
    if not seen.diverging_turns or manifest.settings.temperature or not manifest.arms[arm].lossless:
        return []
    return [
        f"{seen.diverging_turns} of {seen.comparable_turns} answers differ from vanilla's, and longer or shorter ones change the speedup. "
        "specbench agree tells whether rounding explains them."
    ]


def _unknown_metric(claim: Claim) -> list[str]:
    if claim.metric is not None:
        return []
    return [f"The source does not define its speedup. The verdict uses {claim.judged_by}, because {claim.judged_because}."]
