"""The rules of the gate, each a named check with an outcome and one line of evidence."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import exp, isfinite, log
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from methods.core.errors import UserError
from specbench.analysis.agreement import agreement
from specbench.analysis.stats import FEWEST, Estimate, geometric_mean
from specbench.gate.snapshot import Arm, Depth, Side, Snapshot
from specbench.store.records import BASELINE

if TYPE_CHECKING:
    from specbench.lossless.divergence import Explained

LEAST_MAT = 0.98  # of the baseline's
LEAST_RATE = 0.95
# Two greedy runs differ in few steps, so this is not the error of a share of 200; it keeps out depths that hardly any step reaches.
LEAST_REACHED = 200
UNREACHED = Depth(0, 0.0)
SLOWDOWN = 0.03  # of the logarithm
NOISES = 2
CEILING = 0.05  # of the logarithm: a machine that hides a slowdown of this size can pass nothing
SHOWN = 3


class Outcome(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    NOT_APPLICABLE = "not applicable"


EXIT_CODES = {Outcome.PASS: 0, Outcome.FAIL: 1, Outcome.INCONCLUSIVE: 3}


@dataclass(frozen=True)
class Check:
    """``numbers`` are what the evidence says, for machines."""

    name: str
    outcome: Outcome
    evidence: str
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """The checks of one comparison; any failure decides, then anything inconclusive."""

    new: str
    base: str
    checks: list[Check]
    warnings: list[str]

    @property
    def outcome(self) -> Outcome:
        found = {check.outcome for check in self.checks}
        return next((each for each in (Outcome.FAIL, Outcome.INCONCLUSIVE) if each in found), Outcome.PASS)

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.outcome]


Explain = Callable[[Path], "Explained"]


def judge(side: Side, new: Snapshot, base: Snapshot, explain: Explain) -> list[Check]:
    """Every check of a run against a baseline it is compatible with; ``explain`` tells a tie from a violation."""
    checks = [failed_turns(side), losslessness(side, explain)]
    for name, before in base.arms.items():
        now = new.arms[name]
        checks += [mat(name, now, before), acceptance(name, now, before), speedup(name, new, base)]
    return checks


def failed_turns(side: Side) -> Check:
    count, total = len(side.failed), len(side.turns)
    numbers = {"failed": float(count), "turns": float(total)}
    if not count:
        return Check("failed turns", Outcome.PASS, f"none of {total}", numbers)
    first = side.failed.iloc[0]
    where = f"{first['method']}, question {first['question_id']}, turn {first['turn'] + 1}: {first['error']}"
    return Check("failed turns", Outcome.FAIL, f"{count} of {total}, the first of {where}", numbers)


def losslessness(side: Side, explain: Explain) -> Check:
    """A greedy text that leaves vanilla's where the target was not torn fails; the target is loaded only where one does."""
    name, asked = "losslessness", side.manifest.settings
    if asked.temperature > 0:
        return Check(name, Outcome.NOT_APPLICABLE, f"sampled at temperature {asked.temperature:g}: texts may differ, so they show nothing")
    arms = [arm for arm, facts in side.manifest.own.items() if arm != BASELINE and facts.lossless]
    if not arms:
        return Check(name, Outcome.NOT_APPLICABLE, "every drafting arm is lossy by design")
    compared = differing = 0
    violations, unexplained = [], []
    for run_dir, frame in zip(side.run_dirs, side.frames, strict=True):
        sound = frame[frame["status"] == "ok"]
        if (sound["output_ids"].map(len) == 0).any():
            return Check(name, Outcome.INCONCLUSIVE, f"{run_dir} has answers without token ids, which cannot be compared")
        found = [agreement(sound[sound["method"] == arm], sound[sound["method"] == BASELINE]) for arm in arms]
        compared += sum(each.comparable_turns for each in found)
        apart = sum(each.diverging_turns for each in found)
        differing += apart
        if apart:
            try:
                violations += [each for each in explain(run_dir).violations if each.method in arms]
            except UserError as error:  # the suite or the target is not at hand; what else the run shows still counts
                unexplained.append(str(error))
    numbers = {"compared": float(compared), "differing": float(differing), "violations": float(len(violations))}
    if violations:
        places = [f"{each.method}, question {each.question_id}, turn {each.turn + 1}, token {each.position}" for each in violations]
        more = f" and {len(places) - SHOWN} more" if len(places) > SHOWN else ""
        return Check(name, Outcome.FAIL, f"{len(places)} of {compared} turns: {'; '.join(places[:SHOWN])}{more}", numbers)
    if unexplained:
        return Check(name, Outcome.INCONCLUSIVE, f"{differing} of {compared} turns differ, and why is not known: {unexplained[0]}", numbers)
    if not compared:
        return Check(name, Outcome.INCONCLUSIVE, "no turn has vanilla's prompt, so none can be compared", numbers)
    evidence = f"{compared - differing} of {compared} turns equal vanilla's, {differing} differ by a numeric tie"
    return Check(name, Outcome.PASS, evidence, numbers)


