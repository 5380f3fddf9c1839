"""The table of the report with verdicts on other papers' claims: only those of which the run has both arms."""

import pytest
from helpers.claimed_runs import ON_SPEC_BENCH, THREE_ARMS, beside
from helpers.scripted_records import write_run

from specbench.claims.claim import load_claims
from specbench.report import verdict
from specbench.report.blocks import Paragraph
from specbench.report.run import load_runs
from specbench.util.text import TextTable


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    suite = {**ON_SPEC_BENCH, "categories": {"qa": 18, "rag": 18}}
    found = list(beside(1.10, ours={"draft_s": 0.001}, theirs={"draft_s": 0.001}))
    folder = write_run(tmp_path_factory.mktemp("claims") / "run", found, suite=suite, methods=THREE_ARMS)
    return load_runs([folder])[0]


def test_claims_are_judged_whose_arms_the_run_has(run):
    table, how = verdict.others(run)
    assert isinstance(table, TextTable)
    assert [row[:5] for row in table.rows] == [
        ["confu", "ConFu over EAGLE-3", "1.08x-1.11x", "1.10x [1.10, 1.10]", "reproduced"],
        ["confu-mat", "ConFu's MAT over EAGLE-3's", "1.08x-1.11x", "1.00x [1.00, 1.00]", "below"],
    ]
    differ, unknown = (int(text.split()[0]) for text in table.rows[0][5].split(", "))
    assert differ > 0 < unknown
    assert isinstance(how, Paragraph)
    assert "specbench verify --claim NAME" in how.text


@pytest.mark.parametrize("missing", ["eagle3", "confu"])
def test_a_claim_is_not_judged_without_one_of_its_arms(tmp_path, missing):
    found = [record for record in beside(1.10, questions=4) if record.arm != missing]
    methods = {name: title for name, title in THREE_ARMS.items() if name != missing}
    folder = write_run(tmp_path / "run", found, suite=ON_SPEC_BENCH, methods=methods)
    assert verdict.others(load_runs([folder])[0]) == []


def test_rows_of_the_leaderboard_are_not_judged(tmp_path):
    found = list(beside(1.10, questions=4))
    folder = write_run(tmp_path / "run", found, suite=ON_SPEC_BENCH, methods={"vanilla": "V", "eagle3": "EAGLE-3"})
    assert load_claims()["eagle3-vicuna-13b"].arm == "eagle3"
    assert verdict.others(load_runs([folder])[0]) == []
