"""The report as a whole: sections, figures, warnings, and errors."""

import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from unittest.mock import patch

import pandas as pd
import pytest
from helpers.scripted_records import failed, turn, write_run

from methods.core.errors import UserError
from specbench.analysis.stats import FEWEST
from specbench.report import figures, findings, verdict
from specbench.report.canvas import FigureContext
from specbench.report.compose import build
from specbench.report.run import load_runs
from specbench.store.manifest import Start
from specbench.store.records import FILE
from specbench.util.environment import Environment, GitState
from specbench.util.terminal import Console

QUESTIONS = [("a", "qa"), ("b", "qa"), ("c", "rag"), ("d", "rag")]
ACCEPTED = {"vanilla": [0] * 12, "medusa": [1, 1, 2, 0, 2, 0], "s4c": [2, 3, 1, 2], "s4c#2": [2, 3, 1, 2]}
TWICE = {"vanilla": "Vanilla", "medusa": "Medusa", "s4c": "S4C", "s4c#2": "S4C, again"}
FIGURES = ("speedup", "step_cost", "time_split", "acceptance", "along")
SECTIONS = [
    "Verdict",
    "All categories",
    "By category",
    "Speedup by definition",
    "Where the time goes",
    "Acceptance by depth and along the answer",
    "Divergences from vanilla",
    "The verdict in detail",
    "Machine and settings",
    "Definitions",
    "Caveats",
]


def records(methods=("vanilla", "medusa", "s4c"), times=1):
    return [turn(m, q, ACCEPTED[m] * times, category=c) for q, c in QUESTIONS for m in methods]


def saved_empty(figure, path):
    for kind in (".png", ".svg"):
        path.with_suffix(kind).write_bytes(b"")
    return path


def report(run_dirs, out, drawn=False):
    """Return the Markdown and the terminal's text; figures are empty files unless ``drawn``, because drawing is slow."""
    console = Console(record=True, width=120)
    with nullcontext() if drawn else patch("specbench.report.figures.save", saved_empty):
        path = build(run_dirs, out, console)
    assert path == out / "report.html"
    return path.with_suffix(".md").read_text(encoding="utf-8"), console.export_text()


def section(text, name):
    return text.split(f"### {name}\n")[1].split("\n### ")[0]


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """Return a whole run's directory, its report's folder, the Markdown and the terminal's text."""
    base = tmp_path_factory.mktemp("complete")
    run = write_run(base / "first", records(times=8))
    return run, base / "out" / "first", *report([run], base / "out", drawn=True)


@pytest.mark.figures
def test_a_complete_run(complete):
    _, folder, text, shown = complete
    assert text.startswith("# specbench report\n\n## Run first\n\nComplete: all 12 turns were answered.\n\n### Verdict\n\n")
    assert [line[4:] for line in text.splitlines() if line.startswith("### ")] == SECTIONS
    for name in FIGURES:
        assert f"](first/{name}.png)" in text
        assert (folder / f"{name}.png").stat().st_size > 10_000
        assert (folder / f"{name}.svg").is_file()
    for name in ("comparison", "time_split", "acceptance", "along_the_answer", "turns"):
        assert len(pd.read_csv(folder / f"{name}.csv")) == len(pd.read_parquet(folder / f"{name}.parquet")) > 0
    assert "| Medusa | 1.32x [1.32, 1.32] |" in text
    assert "1.32x [1.32, 1.32]" in shown
    assert "verified" not in text.lower()


def test_the_verdict_comes_first_and_its_details_later(complete, tmp_path):
    text = complete[2]
    first = section(text, "Verdict").strip()
    assert first.startswith("Not comparable, under different conditions: S4C (reconstruction) has no measured speedup")
    assert "Conditions that differ: suite" in first
    assert "Fastest arm: S4C (reconstruction), 1.94x [1.94, 1.94] end to end over vanilla (too few questions to call it " in first
    assert "| suite | spec-bench" in section(text, "The verdict in detail")
    names = {"vanilla": "vanilla", "medusa": "eagle3", "s4c": "confu"}
    other = [replace(record, arm=names[record.arm]) for record in records(times=8)]
    run = write_run(tmp_path / "second", other, methods={"vanilla": "Vanilla", "eagle3": "EAGLE-3", "confu": "ConFu"})
    text, _ = report([run], tmp_path / "out")
    first = section(text, "Verdict").strip()
    assert first.startswith("S4C's claim is not judged, because the run does not have both s4c and vanilla.")
    assert "| confu | ConFu over EAGLE-3 | 1.08x-1.11x | 1.47x [1.47, 1.47] | inconclusive |" in first
    assert "The verdict in detail" not in text


