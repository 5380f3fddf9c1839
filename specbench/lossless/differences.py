"""Differences between an arm's greedy output and vanilla's, and the rule that tells a rounding tie from a violation."""

from dataclasses import dataclass
from math import nan

import numpy as np

REFERENCE_DTYPE = "fp32"  # in which the target judges a difference
ROUNDINGS = 4  # tolerance of a tie, in roundings of the run's dtype
LIKELIEST = 10  # highest logits that set the scale of a rounding
EPSILON = {"bf16": 2.0**-7, "fp16": 2.0**-10, "fp32": 2.0**-23, "fp64": 2.0**-52}


@dataclass(frozen=True)
class Divergence:
    """The first token at which an arm's output differs from vanilla's.

    Pairs hold vanilla's value and the arm's. ``position`` is an index of output tokens, from 0. A token is None,
    and its text empty, if that answer had already ended. ``gap``, ``shortfall``, and ``tolerance`` are differences
    of the target's fp32 logits after the tokens that both arms wrote.
    """

    arm: str
    question_id: str
    turn: int
    repeat: int
    position: int
    tokens: tuple[int | None, int | None]
    texts: tuple[str, str]  # text of the two tokens
    before: str  # end of the text that both wrote, without the prompt
    after: tuple[str, str]  # text that follows in each answer
    gap: float  # highest logit - second highest
    shortfall: float  # highest logit - lower one of the two tokens' logits; inf if an answer had ended
    tolerance: float

    @property
    def is_tie(self) -> bool:
        """Whether rounding alone can explain the difference."""
        return self.shortfall <= self.tolerance


@dataclass(frozen=True)
class ArmAgreement:
    """The comparison of one arm with vanilla, counted in turns.

    ``compared`` turns had vanilla's prompt. ``other_prompt`` turns had another one, because an earlier answer
    differed. ``unanswered`` turns failed or are missing in one of the two arms.
    """

    arm: str
    engine: str  # the program that decoded, in words; "": specbench
    compared: int
    other_prompt: int
    unanswered: int
    divergences: tuple[Divergence, ...]

    @property
    def same(self) -> int:
        """The number of compared turns with vanilla's output, token for token."""
        return self.compared - len(self.divergences)

    @property
    def share(self) -> float:
        """The share of compared turns with vanilla's output, token for token; NaN without any."""
        return self.same / self.compared if self.compared else nan

    @property
    def ties(self) -> list[Divergence]:
        """The divergences that rounding explains."""
        return [divergence for divergence in self.divergences if divergence.is_tie]

    @property
    def violations(self) -> list[Divergence]:
        """The divergences that rounding does not explain."""
        return [divergence for divergence in self.divergences if not divergence.is_tie]

    @property
    def widest_tie(self) -> float:
        """The largest shortfall that still counts as a tie; NaN without ties."""
        return max((tie.shortfall for tie in self.ties), default=nan)

    @property
    def position_quartiles(self) -> tuple[float, float, float]:
        """Lower quartile, median, and upper quartile of the divergences' positions; NaN without any."""
        if not self.divergences:
            return nan, nan, nan
        low, median, high = np.quantile([divergence.position for divergence in self.divergences], [0.25, 0.5, 0.75])
        return float(low), float(median), float(high)


@dataclass(frozen=True)
class LosslessReport:
    """The comparison of every arm of a greedy run with vanilla, each divergence judged by the target."""

    run: str
    dtype: str  # of the run
    arms: tuple[ArmAgreement, ...]
    undigested: str = ""  # what of the run carries no digest, in one sentence

    @property
    def divergences(self) -> list[Divergence]:
        """The divergences of every arm."""
        return [divergence for arm in self.arms for divergence in arm.divergences]

    @property
    def violations(self) -> list[Divergence]:
        """The violations of every arm, including arms of other engines."""
        return [violation for arm in self.arms for violation in arm.violations]

    @property
    def own_violations(self) -> list[Divergence]:
        """The violations of arms that specbench decoded. Those of other engines do not decide the exit code."""
        return [violation for arm in self.arms if not arm.engine for violation in arm.violations]

    @property
    def relative_tolerance(self) -> float:
        """The tolerance as a share of the largest logit."""
        return ROUNDINGS * rounding(self.dtype)

    @property
    def rule(self) -> str:
        """The tolerance in words and numbers."""
        tolerances = [divergence.tolerance for divergence in self.divergences]
        seen = f"; in this run {min(tolerances):.2g} to {max(tolerances):.2g}" if tolerances else ""
        return (
            f"A divergence is a numeric tie if the {REFERENCE_DTYPE} logits of both tokens lie close enough to the target's highest "
            f"logit. Close enough is {self.relative_tolerance:.2g} ({ROUNDINGS} roundings of {self.dtype}, "
            f"{rounding(self.dtype):.2g} each) times the largest magnitude among the {LIKELIEST} highest logits{seen}. "
            "Every other divergence is a violation."
        )


def rounding(dtype: str) -> float:
    """Return the relative rounding of a run's dtype, and at least that of fp32.

    transformers computes norms in fp32 even if the model is in fp64.
    """
    return max(EPSILON[dtype], EPSILON[REFERENCE_DTYPE])
