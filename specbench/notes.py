"""What the report says in words: labels, what is missing, warnings, and under which conditions a run was made."""

import json
from collections.abc import Mapping, Sequence

import pandas as pd

from specbench.manifest import RunManifest
from specbench.metrics import PHYSICS_MARGIN
from specbench.tables import TextTable, escape
from specbench.turns import OVERALL

COST_MATCHED = "cost-matched"
SHOWN_FAILURES = 20
READING = """\
- **Speedup**: vanilla's end-to-end time per output token over the method's, question by question on the same turns,
  geometric mean, with a 95 % bootstrap interval stratified by category. **As Spec-Bench** is that
  benchmark's arithmetic (ratio of the means over questions of tokens/s), only to compare with published tables. **Decode speedup**
  counts the time of the steps alone.
- **MAT**: emitted tokens per step, the target's own next token included, so vanilla has 1. **R** = MAT / decode speedup
  is what a round costs in vanilla steps.
- **Tokens/s**: mean over questions, end to end; *decode*: all emitted tokens over all step time.
- **Same as vanilla**: share of the turns with an equal prompt whose output ids are identical; *first at*: mean index of
  the first differing token among the others. **Repeated 4-grams**: mean share per turn of 4-grams seen earlier in the same
  output; loops are easy to draft and inflate MAT. **Cut by length**: turns that ended at the token limit.
- **Peak MiB**: the allocator's on CUDA, the process' on a CPU, with every arm's weights loaded. **Questions**: those
  compared; **left out**: those with a failed turn in either arm, left out of both."""


def cost_matched(manifests: Sequence[RunManifest]) -> list[str]:
    """The sentence that must come first when any run's target is a cost-matched one."""
    names = dict.fromkeys(str(m.target.get("name", m.settings.target)) for m in manifests if m.target.get("label") == COST_MATCHED)
    if not names:
        return []
    return [
        f"Cost-matched target {', '.join(names)}: wall-clock and round costs are real for that shape on this device, "
        "acceptance is that of the small embedded model."
    ]


def subtitle(manifest: RunManifest, turns: pd.DataFrame) -> str:
    """The figures' second line: target and label, device, dtype, suite and the number of answered questions."""
    asked, label = manifest.settings, manifest.target.get("label")
    count = turns.loc[turns["status"] == "ok", "question_id"].nunique()
    target = f"{manifest.target.get('name', asked.target)}{f' ({label})' if label else ''}"
    return f"target {target} · {_processor(manifest)} · {asked.dtype} · suite {asked.suite} · n = {count} questions"


def _processor(manifest: RunManifest) -> str:
    chip = manifest.environment.get("gpu") or manifest.environment.get("cpu")
    return f"{manifest.settings.device}{f' ({chip})' if chip else ''}"


def state(manifest: RunManifest, turns: pd.DataFrame, torn: bool, methods: Mapping[str, str]) -> list[str]:
    """Whether the run is whole, and what is missing or failed otherwise; the first item is one line."""
    done, failed, total = len(turns), int((turns["status"] != "ok").sum()), manifest.units_total
    if done >= total and not failed and not torn:
        return [f"Complete: all {total} turns were answered."]
    lines = [f"{'Complete' if done >= total else 'Partial'}: {done} of {total} turns recorded, {failed} of them failed."]
    if not done:
        lines[0] = f"Empty: none of the {total} turns is recorded, so there is nothing to compare."
    if done < total:
        lines.append(f"The run's status is “{manifest.status}”; `specbench resume` on its directory does what is missing.")
    if torn:
        lines.append("The last line of the records was cut off while it was written and is left out.")
    share = total // max(len(methods), 1)
    rows = []
    for name, label in methods.items():
        own = turns.loc[turns["method"] == name, "status"]
        rows.append([label, str(len(own)), str(int((own != "ok").sum())), str(max(share - len(own), 0))])
    return [*lines, TextTable("Turns", ["Method", "Recorded", "Failed", "Missing"], rows).markdown()]


