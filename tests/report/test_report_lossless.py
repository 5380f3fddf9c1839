"""The losslessness report as a part of the report."""

import json

import pytest
from helpers.scripted_records import turn, write_run

from methods.core.errors import UserError
from specbench.lossless.differences import ArmAgreement, Divergence, LosslessReport
from specbench.lossless.text import as_fields
from specbench.report import samples
from specbench.report.compose import build
from specbench.report.lossless import FILE
from specbench.util.terminal import Console

TWO = {"vanilla": "Vanilla", "s4c": "S4C"}
TIE = Divergence("s4c", "a", 0, 0, 2, (3, 9), ("c", "x"), "ab", ("d", "y"), 0.01, 0.02, 0.05)
VIOLATION = Divergence("s4c", "b", 0, 0, 3, (4, None), ("d", ""), "abc", ("e", ""), 2.0, float("inf"), 0.05)
NEAR = Divergence("s4c", "b", 0, 0, 3, (4, None), ("d", ""), "abc", ("e", ""), 0.01, 0.02, 0.05)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Write a run of two questions: s4c differs from vanilla at the third token of one, and ends early in the other."""
    monkeypatch.setattr(samples, "target_decoder", lambda manifest: None)
    monkeypatch.setattr("specbench.report.figures.draw", lambda *args: {})
    rows = [turn("vanilla", q, [0] * 4, ids=[1, 2, 3, 4, 5]) for q in "ab"]
    rows += [turn("s4c", "a", [1, 1], ids=[1, 2, 9, 4, 5]), turn("s4c", "b", [1], ids=[1, 2, 3])]
    return write_run(tmp_path / "run", rows, methods=TWO, suite={"categories": {"qa": 2}}, units_total=4, settings={"dtype": "bf16"})


def found(*divergences):
    return as_fields(LosslessReport("run", "bf16", (ArmAgreement("s4c", "", 2, 0, 0, divergences),)))


def text(run, fields=None, raw=None):
    if fields is not None or raw is not None:
        (run / FILE).write_text(json.dumps(fields) if raw is None else raw)
    return build([run], run.parent / "out", Console(record=True)).with_suffix(".md").read_text(encoding="utf-8")


def test_without_the_losslessness_report_the_command_for_it_is_shown(run):
    assert (
        "may be a rounding tie or a bug. To judge them by the target's fp32 logits: specbench agree RUN --json > RUN/agreement.json"
        in text(run)
    )


def test_table_rule_and_violations_are_shown(run):
    fields = found(TIE, VIOLATION)
    shown = text(run, fields)
    assert "a rounding tie or a bug" not in shown
    assert "specbench agree tells which" not in shown
    section = shown.split("### Divergences from vanilla\n")[1].split("\n### ")[0]
    assert "| S4C (reconstruction) | 2 | 0 (0.0 %) | 1 | 1 |" in section
    assert "| 0.02 |" in section
    assert fields["tolerance"]["rule"] in section
    assert (
        "- violation: S4C (reconstruction), question b, turn 1, repeat 1, token 3: the end of the answer where vanilla has 'd'" in section
    )
    assert "violations: S4C (reconstruction) 1." in shown.split("### All categories")[1].split("###")[0]


def test_the_report_says_if_there_is_no_violation(run):
    shown = text(run, found(TIE, NEAR))
    assert "No violation: every difference is a numeric tie" in shown
    assert "rounding does not explain it" not in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": "another"}, "is of the run 'another', not of 'run'"),
        ({"schema": 7}, "agreement schema 7"),
        ({"violations": 0}, "contradict one another"),
        ({"dtype": "fp32"}, "is not of the records beside it"),
        ({"arms": found(TIE)["arms"], "violations": 0}, "is not of the records beside it"),
        ({"arms": [{"arm": "s4c"}]}, "not a losslessness report"),
        ({"arms": 3}, "not a losslessness report"),
    ],
)
def test_a_foreign_or_edited_file_is_one_line(run, change, message):
    with pytest.raises(UserError, match=message) as raised:
        text(run, found(TIE, VIOLATION) | change)
    assert "\n" not in str(raised.value)
    assert "make it again: specbench agree" in str(raised.value)


@pytest.mark.parametrize("raw", ["", "{", "[]", "{}", "null"])
def test_a_file_that_is_no_losslessness_report_is_one_line(run, raw):
    with pytest.raises(UserError, match="not a losslessness report"):
        text(run, raw=raw)
