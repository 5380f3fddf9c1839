"""The findings of a report as sentences: what is missing, the fastest arm, warnings, and caveats."""

import pandas as pd

from specbench.analysis.frames import OVERALL
from specbench.analysis.metrics import IMPOSSIBLE_MARGIN
from specbench.analysis.stats import FEWEST
from specbench.engines.endpoint.tolerance import REMARKED
from specbench.report import tables
from specbench.report.run import Run
from specbench.store import describe
from specbench.store.records import device_kind
from specbench.util.text import TextTable, number, percent

SHOWN_FAILURES = 20
LOOPING = 0.2  # share of repeated 4-grams from which a warning is shown
CUT = 0.05  # share of answers cut at the token limit from which a warning is shown


def subtitle(run: Run) -> str:
    """Return the figures' second line: target and its label, device, dtype, suite, and number of answered questions."""
    settings = run.manifest.settings
    count = run.turns.loc[run.turns["status"] == "ok", "question_id"].nunique()
    parts = [f"target {describe.target(run.manifest)}", describe.processor(run.manifest), settings.dtype, f"suite {settings.suite}"]
    return " · ".join([*parts, f"n = {count} questions"])


def state(run: Run) -> list[str]:
    """Return whether the run is complete in one line, and more lines if something is missing."""
    done, failed, total = len(run.turns), int((run.turns["status"] != "ok").sum()), run.manifest.units_total
    if done >= total and not failed and not run.stored.torn:
        return [f"Complete: all {total} turns were answered."]
    lines = [f"{'Complete' if done >= total else 'Partial'}: {done} of {total} turns recorded, {failed} of them failed."]
    if not done:
        lines[0] = f"Empty: none of the {total} turns is recorded, so there is nothing to compare."
    if done < total:
        lines.append(f"The run's status is “{run.manifest.status}”. To measure the missing turns: specbench resume RUN.")
    if run.stored.torn:
        lines.append("The last record is incomplete, because the run was killed while it was written. It is left out.")
    return lines


def turn_counts(run: Run) -> TextTable:
    """Return a table of each arm's recorded, failed, and missing turns."""
    share = run.manifest.units_total // max(len(run.arms), 1)
    rows = []
    for name, label in run.arms.items():
        own = run.turns.loc[run.turns["arm"] == name, "status"]
        rows.append([label, str(len(own)), str(int((own != "ok").sum())), str(max(share - len(own), 0))])
    return TextTable("Turns", ["Method", "Recorded", "Failed", "Missing"], rows)


def fastest(run: Run) -> list[str]:
    """Return the fastest of specbench's own arms in one sentence; nothing without an arm that took steps and has a speedup."""
    own = [row for name, row in run.overall.items() if name in run.drafting and name not in run.other_engines]
    rows = [row for row in own if pd.notna(row["speedup"]) and pd.notna(row["mat"])]
    if not rows:
        return []
    best = max(rows, key=lambda row: row["speedup"])
    low, high = best["speedup_low"], best["speedup_high"]
    if pd.isna(low) or best["questions"] < FEWEST:
        meaning = "too few questions to call it faster or slower"
    elif low > 1:
        meaning = "the interval lies above 1"
    elif high < 1:
        meaning = "slower than vanilla"
    else:
        meaning = "the interval contains 1, so it may be no faster"
    return [
        f"Fastest arm: {run.arms[best['arm']]}, {tables.with_interval(best, 'speedup')} end to end over vanilla ({meaning}); "
        f"MAT {number(best['mat'])}, step cost R {number(best['step_cost'])}; {best['questions']} questions."
    ]


def noise(run: Run) -> list[str]:
    """Return the A/A noise of each arm that ran twice: the end of its interval that is farther from 1."""
    lines = []
    for name, floor in run.noise.items():
        label = run.arms[name]
        if floor.known and run.overall[name]["questions"] >= FEWEST:
            farther = max(abs(floor.low - 1), abs(floor.high - 1))
            lines.append(
                f"A/A noise: {label} ran twice, and the two arms differ by up to {percent(farther)}. "
                "A difference no larger than that may be noise. The number holds for this arm and this run only."
            )
        else:
            lines.append(f"A/A noise: {label} ran twice, but on too few questions to estimate the noise.")
    return lines


