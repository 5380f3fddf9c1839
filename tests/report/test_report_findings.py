"""Sentences, columns, and drawn data of the report."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from helpers.scripted_records import turn, write_run

from specbench.analysis.frames import OVERALL
from specbench.analysis.stats import FEWEST, Estimate
from specbench.report import figures, findings, tables, verdict
from specbench.report.canvas import FigureContext
from specbench.report.compose import build
from specbench.report.run import load_runs
from specbench.util.terminal import Console


def row(arm: str, **changes: Any) -> dict[str, Any]:
    """A row of the comparison table over all categories."""
    usual = {"speedup": 0.5, "speedup_low": 0.4, "speedup_high": 0.6, "mat": 2.0, "step_cost": 1.5, "questions": FEWEST}
    return {"arm": arm, **usual, **changes}


def ranked(*rows: dict[str, Any], **changes: Any) -> Any:
    """A run with these rows."""
    arms = {row["arm"]: row["arm"].upper() for row in rows}
    return SimpleNamespace(overall={row["arm"]: row for row in rows}, drafting=arms, other_engines={}, arms=arms, **changes)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (1.1, 1.3, "(the interval lies above 1)"),
        (0.7, 0.9, "(slower than vanilla)"),
        (0.9, 1.1, "(the interval contains 1, so it may be no faster)"),
        (np.nan, np.nan, "(too few questions to call it faster or slower)"),
    ],
)
def test_the_fastest_arm_is_called_faster_only_if_the_interval_says_so(low, high, said):
    best = row("b", speedup=1.2, speedup_low=low, speedup_high=high)
    (line,) = findings.fastest(ranked(row("a"), best))
    assert line.startswith("Fastest arm: B, 1.20x")
    assert said in line


def test_few_questions_make_no_sentence_on_an_interval():
    few, enough = (row("a", questions=count, accounting_error=True) for count in (FEWEST - 1, FEWEST))
    assert "0.50x [0.40, 0.60] end to end over vanilla (too few questions to call it faster or slower)" in findings.fastest(ranked(few))[0]
    assert "(slower than vanilla)" in findings.fastest(ranked(enough))[0]

    for best, noise in ((few, "on too few questions to estimate the noise"), (enough, "differ by up to 20.0 %")):
        (line,) = findings.noise(ranked(best, noise={"a": Estimate(1.0, 0.8, 1.1)}))
        assert noise in line


@pytest.mark.parametrize(
    ("count", "said"), [(FEWEST - 1, "With fewer than 30 questions that may be chance"), (FEWEST, "so times or counts are wrong")]
)
def test_accounting_error_on_few_questions_may_be_chance(tmp_path, count, said):
    rows = [turn(arm, str(i), [0] * 4, step_s=(0, s, 0)) for i in range(count) for arm, s in (("vanilla", 0.01), ("s4c", 0.001))]
    (run,) = load_runs(
        [write_run(tmp_path / "run", rows, methods={"vanilla": "Vanilla", "s4c": "S4C"}, suite={"categories": {"qa": count}})]
    )
    lines = [line for line in findings.warnings(run) if line.startswith("ACCOUNTING ERROR, S4C (reconstruction), all categories: ")]
    assert len(lines) == 1
    assert said in lines[0]


def test_an_arm_without_steps_is_in_no_ranking(tmp_path):
    ended = [turn(arm, q, [] if arm == "pld" else [0] * 4) for q in "ab" for arm in ("vanilla", "pld")]
    (run,) = load_runs([write_run(tmp_path / "run", ended, methods={"vanilla": "Vanilla", "pld": "Prompt lookup"})])
    assert run.overall["pld"]["speedup"] > 0
    assert findings.fastest(run) == []
    (line,) = findings.fastest(ranked(row("a"), row("b", speedup=9.0, mat=np.nan)))
    assert line.startswith("Fastest arm: A, 0.50x")


@pytest.mark.parametrize(("low", "high", "farther"), [(0.996, 1.009, "0.9 %"), (0.98, 1.009, "2.0 %")])
def test_the_noise_is_the_farther_end(low, high, farther):
    (line,) = findings.noise(ranked(row("s4c"), noise={"s4c": Estimate(1.003, low, high)}))
    assert f"differ by up to {farther}. " in line


def test_the_column_as_spec_bench_uses_that_benchmarks_arithmetic(tmp_path):
    rows = [turn(m, q, accepted) for q in "ab" for m, accepted in (("vanilla", [0] * 12), ("s4c", [2, 3, 1, 2]))]
    for name, known, cell in (("with", 12, f"{0.151 / 0.091 * 13 / 12:.2f}x"), ("without", None, tables.NONE)):
        run = write_run(tmp_path / name, [replace(row, text_tokens=known) for row in rows], methods={"vanilla": "V", "s4c": "S"})
        table = tables.headline(load_runs([run])[0].comparison, {"vanilla": "V", "s4c": "S"}, tables.SHORT, "")
        assert table.rows[1][table.headers.index("As Spec-Bench")] == cell


def test_columns_that_are_equal_for_all_arms_are_dropped():
    table = tables.TextTable("t", ["Method", "Questions", "Left out", "MAT"], [["A", "9", "0", "2"], ["B", "9", "1", "2"]])
    assert tables.drop_constant_columns(table, ["Questions", "Left out"]) == (
        tables.TextTable("t", ["Method", "Left out", "MAT"], [["A", "0", "2"], ["B", "1", "2"]]),
        {"Questions": "9"},
    )


def test_the_table_of_acceptance_has_all_three_shares():
    row = {"arm": "a", "category": OVERALL, "depth": 1, "marginal": 0.5, "conditional": 0.75, "drafted": 2 / 3}
    assert tables.acceptance(pd.DataFrame([row]), {"a": "A"}).rows == [["A", "50.0 / 75.0 / 66.7"]]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Draw a run with one arm of many steps, few of them deep, and one of few steps; return the figures by name."""
    base = tmp_path_factory.mktemp("drawn")
    deep = [3] * 3 + [1] * (figures.MIN_STEPS - 3)
    rows = [turn("vanilla", q, [0] * 12) for q in "abcdefgh"]
    rows += [turn("many", q, deep) for q in "abcdefgh"] + [turn("few", q, [2, 2]) for q in "ab"]
    (run,) = load_runs([write_run(base / "run", rows, methods={"vanilla": "Vanilla", "many": "Many", "few": "Few"})])
    found = {}

    def kept(figure, path):
        found[path.stem] = figure.axes[0]
        return path

    with patch.object(figures, "save", kept):
        figures.draw(run.comparison, run.split, run.acceptance, run.along, FigureContext(run.shown, run.categories, "s"), base)
    return found