@pytest.mark.figures
def test_figures_repeat_byte_for_byte(complete, tmp_path):
    (run,) = load_runs([complete[0]])
    context = FigureContext(run.shown, run.categories, findings.subtitle(run), verdict.claim_shown(run))
    figures.draw(run.comparison, run.split, run.acceptance, run.along, context, tmp_path)
    for name in (f"{figure}.{kind}" for figure in FIGURES for kind in ("svg", "png")):
        assert (tmp_path / name).read_bytes() == (complete[1] / name).read_bytes()


def test_a_cost_matched_target_is_the_first_sentence(tmp_path):
    run = write_run(tmp_path / "first", records(), target={"label": "cost-matched"})
    text, shown = report([run], tmp_path / "out")
    sentence = "Cost-matched target tiny-160m: wall-clock and step costs are real for that shape on this device"
    assert text.split("\n\n")[1].startswith(sentence)
    assert text.count(sentence) == 1
    assert shown.startswith(sentence)


def test_s4c_is_always_a_reconstruction_and_lossy_methods_are_flagged(tmp_path):
    text, shown = report([write_run(tmp_path / "first", records(), lossy=("medusa",))], tmp_path / "out")
    assert text.count("| S4C |") == 0
    assert "| S4C (reconstruction) |" in text
    assert "| Medusa (lossy: typical) |" in text
    assert "Lossy arms, whose output need not follow" in shown
    assert "Lossy arms, whose output need not follow" in section(text, "Caveats")
    assert "S4C (reconstruction) is a reconstruction from the paper's abstract" in section(text, "Caveats")


def test_a_repeated_arm_gives_the_noise_floor(tmp_path, monkeypatch):
    monkeypatch.setattr(findings, "FEWEST", 3)
    rows = [record for record in records(tuple(TWICE), times=8) if record.question_id != "d"]
    text, shown = report([write_run(tmp_path / "first", rows, methods=TWICE)], tmp_path / "out")
    line = "A/A noise: S4C (reconstruction) ran twice, and the two arms differ by up to 0.0 %."
    assert line in section(text, "All categories")
    assert line in " ".join(shown.split())
    assert "| S4C, again | 1.94x" in section(text, "All categories")
    for name in ("By category", "Where the time goes", "Speedup by definition"):
        assert "again" not in section(text, name)
    assert "again" not in (tmp_path / "out" / "first" / "along_the_answer.csv").read_text()
    assert "No arm ran twice" not in text
    assert "No arm ran twice" in report([write_run(tmp_path / "second", records())], tmp_path / "out")[0]


def test_caveats_name_what_limits_the_numbers(tmp_path):
    loops = [turn(m, q, ACCEPTED[m], category=c, ids=[5] * 13) for q, c in QUESTIONS for m in ("vanilla", "s4c")]
    loops[1] = turn("s4c", "a", ACCEPTED["s4c"], ids=[5, 6] + [5] * 11)
    resumed = [Start("later", Environment(), GitState(), [])]
    run = write_run(
        tmp_path / "first", loops, methods={"vanilla": "Vanilla", "s4c": "S4C"}, resumed=resumed, target={"note": "small inside"}
    )
    text, shown = report([run], tmp_path / "out")
    caveats, first = section(text, "Caveats"), section(text, "Verdict")
    for part in ("**Note.** Outputs repeat themselves", "**Note.** Answers were cut at 32 tokens"):
        assert first.index(part) < first.index("Fastest arm")
        assert part.removeprefix("**Note.** ") in shown
    for part in (
        "small inside",
        f"Categories with fewer than {FEWEST} questions, where a 95 % interval covers less than 95 %: QA, RAG, Overall.",
        "Share of repeated 4-grams: Vanilla 90.0 %",
        "Share of turns: Vanilla 100.0 %",
        "vanilla's: S4C (reconstruction) 1 of 4. The cause may be rounding or a bug (specbench agree tells which).",
        "resumed 1 time(s)",
        "local changes",
    ):
        assert part in caveats


def test_the_same_arm_under_every_definition(complete):
    rows = section(complete[2], "Speedup by definition")
    assert "| Method | speedup | speedup_specbench | speedup_specbench_legacy | speedup_micro | latency_ratio |" in rows
    assert "| Medusa | 1.32x [1.32, 1.32] | 1.32x [1.32, 1.32] | — |" in rows


def test_an_empty_run_says_so(tmp_path):
    text, shown = report([write_run(tmp_path / "first", [], status="interrupted")], tmp_path / "out")
    assert "Empty: none of the 12 turns is recorded" in text
    assert "Empty" in shown
    assert "| S4C (reconstruction) | 0 | 0 | 4 |" in text
    assert "### Machine and settings" in text
    assert not list((tmp_path / "out" / "first").iterdir())