def warnings(run: Run) -> list[str]:
    """Return one line for each fact that can make the numbers misleading."""
    numbers, labels = run.comparison, run.arms
    lines = []
    if not run.has_vanilla:
        lines.append("No vanilla turns are recorded, so there are no speedups, step costs, or comparisons with vanilla's output.")
    impossible = "That is impossible at batch size 1, so times or counts are wrong."
    by_chance = f"With fewer than {FEWEST} questions that may be chance; on more it is impossible at batch size 1."
    for row in numbers[numbers["accounting_error"]].to_dict("records"):
        where = "all categories" if row["category"] == OVERALL else row["category"]
        lines.append(
            f"ACCOUNTING ERROR, {labels[row['arm']]}, {where}: a step takes less time than a step of vanilla, or the speedup exceeds MAT, "
            f"by more than {IMPOSSIBLE_MARGIN - 1:.0%} beyond the interval. "
            f"{impossible if row['questions'] >= FEWEST else by_chance}"
        )
    for row in numbers[(numbers["category"] == OVERALL) & (numbers["excluded_questions"] > 0)].to_dict("records"):
        failed, mixed = row["excluded_questions"] - row["mixed_questions"], row["mixed_questions"]
        reasons = [f"{failed} question(s) with a failed turn"] if failed else []
        reasons += [f"{mixed} question(s) whose turns ran on devices of different kinds"] if mixed else []
        lines.append(f"{labels[row['arm']]}: {' and '.join(reasons)} left out of both arms.")
    if run.losslessness is not None and run.losslessness.report.violations:
        violating = [f"{labels[arm.arm]} {len(arm.violations)}" for arm in run.losslessness.report.arms if arm.violations]
        lines.append(f"Some outputs are not the target's and rounding does not explain it; violations: {', '.join(violating)}.")
    lines += engines(run)
    lossy = [labels[name] for name, facts in run.manifest.arms.items() if name in labels and facts.lossless is False]
    if lossy:
        lines.append(f"Lossy arms, whose output need not follow the target's distribution: {', '.join(lossy)}.")
    if run.manifest.settings.temperature > 0:
        lines.append(
            f"Outputs are random samples at temperature {run.manifest.settings.temperature:g}. "
            "Differences from vanilla are expected and do not show a loss."
        )
    return lines


def engines(run: Run) -> list[str]:
    """Return what a reader must know about rows of other engines."""
    if not run.other_engines:
        return []
    lines = [
        f"Different engine, timed by this run's clock: {', '.join(run.other_engines.values())}. "
        "Its speedup over specbench's vanilla contains the gain of the engine and of its method. No claim and no gate uses it."
        + (" The hardware of a server is unknown here." if run.manifest.served else "")
    ]
    for name, label in run.other_engines.items():
        rows = run.turns[(run.turns["arm"] == name) & (run.turns["status"] == "ok")]
        served = rows[rows["timing"] == "answer"]
        if len(served):
            counted = int((served["steps"] > 0).sum())
            lines.append(
                f"{label}: MAT is from the server's own counters, known for {counted} of its {len(served)} turns. "
                "Its batching, prefix cache, and weight format are the server's own settings."
            )
        texts = served[served["output_ids"].map(len) == 0]
        if len(texts):
            lines.append(f"{label}: the server sends no token ids. Tokens are counted by the server, and answers are compared as text.")
        off = sum(REMARKED.exceeded(server, ours) for server, ours in zip(texts["tokens"], texts["text_tokens"], strict=True))
        if off:
            lines.append(
                f"{label}: in {off} of {len(texts)} answers the server's token count differs from our count by more than {REMARKED}."
            )
    return lines


def caveats(run: Run) -> list[str]:
    """Return everything that limits the meaning of the numbers, warnings included."""
    manifest = run.manifest
    lines = [manifest.target.note] if manifest.target.note else []
    lines += [
        f"{label} is a reconstruction from the paper's abstract, without its authors' code or weights. Its numbers are not theirs."
        for name, label in run.shown.items()
        if manifest.arms[name].reconstruction
    ]
    lines += [
        f"{label} keeps {manifest.arms[name].state} from question to question, warm-up included. Its numbers depend on the order of the "
        "questions, and a resumed or sharded run starts it anew."
        for name, label in run.shown.items()
        if manifest.arms[name].state
    ]
    lines += warnings(run)

    least = run.comparison.groupby("category", sort=False)["questions"].min()
    few = [run.categories[str(category)] for category, questions in least.items() if questions < FEWEST]
    if few:
        lines.append(f"Categories with fewer than {FEWEST} questions, where a 95 % interval covers less than 95 %: {', '.join(few)}.")
    lines += [*outputs(run), *_divergences(run), *devices(run)]
    if not run.noise:
        lines.append("No arm ran twice (specbench run --aa ARM), so the noise of this run is unknown.")
    if manifest.settings.repeats == 1:
        lines.append("The questions were asked once. Intervals show the spread over questions, not changes of the machine between runs.")
    if manifest.resumed:
        lines.append(f"The run was resumed {len(manifest.resumed)} time(s), so not all questions were measured by one process.")
    if run.stored.undigested:
        lines.append(run.stored.undigested)
    if manifest.git.dirty:
        lines.append("The code had local changes that are not in a commit.")
    if not manifest.imported:
        where = "one target in each worker" if _workers(run) > 1 else "one machine, one process"
        where += ", except for rows of servers" if manifest.served else ""
        lines.append(f"Batch size 1, {where}. Tree sizes are those under “Machine and settings”, not each method's best.")
    return lines


