"""The driver of a visit: each step that is not done runs in a process of its own.

A step that hangs, fails or breaks the device affects no other.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from specbench.util.terminal import Console
from tools.gpu_visit.steps import VisitStep
from tools.gpu_visit.visit import Visit

DONE, WRONG, UNFINISHED = 0, 1, 3  # exit codes; 2 is misuse
GRACE_S = 15.0  # for a step that is interrupted, to store what it has


def time_limit(name: str, steps: Mapping[str, VisitStep], visit: Visit, remaining_s: float) -> float:
    """Return the seconds that a step may take: the remaining ones less those reserved for the steps after it.

    Early steps reserve nothing for later ones, which have another visit.
    """
    names, step = list(steps), steps[name]
    if step.may_use_all:
        return remaining_s
    after = [steps[other] for other in names[names.index(name) + 1 :] if visit.done(other) is None]
    reserved_s = sum(other.reserved_s for other in after if other.early or not step.early)
    return min(remaining_s, max(remaining_s - reserved_s, step.reserved_s))


def drive(visit: Visit, steps: Mapping[str, VisitStep], command: Sequence[str], console: Console) -> int:
    """Run ``command --only STEP --budget SECONDS`` for every step that is not done; return the exit code.

    A wrong result stops everything. A step that ran out of time, failed, needs an unfinished one, or would
    have less than its reserved time is left for the next call. The outcome is written to the folder.
    """
    began, unfinished = time.monotonic(), []
    visit.begin()
    for name, step in steps.items():
        if visit.done(name) is not None:
            console.print(f"{name}: done before", markup=False)
            continue
        remaining_s = visit.seconds - (time.monotonic() - began)
        obstacle = _obstacle(step, steps, visit, remaining_s)
        if obstacle:
            unfinished.append(name)
            console.print(f"{name}: not started, {obstacle}", markup=False)
            continue

        limit_s, started = time_limit(name, steps, visit, remaining_s), time.monotonic()
        console.rule(f"{name}, at most {limit_s:.0f} s")
        code = _run([*command, "--only", name, "--budget", f"{limit_s:.0f}"], limit_s)
        console.print(f"{name}: {_in_words(code)} after {time.monotonic() - started:.0f} s", markup=False)
        if code == WRONG:
            console.print(f"WRONG RESULTS in {name}: nothing else is measured until that is understood", style="bold red", markup=False)
            visit.end(f"wrong results in {name}")
            return WRONG
        if code != DONE:
            unfinished.append(name)

    outcome = f"left to do: {', '.join(unfinished)}" if unfinished else "all done"
    console.print(f"{outcome}{'; continue with the same command' if unfinished else ''}", markup=False)
    visit.end(outcome)
    return UNFINISHED if unfinished else DONE


def _obstacle(step: VisitStep, steps: Mapping[str, VisitStep], visit: Visit, remaining_s: float) -> str:
    """Return why a step cannot start, or ""."""
    missing = [name for name in step.needs if name in steps and visit.done(name) is None]
    if missing:
        return f"it needs {', '.join(missing)}"
    if remaining_s < step.reserved_s:
        return f"it needs {step.reserved_s:.0f} s, {remaining_s:.0f} s of the budget remain"
    return ""


def _run(command: Sequence[str], seconds: float) -> int | None:
    """Return a command's exit code, or None if it ran out of time.

    Such a command is interrupted first, as by Ctrl-C, so that a run can be resumed.
    """
    process = subprocess.Popen(command, preexec_fn=_restore_ctrl_c)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return None


def _restore_ctrl_c() -> None:
    """Restore the default SIGINT handler: shells start background jobs with SIGINT ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _in_words(code: int | None) -> str:
    if code is None:
        return "out of time"
    return {DONE: "done", WRONG: "wrong"}.get(code, f"failed (exit code {code})")


def self_command(arguments: Sequence[str]) -> list[str]:
    """Return the command that runs this program again."""
    return [sys.executable, "-m", "tools.gpu_visit", *arguments]
