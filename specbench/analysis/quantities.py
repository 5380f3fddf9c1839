"""The quantities in which an arm is compared with another one, each with its definitions.

All are ratios that are larger where the arm is better. The reference may be any arm of the run. Over vanilla, which
drafts nothing, the ratio of MATs is the arm's MAT, and that of drafting times is 0.
"""

from specbench.analysis.metrics import SPEEDUPS, Definition, Sums, mat, mat_per_question
from specbench.analysis.stats import Array


def mat_ratio(s: Sums) -> Array:
    """MAT of the arm divided by the reference's, each ``mat``. Papers call MAT block efficiency too."""
    return mat(s) / reference_mat(s)


def mat_ratio_per_question(s: Sums) -> Array:
    """MAT of the arm divided by the reference's, each ``mat_per_question``."""
    return mat_per_question(s) / (s.ref_mat / s.ref_stepped)


def drafting_per_token(s: Sums) -> Array:
    """Mean drafting seconds per emitted token of the reference divided by the arm's, over all steps together."""
    return (s.ref_draft_s / s.ref_emitted) / (s.draft_s / s.emitted)


def drafting_per_step(s: Sums) -> Array:
    """Mean drafting seconds per step of the reference divided by the arm's, over all steps together.

    It favours an arm that drafts little and takes more steps for it.
    """
    return (s.ref_draft_s / s.ref_steps) / (s.draft_s / s.steps)


def drafting_share(s: Sums) -> Array:
    """Fraction of step time that the reference spends on drafting divided by the arm's fraction."""
    return (s.ref_draft_s / s.ref_decode_s) / (s.draft_s / s.decode_s)


def reference_mat(s: Sums) -> Array:
    """MAT of the reference, as ``mat``; 1 for vanilla."""
    return s.ref_emitted / s.ref_steps


MAT_RATIOS: tuple[Definition, ...] = (mat_ratio, mat_ratio_per_question)
DRAFTING: tuple[Definition, ...] = (drafting_per_token, drafting_per_step, drafting_share)
QUANTITIES = {"speedup": SPEEDUPS, "MAT": MAT_RATIOS, "drafting time": DRAFTING}
