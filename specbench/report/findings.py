"""What the report says of a run in sentences: what is missing, who is fastest, warnings, caveats."""

import pandas as pd

from specbench.analysis.frames import OVERALL
from specbench.analysis.metrics import PHYSICS_MARGIN
from specbench.analysis.stats import FEWEST
from specbench.engines.endpoint.usage import REMARKED
from specbench.engines.registry import is_peer
from specbench.report import tables
from specbench.report.run import Run
from specbench.store import describe
from specbench.store.manifest import IMPORTED
from specbench.store.records import AGAIN, device_kind
from specbench.util.table import TextTable, number, percent

SHOWN_FAILURES = 20
LOOPING = 0.2  # share of repeated 4-grams from which a reader must be told
CUT = 0.05


def subtitle(run: Run) -> str:
    """The figures' second line: target and label, device, dtype, suite and the number of answered questions."""
    asked = run.manifest.settings
    count = run.turns.loc[run.turns["status"] == "ok", "question_id"].nunique()
    where = [f"target {describe.target(run.manifest)}", describe.processor(run.manifest), asked.dtype, f"suite {asked.suite}"]
    return " · ".join([*where, f"n = {count} questions"])


def state(run: Run) -> list[str]:
    """Whether the run is whole; one line, and more where something is missing."""
    done, failed, total = len(run.turns), int((run.turns["status"] != "ok").sum()), run.manifest.units_total
    if done >= total and not failed and not run.torn:
        return [f"Complete: all {total} turns were answered."]
    lines = [f"{'Complete' if done >= total else 'Partial'}: {done} of {total} turns recorded, {failed} of them failed."]
    if not done:
        lines[0] = f"Empty: none of the {total} turns is recorded, so there is nothing to compare."
    if done < total:
        lines.append(f"The run's status is “{run.manifest.status}”; specbench resume on its directory does what is missing.")
    if run.torn:
        lines.append("The last line of the records was cut off while it was written and is left out.")
    return lines


def turn_counts(run: Run) -> TextTable:
    """How many turns each arm recorded, failed and lacks."""
    share = run.manifest.units_total // max(len(run.methods), 1)
    rows = []
    for name, label in run.methods.items():
        own = run.turns.loc[run.turns["method"] == name, "status"]
        rows.append([label, str(len(own)), str(int((own != "ok").sum())), str(max(share - len(own), 0))])
    return TextTable("Turns", ["Method", "Recorded", "Failed", "Missing"], rows)


def fastest(run: Run) -> list[str]:
    """The fastest arm of specbench's own in one sentence; none without a speedup."""
    rows = [row for name, row in run.overall.items() if name in run.drafting and not is_peer(name) and pd.notna(row["speedup"])]
    if not rows:
        return []
    best = max(rows, key=lambda row: row["speedup"])
    low, high = best["speedup_low"], best["speedup_high"]
    holds = "too few questions for an interval"
    if pd.notna(low):
        above, below = "the interval lies above 1", "slower than vanilla"
        holds = above if low > 1 else below if high < 1 else "the interval holds 1, so it may be no faster"
    return [
        f"Fastest arm: {run.methods[best['method']]}, {tables.with_interval(best, 'speedup')} end to end over vanilla ({holds}); "
        f"MAT {number(best['mat'])}, round cost R {number(best['round_cost'])}; {best['questions']} questions."
    ]


def noise(run: Run) -> list[str]:
    """What the same arm, run twice, differs by: the end of the interval that is farther from 1."""
    lines = []
    for name, floor in run.noise.items():
        label = run.methods[name]
        if floor.known:
            farther = max(abs(floor.low - 1), abs(floor.high - 1))
            lines.append(
                f"A/A noise: {label}, run twice as two arms, differs from itself by up to {percent(farther)}, for this arm, within "
                "this process; a difference no larger than that cannot be told from noise."
            )
        else:
            lines.append(f"A/A noise: {label} ran twice ({name}{AGAIN}), but on too few questions to say what the two differ by.")
    return lines


