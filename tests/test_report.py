import pandas as pd
import pytest
from rich.console import Console
from scripted_records import failed, turn, write_run

from methods.core.errors import UserError
from specbench.records import FILE
from specbench.report import build

QUESTIONS = [("a", "qa"), ("b", "qa"), ("c", "rag"), ("d", "rag")]
ACCEPTED = {"vanilla": [0] * 12, "medusa": [1, 1, 2, 0, 2, 0], "s4c": [2, 3, 1, 2]}
FIGURES = ("speedup", "round_cost", "time_split", "acceptance")


def records(methods=("vanilla", "medusa", "s4c"), times=1):
    return [turn(m, q, ACCEPTED[m] * times, category=c) for q, c in QUESTIONS for m in methods]


def report(run_dirs, out):
    console = Console(record=True, width=120)
    path = build(run_dirs, out, console)
    return path.read_text(encoding="utf-8"), console.export_text()


def test_a_complete_run(tmp_path):
    run = write_run(tmp_path / "first", records(times=8))
    text, shown = report([run], tmp_path / "out")
    assert text.startswith("# Spec-Bench report\n\n## Run first\n\nComplete: all 12 turns were answered.")
    folder = tmp_path / "out" / "first"
    for name in FIGURES:
        assert f"](first/{name}.png)" in text
        assert (folder / f"{name}.png").stat().st_size > 10_000
        assert (folder / f"{name}.svg").is_file()
    for name in ("comparison", "time_split", "acceptance", "turns"):
        assert len(pd.read_csv(folder / f"{name}.csv")) == len(pd.read_parquet(folder / f"{name}.parquet")) > 0
    assert "| Medusa | 1.32x [1.32, 1.32] |" in text
    assert "1.32x [1.32, 1.32]" in shown
    assert "verified" not in text.lower()


def test_figures_repeat_byte_for_byte(tmp_path):
    run = write_run(tmp_path / "first", records(times=8))
    for out in ("one", "two"):
        report([run], tmp_path / out)
    for name in FIGURES:
        one, two = (tmp_path / out / "first" / f"{name}.svg" for out in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()


def test_a_cost_matched_target_is_the_first_sentence(tmp_path):
    run = write_run(tmp_path / "first", records(), target={"label": "cost-matched"})
    text, shown = report([run], tmp_path / "out")
    sentence = "Cost-matched target tiny-160m: wall-clock and round costs are real for that shape on this device"
    assert text.split("\n\n")[1].startswith(sentence)
    assert shown.startswith(sentence)


def test_s4c_is_always_a_reconstruction_and_lossy_methods_are_flagged(tmp_path):
    text, shown = report([write_run(tmp_path / "first", records(), lossy=("medusa",))], tmp_path / "out")
    assert text.count("| S4C |") == 0
    assert "| S4C (reconstruction) |" in text
    assert "| Medusa (lossy: typical) |" in text
    assert "Lossy, its output need not follow" in shown


def test_an_empty_run_says_so(tmp_path):
    text, shown = report([write_run(tmp_path / "first", [], status="interrupted")], tmp_path / "out")
    assert "Empty: none of the 12 turns is recorded" in text
    assert "Empty" in shown
    assert "| S4C (reconstruction) | 0 | 0 | 4 |" in text
    assert "### Conditions" in text
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
    assert "cut off while it was written" in text
    assert "| Vanilla | 3 | 0 | 1 |" in text
    assert "odd \\| error of \\`two\\` lines |" in text
    assert "S4C (reconstruction): 1 question(s) with a failed turn left out of both arms." in shown


def test_without_vanilla_speedups_cannot_be_formed(tmp_path):
    run = write_run(tmp_path / "first", records(["medusa"], times=8))
    text, shown = report([run], tmp_path / "out")
    assert "speedups, round costs and agreement cannot be formed" in text
    assert "cannot be formed" in shown
    assert "speedup.png" not in text
    assert "time_split.png" in text


def test_an_accounting_error_is_shouted(tmp_path):
    rows = [turn(m, q, ACCEPTED[m], category=c, step_s=(0, 0.001 if m == "s4c" else 0.01, 0)) for q, c in QUESTIONS for m in ACCEPTED]
    _, shown = report([write_run(tmp_path / "first", rows)], tmp_path / "out")
    assert "ACCOUNTING ERROR, S4C (reconstruction), all categories" in shown
    assert "ACCOUNTING ERROR, Medusa" not in shown


def test_vanilla_alone_and_at_a_temperature(tmp_path):
    run = write_run(tmp_path / "first", records(["vanilla"]), methods={"vanilla": "Vanilla"}, settings={"temperature": 0.7})
    text, _ = report([run], tmp_path / "out")
    assert "No method drafted anything." in text
    assert "At temperature 0.7 outputs are random samples" in text


def test_runs_of_one_name_keep_their_files_apart(tmp_path):
    runs = [write_run(tmp_path / place / "same", records()) for place in ("x", "y")]
    text, _ = report(runs, tmp_path / "out")
    assert "](same/speedup.png)" in text
    assert "](same-2/speedup.png)" in text


def test_what_cannot_be_read_or_written_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"holds no manifest\.json"):
        report([tmp_path], tmp_path / "out")
    run = write_run(tmp_path / "first", records())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write the report"):
        report([run], tmp_path / "file")
