"""Does what is left to do, a process a piece: one that hangs, fails or breaks the device takes no other along."""

import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence

from rich.console import Console

from tools.gpu_visit.steps import Piece
from tools.gpu_visit.work import Work

DONE, WRONG, LEFT = 0, 1, 3  # exit codes; 2 is misuse
ORDERLY_S = 15.0  # for a piece that is told to stop to leave what it has


def limit(piece: str, pieces: Mapping[str, Piece], work: Work, left: float) -> float:
    """Seconds the piece may take: all that is left, less what the undone ones after it are meant to have.

    What comes first keeps nothing back for what does not: that has another visit. A gate keeps nothing back at all.
    """
    names, (meant, _, _, first, gate) = list(pieces), pieces[piece]
    after = [pieces[name] for name in names[names.index(piece) + 1 :] if work.done(name) is None]
    kept = sum(each.seconds for each in after if each.first or not first)
    return left if gate else min(left, max(left - kept, meant))


def drive(work: Work, pieces: Mapping[str, Piece], command: Sequence[str], console: Console) -> int:
    """Run ``command --only PIECE --budget SECONDS`` for every piece that is not done; returns the exit code.

    A wrong result stops everything, loudly. A piece out of time or failed is left for the next call, and so is one that
    needs it or has less time than it is meant to have. How it ended is noted too.
    """
    began, left_over = time.monotonic(), []
    work.begin()
    for piece, (meant, _, needs, *_) in pieces.items():
        if work.done(piece) is not None:
            console.print(f"{piece}: done before", markup=False)
            continue
        left = work.seconds - (time.monotonic() - began)
        lacking = [name for name in needs if name in pieces and work.done(name) is None]
        if lacking or left < meant:
            left_over.append(piece)
            why = f"it needs {', '.join(lacking)}" if lacking else f"it is meant to have {meant:.0f} s, {left:.0f} s of the budget remain"
            console.print(f"{piece}: left, {why}", markup=False)
            continue
        seconds, started = limit(piece, pieces, work, left), time.monotonic()
        console.rule(f"{piece}, at most {seconds:.0f} s")
        code = _child([*command, "--only", piece, "--budget", f"{seconds:.0f}"], seconds)
        console.print(f"{piece}: {_said(code)} after {time.monotonic() - started:.0f} s", markup=False)
        if code == WRONG:
            console.print(f"WRONG RESULTS in {piece}: nothing else is measured until that is understood", style="bold red", markup=False)
            work.end(f"wrong results in {piece}")
            return WRONG
        if code != DONE:
            left_over.append(piece)
    outcome = f"left to do: {', '.join(left_over)}" if left_over else "all done"
    console.print(f"{outcome}{'; the same command goes on from here' if left_over else ''}", markup=False)
    work.end(outcome)
    return LEFT if left_over else DONE


def _child(command: Sequence[str], seconds: float) -> int | None:
    """Its exit code, None for one that was stopped: asked to first, as by Ctrl-C, which leaves a run that resumes."""
    process = subprocess.Popen(command, preexec_fn=_heeds_ctrl_c)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(ORDERLY_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        return None


def _heeds_ctrl_c() -> None:
    """In the piece's process: a shell's background jobs are born deaf to it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _said(code: int | None) -> str:
    if code is None:
        return "out of time"
    return {DONE: "done", WRONG: "wrong"}.get(code, f"failed (exit code {code})")


def self_command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "tools.gpu_visit", *arguments]