def warnings(manifest: RunManifest, comparison: pd.DataFrame, methods: Mapping[str, str], has_vanilla: bool) -> list[str]:
    """One sentence each for what a reader must not overlook."""
    lines = []
    if not has_vanilla:
        lines.append("No vanilla turns are recorded, so speedups, round costs and agreement cannot be formed.")
    for row in comparison[comparison["accounting_error"]].to_dict("records"):
        where = "all categories" if row["category"] == OVERALL else row["category"]
        lines.append(
            f"ACCOUNTING ERROR, {methods[row['method']]}, {where}: the decode speedup exceeds MAT by more than "
            f"{PHYSICS_MARGIN - 1:.0%} beyond its interval, which no round at batch 1 can do; its times or counts are wrong."
        )
    for row in comparison[(comparison["category"] == OVERALL) & (comparison["excluded_questions"] > 0)].to_dict("records"):
        lines.append(f"{methods[row['method']]}: {row['excluded_questions']} question(s) with a failed turn left out of both arms.")
    lossy = [methods[name] for name, facts in manifest.methods.items() if name in methods and not facts.lossless]
    if lossy:
        lines.append(f"Lossy, its output need not follow the target's distribution: {', '.join(lossy)}.")
    if manifest.settings.temperature > 0:
        lines.append(
            f"At temperature {manifest.settings.temperature:g} outputs are random samples: differing from vanilla is expected "
            "and says nothing about losslessness."
        )
    return lines


def failures(turns: pd.DataFrame, methods: Mapping[str, str]) -> list[str]:
    """The failed turns with their errors, the first of them where there are many."""
    failed = turns[turns["status"] != "ok"]
    if failed.empty:
        return []
    rows = [
        [methods.get(row["method"], row["method"]), row["question_id"], str(row["turn"] + 1), str(row["repeat"] + 1), row["error"]]
        for row in failed.head(SHOWN_FAILURES).to_dict("records")
    ]
    table = TextTable("Failed turns", ["Method", "Question", "Turn", "Repeat", "Error"], rows).markdown()
    rest = len(failed) - len(rows)
    return ["### Failed turns", table, *([f"… and {rest} more."] if rest else [])]


def conditions(manifest: RunManifest) -> str:
    """How the run was made, as a Markdown list."""
    asked, target, place = manifest.settings, manifest.target, manifest.environment
    choice = f", {asked.limit} a category" if asked.limit else ""
    facts = {
        "Target": f"{target.get('name', asked.target)}, {target.get('parameters', 0):,} parameters. {target.get('note', '')}",
        "Weights": f"sha256 {target.get('weights_sha256')}",
        "Suite": f"{asked.suite}{choice}, sha256 {asked.suite_sha256}; questions: "
        + ", ".join(f"{name} {count}" for name, count in manifest.categories.items()),
        "Sampling": f"temperature {asked.temperature:g}, at most {asked.max_new_tokens} tokens a turn, seed {asked.seed}, "
        f"{asked.repeats} repeat(s), second turns see the {'first answer of vanilla' if asked.turns == 'shared' else 'own first answer'}",
        "Arithmetic": f"{asked.dtype} on {_processor(manifest)}, attention {asked.attention}, {place.get('threads')} threads",
        "Versions": ", ".join(f"{name} {place[name]}" for name in ("python", "torch", "transformers", "driver") if place.get(name)),
        "Code": f"{manifest.git.get('sha', 'no checkout')}{', with local changes' if manifest.git.get('dirty') else ''}",
        "Begun": manifest.created + (f", resumed {len(manifest.resumed)} time(s)" if manifest.resumed else ""),
    }
    methods = {
        f"{name}": f"{json.dumps(one.config)}, acceptance {one.acceptance}{f', weights {one.weights_sha256}' if one.weights_sha256 else ''}"
        for name, one in manifest.methods.items()
    }
    return "\n".join(f"- **{name}**: {escape(text.strip())}" for name, text in (facts | methods).items())
