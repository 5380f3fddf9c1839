"""The common parts of the studies: conditions, tables, and report files."""

from dataclasses import replace

import pandas as pd

from specbench.studies.base import Conditions, table, title_blocks, write_report
from specbench.util.environment import Environment, GitState

WHERE = Environment(cpu="a processor", threads=2, torch="2", transformers="5")
CONDITIONS = Conditions("now", [], "some/t", "", 5_000_000, "fp32", "cpu", "static", WHERE, GitState())


def test_the_sentence_has_every_condition_and_the_studys_details():
    sentence = "some/t (5 M parameters), fp32, back end static; a processor, 2 threads, torch 2, transformers 5; 9 committed tokens"
    assert CONDITIONS.sentence("9 committed tokens") == sentence
    on_gpu = replace(CONDITIONS, environment=replace(WHERE, gpu="a GPU"), parameters=None)
    assert on_gpu.sentence() == "some/t, fp32, back end static; a GPU, torch 2, transformers 5"


def test_the_default_folder_names_study_target_device_and_back_end():
    assert CONDITIONS.folder_name("roofline") == "roofline-t-cpu-static"


def test_a_table_has_the_headers_of_its_rows():
    rows = [{"What": "a", "Ms": "1.00"}, {"What": "b", "Ms": "2.00"}]
    assert (table("t", rows).headers, table("t", rows).rows) == (["What", "Ms"], [["a", "1.00"], ["b", "2.00"]])
    assert table("t", []).rows == []


def test_a_report_is_markdown_and_csv(tmp_path):
    write_report(tmp_path, "name", title_blocks("Title", "conditions", "a note"), pd.DataFrame([{"x": 1 / 3}]))
    assert (tmp_path / "name.md").read_text() == "# Title\n\nconditions\n\n**Note.** a note\n"
    assert (tmp_path / "name.csv").read_text() == "x\n0.333333\n"