def warnings(run: Run) -> list[str]:
    """One sentence each for what a reader must not overlook."""
    numbers, labels = run.comparison, run.methods
    lines = []
    if not run.has_vanilla:
        lines.append("No vanilla turns are recorded, so speedups, round costs and agreement cannot be formed.")
    for row in numbers[numbers["accounting_error"]].to_dict("records"):
        where = "all categories" if row["category"] == OVERALL else row["category"]
        lines.append(
            f"ACCOUNTING ERROR, {labels[row['method']]}, {where}: a round costs less than a vanilla step, or the speedup exceeds MAT, by "
            f"more than {PHYSICS_MARGIN - 1:.0%} beyond the interval, which cannot be at batch 1; its times or counts are wrong."
        )
    for row in numbers[(numbers["category"] == OVERALL) & (numbers["excluded_questions"] > 0)].to_dict("records"):
        failed, mixed = row["excluded_questions"] - row["mixed_questions"], row["mixed_questions"]
        why = [f"{failed} question(s) with a failed turn"] if failed else []
        why += [f"{mixed} question(s) whose turns ran on devices of different kinds"] if mixed else []
        lines.append(f"{labels[row['method']]}: {' and '.join(why)} left out of both arms.")
    if run.judged is not None and run.judged.explained.violations:
        lines.append(
            "The losslessness report found outputs that are not the target's; violations: "
            + ", ".join(f"{labels[arm.method]} {len(arm.violations)}" for arm in run.judged.explained.arms if arm.violations)
            + "."
        )
    lines += engines(run)
    lossy = [labels[name] for name, facts in run.manifest.methods.items() if name in labels and facts.lossless is False]
    if lossy:
        lines.append(f"Lossy, its output need not follow the target's distribution: {', '.join(lossy)}.")
    if run.manifest.settings.temperature > 0:
        lines.append(
            f"At temperature {run.manifest.settings.temperature:g} outputs are random samples: differing from vanilla is expected "
            "and says nothing about losslessness."
        )
    return lines


def engines(run: Run) -> list[str]:
    """What a reader must know of rows that another engine answered."""
    if not run.peers:
        return []
    lines = [
        f"Different engine, timed by this run's clock: {', '.join(run.peers.values())}. Speedup over specbench's vanilla holds what the "
        "engine gains and what its method does, in one; no claim and no gate is held against it."
        + (" A server's hardware is unknown here." if run.manifest.served else "")
    ]
    for name, label in run.peers.items():
        rows = run.turns[(run.turns["method"] == name) & (run.turns["status"] == "ok")]
        served = rows[rows["timing"] == "answer"]
        if len(served):
            counted = int((served["steps"] > 0).sum())
            lines.append(
                f"{label}: MAT by the server's own counters, which could be told for {counted} of its {len(served)} turns. How it batches, "
                "caches prefixes and stores weights is as it was started."
            )
        texts = served[served["output_ids"].map(len) == 0]
        if len(texts):
            lines.append(f"{label}: it sends no token ids, so its tokens are those it counts, and its answers are compared as text.")
        off = sum(REMARKED.exceeded(told, ours) for told, ours in zip(texts["tokens"], texts["text_tokens"], strict=True))
        if off:
            lines.append(f"{label}: in {off} of {len(texts)} answers its count of tokens is more than {REMARKED} off ours of the text.")
    return lines


def caveats(run: Run) -> list[str]:
    """Everything that limits what the numbers say, the warnings included."""
    manifest = run.manifest
    rebuilt = [label for name, label in run.shown.items() if manifest.methods[name].reconstruction]
    lines = [str(manifest.target["note"])] if manifest.target.get("note") else []
    lines += [
        f"{label} is ours after the paper's abstract, not its authors' code or weights: its numbers are not theirs." for label in rebuilt
    ]
    lines += [
        f"{label} keeps {manifest.methods[name].state} from question to question, warm-up included: its numbers depend on the order of the "
        "questions, and a run that is resumed or sharded starts it anew."
        for name, label in run.shown.items()
        if manifest.methods[name].state
    ]
    lines += warnings(run)
    least = run.comparison.groupby("category", sort=False)["questions"].min()
    few = [run.categories[str(category)] for category, questions in least.items() if questions < FEWEST]
    if few:
        lines.append(f"Fewer than {FEWEST} questions, where a 95 % interval covers less than that: {', '.join(few)}.")
    lines += [*outputs(run), *_apart(run), *devices(run)]
    if not run.noise:
        lines.append("No arm ran twice (specbench run --aa METHOD), so this run does not say how large a difference is noise.")
    if manifest.settings.repeats == 1:
        lines.append("One pass over the questions: intervals hold the questions' spread, not the machine's drift from run to run.")
    if manifest.resumed:
        lines.append(f"The run was resumed {len(manifest.resumed)} time(s): its arms share every question's minutes, not one process.")
    if manifest.git.get("dirty"):
        lines.append("The code had local changes that no commit records.")
    if manifest.target.get("label") != IMPORTED:
        where = "one target in each worker" if _workers(run) > 1 else "one machine, one process"
        where += ", but for rows of servers" if manifest.served else ""
        lines.append(f"Batch size 1, {where}. Trees and depths are those under “Machine and settings”, not each method's best.")
    return lines