def mat(name: str, new: Arm, base: Arm) -> Check:
    """MAT is deterministic at temperature 0 but for numeric ties, so a point decides."""
    ratio = new.mat / base.mat
    numbers = {"new": new.mat, "base": base.mat, "ratio": ratio, "least": LEAST_MAT}
    if not isfinite(ratio):
        return Check(f"MAT: {name}", Outcome.INCONCLUSIVE, "no step on one of the sides", numbers)
    outcome = Outcome.FAIL if ratio < LEAST_MAT else Outcome.PASS
    return Check(f"MAT: {name}", outcome, f"{new.mat:.3f} against {base.mat:.3f}, ratio {ratio:.3f} (fails below {LEAST_MAT})", numbers)


def acceptance(name: str, new: Arm, base: Arm) -> Check:
    """Conditional acceptance at every depth that both sides reached in ``LEAST_REACHED`` steps.

    A depth that NEW never reaches any more counts as one at which it accepts nothing. One that it reaches in less than half
    as many steps makes the check inconclusive: a loss there would not show.
    """
    title = f"acceptance by depth: {name}"
    ratios, thin, skipped = {}, [], []
    for depth, before in base.depths.items():
        now = new.depths.get(depth, UNREACHED)
        asked = before.reached >= LEAST_REACHED and before.rate > 0
        if asked and (now.reached == 0 or now.reached >= LEAST_REACHED):
            ratios[depth] = now.rate / before.rate if now.reached else 0.0
        elif asked and now.reached < LEAST_REACHED / 2:
            thin.append(depth)
        elif before.reached:
            skipped.append(depth)
    evidence, low = _ratios(ratios)
    evidence += f"; too few steps left to judge at {_depths(thin)}" if thin else ""
    evidence += f"; not judged: {_depths(skipped)}" if skipped else ""
    outcome = Outcome.FAIL if low else Outcome.INCONCLUSIVE if thin or not ratios else Outcome.PASS
    return Check(title, outcome, evidence, {f"depth {depth}": ratio for depth, ratio in ratios.items()})


def _ratios(ratios: Mapping[int, float]) -> tuple[str, list[int]]:
    """What the depths that are judged show, and which of them are too low."""
    if not ratios:
        return f"no depth was reached in {LEAST_REACHED} steps on both sides", []
    low = [depth for depth, ratio in ratios.items() if ratio < LEAST_RATE]
    worst = min(ratios, key=lambda depth: ratios[depth])
    lowest = f"lowest ratio {ratios[worst]:.3f} at depth {worst} (fails below {LEAST_RATE})"
    too_low = f", too low at {_depths(low)}" if len(low) > 1 else ""
    return f"{_depths(list(ratios))} (reached in {LEAST_REACHED} steps): {lowest}{too_low}", low


def _depths(depths: Sequence[int]) -> str:
    return f"depth{'s' if len(depths) > 1 else ''} {', '.join(map(str, depths))}"


def speedup(name: str, new: Snapshot, base: Snapshot) -> Check:
    """The paired ratio of the speedups over vanilla, question by question.

    Fails only if its whole interval lies below the threshold and passes only if none of it does. The threshold follows the
    machine's noise up to ``CEILING``; a machine noisier than that passes nothing. Too few questions are inconclusive.
    """
    title = f"speedup: {name}"
    ours, theirs = new.arms[name].log_speedups, base.arms[name].log_speedups
    common = sorted(ours.keys() & theirs.keys())
    ratio = geometric_mean(np.array([ours[each] - theirs[each] for each in common]), [base.categories[each] for each in common])
    noise = max((each for each in (new.noise, base.noise) if each is not None), default=None)
    blur = NOISES * (noise or 0.0)
    threshold = min(max(SLOWDOWN, blur), CEILING)
    numbers = {**ratio._asdict(), "questions": float(len(common)), "threshold": exp(-threshold)}
    outcome, why = _speedup_outcome(ratio, len(common), threshold, blur)
    basis = f"{SLOWDOWN:.0%}, no A/A arm"
    if noise is not None:
        basis = f"{NOISES} x the A/A noise of {noise:.1%}, at least {SLOWDOWN:.0%}, at most {CEILING:.0%}"
    shown = f"{ratio.value:.3f}x [{ratio.low:.3f}, {ratio.high:.3f}] of the baseline's over {len(common)} questions"
    return Check(title, outcome, f"{shown}; {why}fails where the interval lies below {exp(-threshold):.3f}x ({basis})", numbers)


def _speedup_outcome(ratio: Estimate, questions: int, threshold: float, blur: float) -> tuple[Outcome, str]:
    if questions < FEWEST or not ratio.known:
        return Outcome.INCONCLUSIVE, f"fewer than {FEWEST} questions make no 95 % interval; "
    if log(ratio.high) < -threshold:
        return Outcome.FAIL, ""
    if blur > CEILING:
        return Outcome.INCONCLUSIVE, f"the machine is too noisy: it hides slowdowns up to {blur:.1%}; "
    if log(ratio.low) < -threshold:
        return Outcome.INCONCLUSIVE, "too few samples to exclude such a slowdown, add repeats; "
    return Outcome.PASS, ""
