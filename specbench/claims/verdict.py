"""The verdict of a run on a claim: whether the measured interval agrees with the published range, and how the conditions compare."""

from dataclasses import dataclass

import pandas as pd

from specbench.analysis import metrics
from specbench.analysis.agreement import agreement
from specbench.analysis.frames import Pair, pair
from specbench.analysis.metrics import Measured
from specbench.analysis.quantities import QUANTITIES, reference_mat
from specbench.analysis.stats import FEWEST, Estimate
from specbench.claims.arms import arms_of
from specbench.claims.claim import Claim, load_claims
from specbench.claims.conditions import SAME, Condition, Extent, compare_conditions, other_suite
from specbench.store.describe import arm_label, cost_matched
from specbench.store.manifest import ArmFacts, RunManifest

REPRODUCED, ABOVE, BELOW = "reproduced", "above", "below"
INCONCLUSIVE, NOT_COMPARABLE = "inconclusive", "not comparable"
LEAST_SHARE = 0.9  # of the questions asked that must be compared
EXIT_CODES = {REPRODUCED: 0, ABOVE: 0, BELOW: 1, INCONCLUSIVE: 3, NOT_COMPARABLE: 3}


@dataclass(frozen=True)
class DefinitionOutcome:
    """The outcome under one definition of the claim's quantity, with its reason in a few words."""

    definition: str
    measured: Estimate
    outcome: str
    why: str


@dataclass(frozen=True)
class Decomposition:
    """The parts of a speedup, and the MAT that each end of a claimed range of speedups needs.

    Decode speedup = MAT / ``mat_over`` / R. R is ``step_cost``, ``mat_over`` the MAT of the arm compared with, 1 for
    vanilla. With R as measured, ``decode_mat_for_low`` and ``decode_mat_for_high`` would reach the ends of the range in
    the decode loop alone. ``mat_for_low`` and ``mat_for_high`` would reach them end to end. They are None for an end
    that the claim does not have, and for a claim of another quantity.
    """

    mat: Estimate
    mat_over: Estimate
    step_cost: Estimate
    speedup_decode: Estimate
    decode_mat_for_low: Estimate | None
    decode_mat_for_high: Estimate | None
    mat_for_low: Estimate | None
    mat_for_high: Estimate | None


@dataclass(frozen=True)
class Published:
    """A row of a published leaderboard, for context."""

    name: str
    title: str
    speedup: float
    mat: float


@dataclass(frozen=True)
class Verdict:
    """The verdict on a claim by one arm of a run, compared with another one, ``over``.

    ``questions`` counts those compared. ``noise_floor`` is NaN if no A/A arm ran.
    """

    claim: Claim
    run: str
    arm: str
    label: str
    over: str
    over_label: str
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


def judge(
    claim: Claim, manifest: RunManifest, turns: pd.DataFrame, arm: str | None = None, over: str | None = None, undigested: str = ""
) -> Verdict:
    """Judge a claim by the turns (rows of ``turns_frame``) of an arm and of the arm it is compared with, by default the claim's.

    ``undigested`` says what of the run carries no digest; it becomes a caveat.

    Raises UserError for arms that the run does not have or that cannot be compared.
    """
    arm, over = arms_of(claim, manifest, arm, over)
    both = pair(turns, arm, reference=over)
    measured, questions = Measured(both), int(both.arm["question_id"].nunique())
    blocked = _not_comparable(claim, manifest, turns, arm, over) or _too_few(questions, manifest)
    decomposition = _decomposition(claim, measured)
    by_definition = [_judge_definition(metric.__name__, measured.estimate(metric), claim, blocked) for metric in QUANTITIES[claim.quantity]]
    return Verdict(
        claim=claim,
        run=manifest.name,
        arm=arm,
        label=arm_label(manifest.arms[arm]),
        over=over,
        over_label=arm_label(manifest.arms[over]),
        judged=next(result for result in by_definition if result.definition == claim.judged_by),
        questions=questions,
        conditions=compare_conditions(claim, manifest, arm, over, Extent(questions, both.excluded, len(turns))),
        by_definition=by_definition,
        decomposition=decomposition,
        noise_floor=metrics.noise_floor(turns, arm),
        context=_context(claim),
        caveats=[
            *cost_matched([manifest]),
            *_unknown_metric(claim),
            *_too_shallow(decomposition, manifest.arms[arm]),
            *_other_answers(both, manifest, arm, over),
            claim.note,
            *([undigested] if undigested else []),
        ],
    )


