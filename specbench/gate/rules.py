"""The rules of the gate: named checks, each with an outcome and one line of evidence."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import exp, isfinite, log
from pathlib import Path

import numpy as np

from methods.core.errors import UserError
from specbench.analysis.agreement import agreement
from specbench.analysis.stats import FEWEST, Estimate, geometric_mean
from specbench.config.arm import BASELINE
from specbench.gate.snapshot import ArmNumbers, DepthAcceptance, PooledRuns, Snapshot
from specbench.lossless.differences import LosslessReport

LEAST_MAT = 0.98  # of the baseline's
LEAST_RATE = 0.95  # of the baseline's
# Steps needed to judge a depth. Two greedy runs share most of their steps, so their rates differ
# less than those of two independent samples of 200 steps.
LEAST_REACHED = 200
UNREACHED = DepthAcceptance(0, 0.0)
SLOWDOWN = 0.03  # of the logarithm
NOISES = 2  # the threshold in multiples of the A/A noise
CEILING = 0.05  # of the logarithm: the largest threshold; above this noise no check passes
SHOWN = 3  # violations named in the evidence

Explain = Callable[[Path], LosslessReport]


class Outcome(StrEnum):
    """The outcome of a check or of the gate."""

    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    NOT_APPLICABLE = "not applicable"


EXIT_CODES = {Outcome.PASS: 0, Outcome.FAIL: 1, Outcome.INCONCLUSIVE: 3}


@dataclass(frozen=True)
class Check:
    """One check; ``numbers`` repeat the evidence for programs."""

    name: str
    outcome: Outcome
    evidence: str
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GateResult:
    """The checks of one comparison. One failure fails it, else one inconclusive check makes it inconclusive."""

    new: str
    base: str
    checks: list[Check]
    warnings: list[str]

    @property
    def outcome(self) -> Outcome:
        """The outcome of the whole gate."""
        outcomes = {check.outcome for check in self.checks}
        return next((outcome for outcome in (Outcome.FAIL, Outcome.INCONCLUSIVE) if outcome in outcomes), Outcome.PASS)

    @property
    def exit_code(self) -> int:
        """The exit code of ``specbench check``."""
        return EXIT_CODES[self.outcome]


def run_checks(runs: PooledRuns, new: Snapshot, base: Snapshot, explain: Explain) -> list[Check]:
    """Return every check of runs against a compatible baseline. ``explain`` tells a rounding tie from a violation."""
    checks = [check_failed_turns(runs), check_losslessness(runs, explain)]
    for name, before in base.arms.items():
        now = new.arms[name]
        checks += [check_mat(name, now, before), check_acceptance(name, now, before), check_speedup(name, new, base)]
    return checks


def check_failed_turns(runs: PooledRuns) -> Check:
    """Check that no turn failed."""
    count, total = len(runs.failed), len(runs.turns)
    numbers = {"failed": float(count), "turns": float(total)}
    if not count:
        return Check("failed turns", Outcome.PASS, f"none of {total}", numbers)
    first = runs.failed.iloc[0]
    where = f"{first['arm']}, question {first['question_id']}, turn {first['turn'] + 1}: {first['error']}"
    return Check("failed turns", Outcome.FAIL, f"{count} of {total}, the first: {where}", numbers)


def check_losslessness(runs: PooledRuns, explain: Explain) -> Check:
    """Check that greedy outputs of lossless arms differ from vanilla's by rounding ties only.

    The target is loaded only if an output differs.
    """
    name, settings = "losslessness", runs.manifest.settings
    if settings.temperature > 0:
        why = f"sampled at temperature {settings.temperature:g}: texts may differ, so they show nothing"
        return Check(name, Outcome.NOT_APPLICABLE, why)
    arms = [arm for arm, facts in runs.manifest.own.items() if arm != BASELINE and facts.lossless]
    if not arms:
        return Check(name, Outcome.NOT_APPLICABLE, "every drafting arm is lossy by design")

    compared = differing = 0
    violations, unexplained = [], []
    for run_dir, frame in zip(runs.run_dirs, runs.frames, strict=True):
        sound = frame[frame["status"] == "ok"]
        if (sound["output_ids"].map(len) == 0).any():
            return Check(name, Outcome.INCONCLUSIVE, f"{run_dir} has answers without token ids, which cannot be compared")
        agreements = [agreement(sound[sound["arm"] == arm], sound[sound["arm"] == BASELINE]) for arm in arms]
        compared += sum(one.comparable_turns for one in agreements)
        diverging = sum(one.diverging_turns for one in agreements)
        differing += diverging
        if diverging:
            try:
                violations += [violation for violation in explain(run_dir).violations if violation.arm in arms]
            except UserError as error:  # the suite or the target is not here; the other checks still count
                unexplained.append(str(error))

    numbers = {"compared": float(compared), "differing": float(differing), "violations": float(len(violations))}
    if violations:
        places = [f"{one.arm}, question {one.question_id}, turn {one.turn + 1}, token {one.position}" for one in violations]
        more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
        return Check(name, Outcome.FAIL, f"{len(places)} of {compared} turns: {'; '.join(places[:SHOWN])}{more}", numbers)
    if unexplained:
        return Check(name, Outcome.INCONCLUSIVE, f"{differing} of {compared} turns differ, and why is not known: {unexplained[0]}", numbers)
    if not compared:
        return Check(name, Outcome.INCONCLUSIVE, "no turn has vanilla's prompt, so none can be compared", numbers)
    evidence = f"{compared - differing} of {compared} turns equal vanilla's, {differing} differ by a numeric tie"
    return Check(name, Outcome.PASS, evidence, numbers)


def check_mat(name: str, new: ArmNumbers, base: ArmNumbers) -> Check:
    """Check that MAT is no lower than ``LEAST_MAT`` times the baseline's.

    MAT at temperature 0 repeats exactly but for rounding ties, so the check needs no interval.
    """
    ratio = new.mat / base.mat
    numbers = {"new": new.mat, "base": base.mat, "ratio": ratio, "least": LEAST_MAT}
    if not isfinite(ratio):
        return Check(f"MAT: {name}", Outcome.INCONCLUSIVE, "no step in one of the two", numbers)
    outcome = Outcome.FAIL if ratio < LEAST_MAT else Outcome.PASS
    return Check(f"MAT: {name}", outcome, f"{new.mat:.3f} against {base.mat:.3f}, ratio {ratio:.3f} (fails below {LEAST_MAT})", numbers)


def check_acceptance(name: str, new: ArmNumbers, base: ArmNumbers) -> Check:
    """Check the conditional acceptance rate at every depth that both reached in ``LEAST_REACHED`` steps.

    A depth that the new run never reaches counts as a rate of 0. A depth that it reaches in less than half as many
    steps makes the check inconclusive, because a loss there would not show.
    """
    title = f"acceptance by depth: {name}"
    ratios, too_few_steps, skipped = {}, [], []
    for depth, before in base.depths.items():
        now = new.depths.get(depth, UNREACHED)
        judged = before.reached >= LEAST_REACHED and before.rate > 0
        if judged and (now.reached == 0 or now.reached >= LEAST_REACHED):
            ratios[depth] = now.rate / before.rate if now.reached else 0.0
        elif judged and now.reached < LEAST_REACHED / 2:
            too_few_steps.append(depth)
        elif before.reached:
            skipped.append(depth)

    evidence, low = _ratio_evidence(ratios)
    evidence += f"; too few steps left to judge at {_depths(too_few_steps)}" if too_few_steps else ""
    evidence += f"; not judged: {_depths(skipped)}" if skipped else ""
    outcome = Outcome.FAIL if low else Outcome.INCONCLUSIVE if too_few_steps or not ratios else Outcome.PASS
    return Check(title, outcome, evidence, {f"depth {depth}": ratio for depth, ratio in ratios.items()})


def _ratio_evidence(ratios: Mapping[int, float]) -> tuple[str, list[int]]:
    """Return the evidence of the depths that are judged, and the depths that are too low."""
    if not ratios:
        return f"no depth was reached in {LEAST_REACHED} steps by both runs", []
    low = [depth for depth, ratio in ratios.items() if ratio < LEAST_RATE]
    worst = min(ratios, key=lambda depth: ratios[depth])
    lowest = f"lowest ratio {ratios[worst]:.3f} at depth {worst} (fails below {LEAST_RATE})"
    too_low = f", too low at {_depths(low)}" if len(low) > 1 else ""
    return f"{_depths(list(ratios))} (reached in {LEAST_REACHED} steps): {lowest}{too_low}", low


def _depths(depths: Sequence[int]) -> str:
    return f"depth{'s' if len(depths) > 1 else ''} {', '.join(map(str, depths))}"


def check_speedup(name: str, new: Snapshot, base: Snapshot) -> Check:
    """Check the ratio of the two speedups over vanilla, paired by question.

    It fails if the whole interval lies below the threshold and passes if none of it does. The threshold follows the
    machine's A/A noise up to ``CEILING``; above this noise no check passes. Too few questions are inconclusive.
    """
    title = f"speedup: {name}"
    ours, theirs = new.arms[name].log_speedups, base.arms[name].log_speedups
    common = sorted(ours.keys() & theirs.keys())
    logs = np.array([ours[question] - theirs[question] for question in common])
    ratio = geometric_mean(logs, [base.categories[question] for question in common])

    noise = max((value for value in (new.noise, base.noise) if value is not None), default=None)
    noise_limit = NOISES * (noise or 0.0)
    threshold = min(max(SLOWDOWN, noise_limit), CEILING)
    numbers = {**ratio._asdict(), "questions": float(len(common)), "threshold": exp(-threshold)}
    outcome, why = _speedup_outcome(ratio, len(common), threshold, noise_limit)
    basis = f"{SLOWDOWN:.0%}, no A/A arm"
    if noise is not None:
        basis = f"{NOISES} x the A/A noise of {noise:.1%}, at least {SLOWDOWN:.0%}, at most {CEILING:.0%}"
    shown = f"{ratio.value:.3f}x [{ratio.low:.3f}, {ratio.high:.3f}] of the baseline's over {len(common)} questions"
    return Check(title, outcome, f"{shown}; {why}fails where the interval lies below {exp(-threshold):.3f}x ({basis})", numbers)


def _speedup_outcome(ratio: Estimate, questions: int, threshold: float, noise_limit: float) -> tuple[Outcome, str]:
    if questions < FEWEST or not ratio.known:
        return Outcome.INCONCLUSIVE, f"fewer than {FEWEST} questions make no 95 % interval; "
    if log(ratio.high) < -threshold:
        return Outcome.FAIL, ""
    if noise_limit > CEILING:
        return Outcome.INCONCLUSIVE, f"the machine is too noisy: it hides slowdowns up to {noise_limit:.1%}; "
    if log(ratio.low) < -threshold:
        return Outcome.INCONCLUSIVE, "too few samples to exclude such a slowdown, add repeats; "
    return Outcome.PASS, ""
