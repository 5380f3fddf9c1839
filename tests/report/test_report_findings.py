"""Sentences, columns and drawn data that a hostile reader checks first."""

from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from helpers.scripted_records import turn, write_run

from specbench.analysis.frames import OVERALL
from specbench.analysis.stats import Estimate
from specbench.report import figures, findings, tables
from specbench.report.run import read


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (1.1, 1.3, "(the interval lies above 1)"),
        (0.7, 0.9, "(slower than vanilla)"),
        (0.9, 1.1, "(the interval holds 1, so it may be no faster)"),
        (np.nan, np.nan, "(too few questions for an interval)"),
    ],
)
def test_the_fastest_arm_is_called_faster_only_if_the_interval_says_so(low, high, said):
    best = {"method": "b", "speedup": 1.2, "speedup_low": low, "speedup_high": high, "mat": 2.0, "round_cost": 1.5, "questions": 9}
    run = SimpleNamespace(
        overall={"a": best | {"method": "a", "speedup": 0.5}, "b": best}, drafting={"a", "b"}, methods={"a": "A", "b": "B"}
    )
    (line,) = findings.fastest(run)
    assert line.startswith("Fastest arm: B, 1.20x")
    assert said in line


@pytest.mark.parametrize(("low", "high", "farther"), [(0.996, 1.009, "0.9 %"), (0.98, 1.009, "2.0 %")])
def test_the_noise_is_the_farther_end(low, high, farther):
    (line,) = findings.noise(SimpleNamespace(noise={"s4c": Estimate(1.003, low, high)}, methods={"s4c": "S4C"}))
    assert f"by up to {farther}, for this arm, within this process" in line


def test_as_spec_bench_is_its_arithmetic_to_the_letter(tmp_path):
    rows = [turn(m, q, accepted) for q in "ab" for m, accepted in (("vanilla", [0] * 12), ("s4c", [2, 3, 1, 2]))]
    for name, known, cell in (("with", 12, f"{0.151 / 0.091 * 13 / 12:.2f}x"), ("without", None, tables.NONE)):
        run = write_run(tmp_path / name, [replace(row, text_tokens=known) for row in rows], methods={"vanilla": "V", "s4c": "S"})
        table = tables.headline(read([run])[0].comparison, {"vanilla": "V", "s4c": "S"}, tables.SHORT, "")
        assert table.rows[1][table.headers.index("As Spec-Bench")] == cell


def test_a_column_that_says_the_same_of_every_arm_is_left_out():
    table = tables.TextTable("t", ["Method", "Questions", "Left out", "MAT"], [["A", "9", "0", "2"], ["B", "9", "1", "2"]])
    assert tables.shared(table, ["Questions", "Left out"]) == (
        tables.TextTable("t", ["Method", "Left out", "MAT"], [["A", "0", "2"], ["B", "1", "2"]]),
        {"Questions": "9"},
    )


def test_the_table_of_acceptance_has_all_three_shares():
    row = {"method": "a", "category": OVERALL, "depth": 1, "marginal": 0.5, "conditional": 0.75, "drafted": 2 / 3}
    assert tables.acceptance(pd.DataFrame([row]), {"a": "A"}).rows == [["A", "50.0 / 75.0 / 66.7"]]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The figures by name, of a run with one arm of many steps, of which few get deep, and one of few steps."""
    base = tmp_path_factory.mktemp("drawn")
    deep = [3] * 3 + [1] * (figures.MIN_STEPS - 3)
    rows = [turn("vanilla", q, [0] * 12) for q in "abcdefgh"]
    rows += [turn("many", q, deep) for q in "abcdefgh"] + [turn("few", q, [2, 2]) for q in "ab"]
    (run,) = read([write_run(base / "run", rows, methods={"vanilla": "Vanilla", "many": "Many", "few": "Few"})])
    found = {}

    def kept(figure, path):
        found[path.stem] = figure.axes[0]
        return path

    with patch.object(figures, "save", kept):
        figures.draw(run.comparison, run.split, run.acceptance, run.along, figures.Look(run.shown, run.categories, "s"), base)
    return found


def test_a_rate_over_few_steps_is_not_drawn(drawn):
    marginal, conditional = drawn["acceptance"].lines
    assert marginal.get_label() == "Many"
    assert list(marginal.get_xdata()) == [1, 2, 3]
    assert list(marginal.get_ydata()) == pytest.approx([1, 0.1, 0.1])
    assert list(conditional.get_xdata()) == [1, 2]  # 24 rounds accepted 2 drafts
    assert [line.get_label() for line in drawn["along"].lines[:-1]] == ["Many"]
    assert list(drawn["along"].lines[0].get_xdata()) == [8, 24, 40, 56]  # eight steps begin after 65 tokens


def test_lines_of_equal_round_cost(drawn):
    through_zero = [line.get_xydata() for line in drawn["round_cost"].lines if len(line.get_xdata()) == 2 and line.get_xdata()[0] == 0]
    assert [x / y for (_, (x, y)) in through_zero] == pytest.approx(figures.ROUND_COSTS)
    assert all(start[0] == start[1] == 0 for start, _ in through_zero)