def devices(run: Run) -> list[str]:
    """Return which devices ran the questions, if it was not one process on one device."""
    workers, lines = _workers(run), []
    ran = run.turns.loc[(run.turns["status"] == "ok") & (run.turns["device"] != ""), ["device", "question_id"]]
    if workers > 1 and run.manifest.settings.device == "cpu":
        lines.append(
            f"Measured by {workers} processes on CPUs. Processes on one machine share its memory bandwidth: every arm is slower than alone "
            "and speedups hold under that load only. Quote numbers of a run without --workers."
        )
    elif workers > 1 or ran["device"].nunique() > 1:
        lines.append(
            f"Measured on {ran['device'].nunique()} devices by up to {workers} worker(s) at a time. All arms of a question ran on one "
            "device. Workers on one host share its cores."
        )
    kinds = ran.groupby(ran["device"].map(device_kind))["question_id"].nunique()
    if len(kinds) > 1:
        listed = "; ".join(f"{kind}: {count} question(s)" for kind, count in kinds.items())
        lines.append(f"Devices of {len(kinds)} kinds, {listed}. No ratio is formed across kinds, but overall numbers average over them.")
    return lines


def _workers(run: Run) -> int:
    return max(environment.workers or 1 for environment in run.manifest.environments)


def outputs(run: Run) -> list[str]:
    """Return warnings about outputs that repeat themselves or were cut at the token limit."""
    overall, labels = {name: run.overall[name] for name in run.shown}, run.arms
    looping = [f"{labels[name]} {percent(row['repetition'])}" for name, row in overall.items() if row["repetition"] >= LOOPING]
    cut = [f"{labels[name]} {percent(row['stopped_by_length'])}" for name, row in overall.items() if row["stopped_by_length"] >= CUT]
    lines = []
    if looping:
        lines.append(
            "Outputs repeat themselves. Repetition is easy to draft, so it raises MAT and speedup. "
            f"Share of repeated 4-grams: {', '.join(looping)}."
        )
    if cut:
        limit = run.manifest.settings.max_new_tokens
        lines.append(
            f"Answers were cut at {limit} tokens or by the target's context, so the numbers do not cover longer answers. "
            f"Share of turns: {', '.join(cut)}."
        )
    return lines


def _divergences(run: Run) -> list[str]:
    diverging = [
        f"{run.arms[name]} {row['diverging_turns']} of {row['comparable_turns']}"
        for name, row in run.overall.items()
        if row["diverging_turns"] and run.manifest.arms[name].lossless and not run.manifest.settings.temperature
    ]
    if not diverging:
        return []
    why = "The cause may be rounding or a bug (specbench agree tells which)."
    if run.losslessness is not None:
        why = "Each is judged under “Divergences from vanilla”."
    return [f"Greedy turns that differ from vanilla's: {', '.join(diverging)}. {why}"]


def failures(run: Run) -> TextTable | None:
    """Return a table of the failed turns with their errors, shortened if there are many."""
    failed = run.turns[run.turns["status"] != "ok"]
    if failed.empty:
        return None
    rows = [
        [run.arms.get(row["arm"], row["arm"]), row["question_id"], str(row["turn"] + 1), str(row["repeat"] + 1), row["error"]]
        for row in failed.head(SHOWN_FAILURES).to_dict("records")
    ]
    shown = f", the first {len(rows)} of {len(failed)}" if len(failed) > len(rows) else ""
    return TextTable(f"Failed turns{shown}", ["Method", "Question", "Turn", "Repeat", "Error"], rows)