def test_a_rate_over_few_steps_is_not_drawn(drawn):
    marginal, conditional = drawn["acceptance"].lines
    assert marginal.get_label() == "Many"
    assert list(marginal.get_xdata()) == [1, 2, 3]
    assert list(marginal.get_ydata()) == pytest.approx([1, 0.1, 0.1])
    assert list(conditional.get_xdata()) == [1, 2]  # 24 steps accepted 2 drafts
    assert [line.get_label() for line in drawn["along"].lines[:-1]] == ["Many"]
    assert list(drawn["along"].lines[0].get_xdata()) == [8, 24, 40, 56]  # eight steps begin after 65 tokens


def test_lines_of_equal_step_cost(drawn):
    through_zero = [line.get_xydata() for line in drawn["step_cost"].lines if len(line.get_xdata()) == 2 and line.get_xdata()[0] == 0]
    assert [x / y for (_, (x, y)) in through_zero] == pytest.approx(figures.STEP_COSTS)
    assert all(start[0] == start[1] == 0 for start, _ in through_zero)


LONG = {
    "vanilla": "Vanilla",
    "s4c:nodes=12,depth=3,width=4": "S4C nodes=12,depth=3,width=4 (reconstruction)",
    "hf-assisted": "generate, assisted (different engine: transformers generate 5.23.0 with a draft model)",
    "eagle2:nodes=59,depth=6,width=10,backend=static": "EAGLE-2 nodes=59,depth=6,width=10,backend=static",
}


@pytest.fixture
def long_run(tmp_path):
    """Write a run whose arms have long names, on a target in a local folder."""
    folder = "/home/someone/models/my-target"
    rows = [turn(name, q, [0] * 90 if name == "vanilla" else [2] * 30) for q in "abcdefgh" for name in LONG]
    plan = {"units_total": len(rows), "suite": {"categories": {"qa": 8}}, "argv": ["run", "--target", folder]}
    target = {"name": folder, "note": "", "label": "cost-matched"}
    return write_run(tmp_path / "run", rows, methods=LONG, target=target, settings={"target": folder}, **plan)


def test_a_legend_of_long_names_lies_inside_its_figure(long_run, tmp_path):
    found = {}

    def kept(figure, path):
        figure.canvas.draw()
        found[path.stem] = figure
        path.with_suffix(".svg").write_text("")
        return path

    with patch.object(figures, "save", kept):
        build([long_run], tmp_path / "out", Console(quiet=True))
    assert set(found) == {"speedup", "step_cost", "time_split", "acceptance", "along"}
    for name, figure in found.items():
        (legend,) = figure.legends
        box, whole = legend.get_window_extent(), figure.bbox
        assert 0 <= box.x0 < box.x1 <= whole.width, name
        assert 0 <= box.y0 < box.y1 <= figure.axes[0].get_window_extent().y0, name


@pytest.mark.parametrize(
    ("arms", "drawn"),
    [(["s4c"], True), (["s4c:nodes=12,depth=3,width=4"], False), (["eagle2:nodes=59,depth=6,width=10,backend=static"], False)],
)
def test_the_claimed_range_is_drawn_only_beside_the_arm_that_is_judged(tmp_path, arms, drawn):
    names = ["vanilla", *arms]
    rows = [turn(name, q, [0] * 90 if name == "vanilla" else [2] * 30) for q in "abcd" for name in names]
    (run,) = load_runs([write_run(tmp_path / "run", rows, methods={name: LONG.get(name, "S4C") for name in names})])
    assert (verdict.claim_shown(run) is not None) == drawn
    labels: list[str] = []
    with patch.object(figures, "save", lambda figure, path: labels.extend(text.get_text() for text in figure.legends[0].texts)):
        context = FigureContext(run.shown, run.categories, "s", verdict.claim_shown(run))
        figures.draw(run.comparison, run.split, run.acceptance, run.along, context, tmp_path)
    assert any("claim" in label for label in labels) == drawn


def test_a_local_target_is_shown_by_the_name_of_its_folder(long_run, tmp_path):
    console = Console(record=True, width=200)
    page = build([long_run], tmp_path / "out", console)
    shown = [
        console.export_text(),
        *(file.read_text() for file in (tmp_path / "out").rglob("*.*") if file.suffix in (".md", ".html", ".tex", ".svg")),
    ]
    assert all("my-target" in text for text in shown[:2])
    assert not any("someone" in text for text in shown)
    assert "run --target my-target" in page.with_suffix(".md").read_text()