def test_a_run_of_failures_only_lists_them(tmp_path):
    text, _ = report([write_run(tmp_path / "first", [failed("medusa", "a")])], tmp_path / "out")
    assert "Partial: 1 of 12 turns recorded, 1 of them failed." in text
    assert "| Medusa | a | 1 | 1 | out of memory |" in text


def test_a_partial_run_says_what_is_missing(tmp_path):
    rows = [*records()[:-1], failed("s4c", "d", category="rag", error="odd | error\nof `two` lines")]
    run = write_run(tmp_path / "first", rows[:8] + rows[-1:], status="interrupted")
    with (run / FILE).open("a") as file:
        file.write('{"torn')
    text, shown = report([run], tmp_path / "out")
    assert "Partial: 9 of 12 turns recorded, 1 of them failed." in text
    assert "“interrupted”" in text
    assert "the run was killed while it was written" in text
    assert "| Vanilla | 3 | 0 | 1 |" in text
    assert "odd \\| error of \\`two\\` lines |" in text
    assert "S4C (reconstruction): 1 question(s) with a failed turn left out of both arms." in shown


def test_without_vanilla_speedups_cannot_be_formed(tmp_path):
    run = write_run(tmp_path / "first", records(["medusa"], times=8))
    text, shown = report([run], tmp_path / "out")
    assert "there are no speedups, step costs, or comparisons with vanilla's output" in text
    assert "No vanilla turns are recorded" in shown
    assert "speedup.png" not in text
    assert "time_split.png" in text


def test_an_accounting_error_is_reported(tmp_path):
    rows = [
        turn(m, q, ACCEPTED[m], category=c, step_s=(0, 0.001 if m == "s4c" else 0.01, 0))
        for q, c in QUESTIONS
        for m in ("vanilla", "medusa", "s4c")
    ]
    _, shown = report([write_run(tmp_path / "first", rows)], tmp_path / "out")
    assert "ACCOUNTING ERROR, S4C (reconstruction), all categories" in shown
    assert "ACCOUNTING ERROR, Medusa" not in shown


def test_vanilla_alone_and_at_a_temperature(tmp_path):
    run = write_run(tmp_path / "first", records(["vanilla"]), methods={"vanilla": "Vanilla"}, settings={"temperature": 0.7})
    text, _ = report([run], tmp_path / "out")
    assert "No method drafted anything." in text
    assert "Outputs are random samples at temperature 0.7" in text


def test_several_runs_are_compared_first_and_never_divided(tmp_path):
    one = write_run(tmp_path / "x" / "same", records())
    changes = {"settings": {"dtype": "fp32"}, "environment": {"python": "3.11", "torch": "2.13", "cpu": "Another CPU", "threads": 2}}
    two = write_run(tmp_path / "y" / "same", records(), **changes)
    three = write_run(tmp_path / "z" / "same-2", [])
    text, _ = report([one, two, three], tmp_path / "out")
    beside = text.split("## The runs beside each other\n")[1].split("\n## ")[0]
    assert "| same | tiny-160m | cpu (A CPU) | bf16 | mini | Medusa | 1.25x" in beside
    assert "| same-2 | tiny-160m | cpu (Another CPU) | fp32 | mini | Medusa | 1.25x" in beside
    assert "| same-2-2 | tiny-160m | cpu (A CPU) | bf16 | mini | nothing answered |" in beside
    assert "same-2 differs from same in:\n\n- dtype bf16 -> fp32\n- cpu A CPU -> Another CPU\n" in beside
    assert "same-2-2 differs from same in:\n\n- nothing that is recorded" in beside
    assert "are not divided by one another" in beside
    assert text.index("beside each other") < text.index("## Run same")
    assert (tmp_path / "out" / "same" / "turns.csv").is_file()
    assert (tmp_path / "out" / "same-2" / "turns.csv").is_file()


def test_unreadable_runs_and_unwritable_folders_are_one_line(tmp_path):
    with pytest.raises(UserError, match=r"holds no manifest\.json"):
        report([tmp_path], tmp_path / "out")
    run = write_run(tmp_path / "first", records())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to .*report\.html"):
        report([run], tmp_path / "file")


def test_a_narrow_terminal_loses_no_digit(complete, tmp_path):
    console = Console(record=True, width=60)
    with patch("specbench.report.figures.save", saved_empty):
        build([complete[0]], tmp_path / "out", console)
    rows = [line for line in console.export_text().splitlines() if line.startswith("Medusa")]
    assert [row.split()[-1] for row in rows] == ["2.00", "129.2", "1.32"]  # MAT, tokens per second, and the speedup over all categories


def test_a_report_imports_no_torch():
    """Loading torch takes seconds, and a report only reads files."""
    script = "import sys, specbench.cli.report, specbench.report.compose; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"