def outcome(measured: Estimate, low: float, high: float | None) -> tuple[str, str]:
    """Return the outcome of an interval against a range, and the reason. ``high`` is None for a range without an upper end."""
    if not measured.known:
        return INCONCLUSIVE, "no interval could be formed"
    if measured.high < low:
        return BELOW, "the interval lies below the range"
    if high is not None and measured.low > high:
        return ABOVE, "the interval lies above the range"
    if low <= measured.low and (high is None or measured.high <= high):
        return REPRODUCED, "the interval lies inside the range"
    if high is None:
        return INCONCLUSIVE, "the interval holds the lower bound"
    if measured.high - measured.low > high - low:
        return INCONCLUSIVE, "the interval is wider than the range"
    return REPRODUCED, "the interval only overlaps the range"


def _not_comparable(claim: Claim, manifest: RunManifest, turns: pd.DataFrame, arm: str, over: str) -> tuple[str, str] | None:
    if other_suite(claim, manifest):
        return NOT_COMPARABLE, f"the sha256 of the run's suite, {manifest.suite.name}, is not that of the claim's, {claim.suite}"
    answered = set(turns.loc[turns["status"] == "ok", "arm"])
    for needed in (over, arm):
        if needed not in answered:
            return NOT_COMPARABLE, f"no answered turn of {needed} is recorded"
    for name in (arm, over):
        with_vanilla = pair(turns, name)
        if metrics.accounting_error(with_vanilla, Measured(with_vanilla)):
            return (
                NOT_COMPARABLE,
                f"accounting error: the decode speedup of {name} exceeds its MAT beyond its interval; times or counts are wrong",
            )
    return None


def _too_few(questions: int, manifest: RunManifest) -> tuple[str, str] | None:
    asked = sum(manifest.suite.categories.values())
    if questions < FEWEST:
        return INCONCLUSIVE, f"{questions} questions were compared, fewer than {FEWEST}"
    if questions < LEAST_SHARE * asked:
        return INCONCLUSIVE, f"only {questions} of the {asked} questions asked were compared; those left out may be the slow ones"
    return None


def _judge_definition(definition: str, measured: Estimate, claim: Claim, blocked: tuple[str, str] | None) -> DefinitionOutcome:
    return DefinitionOutcome(definition, measured, *(blocked or outcome(measured, claim.low, claim.high)))


def _decomposition(claim: Claim, measured: Measured) -> Decomposition:
    low, high = (claim.low, claim.high) if claim.quantity == "speedup" else (None, None)
    return Decomposition(
        mat=measured.estimate(metrics.mat),
        mat_over=measured.estimate(reference_mat),
        step_cost=measured.estimate(metrics.step_cost),
        speedup_decode=measured.estimate(metrics.speedup_decode),
        decode_mat_for_low=None if low is None else measured.estimate(metrics.decode_mat_needed(low)),
        decode_mat_for_high=None if high is None else measured.estimate(metrics.decode_mat_needed(high)),
        mat_for_low=None if low is None else measured.estimate(metrics.mat_needed(low)),
        mat_for_high=None if high is None else measured.estimate(metrics.mat_needed(high)),
    )


def _context(claim: Claim) -> list[Published]:
    """Return leaderboard rows of the same method, and of other methods on the same target; all rows if the claim names no target."""
    rows = [row for row in load_claims().values() if row.leaderboard and (row.arm == claim.arm or claim.target in (None, row.target))]
    return [Published(row.name, row.title, row.value, row.mat) for row in rows if row.value is not None and row.mat is not None]


def _too_shallow(parts: Decomposition, facts: ArmFacts) -> list[str]:
    """Return a sentence if the arm's trees are too shallow for the MAT that the range needs."""
    depth, needed = facts.config.get("depth"), parts.decode_mat_for_low
    if depth is None or needed is None or not needed.value > depth + 1:
        return []
    return [
        f"The draft trees of this arm are {depth} deep, so its MAT cannot exceed {depth + 1}. At the measured step cost, even a "
        "perfect drafter could not reach the range. A deeper tree would cost more per step."
    ]


def _other_answers(both: Pair, manifest: RunManifest, arm: str, over: str) -> list[str]:
    """Return a sentence if greedy answers of two lossless arms differ, whose length changes a speedup."""
    seen = agreement(both.arm, both.reference)
    lossless = all(manifest.arms[name].lossless for name in (arm, over))
    if not seen.diverging_turns or manifest.settings.temperature or not lossless:
        return []
    return [
        f"{seen.diverging_turns} of {seen.comparable_turns} answers differ from {over}'s, and longer or shorter ones change the speedup. "
        "specbench agree tells whether rounding explains them."
    ]


def _unknown_metric(claim: Claim) -> list[str]:
    if claim.metric is not None:
        return []
    return [f"The source does not define its {claim.quantity}. The verdict uses {claim.judged_by}, because {claim.judged_because}."]