def devices(run: Run) -> list[str]:
    """What ran beside each other, and on what, where that is more than one process on one device."""
    workers, lines = _workers(run), []
    ran = run.turns.loc[(run.turns["status"] == "ok") & (run.turns["device"] != ""), ["device", "question_id"]]
    if workers > 1 and run.manifest.settings.device == "cpu":
        lines.append(
            f"Measured by {workers} processes on CPUs; those on one machine share its memory bandwidth, so that every arm is slower than "
            "alone and a speedup holds under that load only; one process (no --workers) gives the number to quote."
        )
    elif workers > 1 or ran["device"].nunique() > 1:
        lines.append(
            f"Measured on {ran['device'].nunique()} devices by up to {workers} worker(s) at a time, a question's arms on one of them; "
            "workers on one host share its cores."
        )
    kinds = ran.groupby(ran["device"].map(device_kind))["question_id"].nunique()
    if len(kinds) > 1:
        listed = "; ".join(f"{kind}: {count} question(s)" for kind, count in kinds.items())
        lines.append(f"Devices of {len(kinds)} kinds, {listed}: no ratio is formed across two, but numbers over all questions hold both.")
    return lines


def _workers(run: Run) -> int:
    return max(each.get("workers", 1) for each in run.manifest.environments)


def outputs(run: Run) -> list[str]:
    """What the answers are like, where that flatters a method or limits what its numbers say."""
    overall, labels = {name: run.overall[name] for name in run.shown}, run.methods
    looping = [f"{labels[name]} {percent(row['repetition'])}" for name, row in overall.items() if row["repetition"] >= LOOPING]
    cut = [f"{labels[name]} {percent(row['stopped_by_length'])}" for name, row in overall.items() if row["stopped_by_length"] >= CUT]
    lines = []
    if looping:
        lines.append(
            f"Outputs repeat themselves, which is easy to draft and raises MAT and speedup; repeated 4-grams: {', '.join(looping)}."
        )
    if cut:
        limit = run.manifest.settings.max_new_tokens
        lines.append(f"Answers cut at {limit} tokens or by the target's context say nothing of longer ones; cut: {', '.join(cut)}.")
    return lines


def _apart(run: Run) -> list[str]:
    apart = [
        f"{run.methods[name]} {row['diverging_turns']} of {row['comparable_turns']}"
        for name, row in run.overall.items()
        if row["diverging_turns"] and run.manifest.methods[name].lossless and not run.manifest.settings.temperature
    ]
    judged = "by rounding or by a fault (specbench agree tells which)"
    if run.judged is not None:
        judged = "each judged under “Divergences from vanilla”"
    return [f"Greedy turns that differ from vanilla's, {judged}: {', '.join(apart)}."] if apart else []


def failures(run: Run) -> TextTable | None:
    """The failed turns with their errors, the first of them where there are many."""
    failed = run.turns[run.turns["status"] != "ok"]
    if failed.empty:
        return None
    rows = [
        [run.methods.get(row["method"], row["method"]), row["question_id"], str(row["turn"] + 1), str(row["repeat"] + 1), row["error"]]
        for row in failed.head(SHOWN_FAILURES).to_dict("records")
    ]
    shown = f", the first {len(rows)} of {len(failed)}" if len(failed) > len(rows) else ""
    return TextTable(f"Failed turns{shown}", ["Method", "Question", "Turn", "Repeat", "Error"], rows)
