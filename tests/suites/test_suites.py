"""Suites: the packaged one, files of Spec-Bench's schema, Spec-Bench itself, selection, and errors."""

import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from methods.core.errors import UserError
from specbench import suites
from specbench.suites import spec_bench

RAW_TOPICS = ["writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities"]


def row(identity, category="qa", **fields):
    return {"question_id": identity, "category": category, "turns": ["Why?"], **fields}


@pytest.fixture
def write(tmp_path):
    def write(*rows, name="own.jsonl"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows), encoding="utf-8")
        return path

    return write


def refusal(*args, **kwargs):
    with pytest.raises(UserError) as caught:
        suites.load(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_mini_has_eight_questions_a_category_and_two_turns_in_mt_bench():
    mini = suites.load("mini")
    assert (mini.name, mini.version) == ("mini", suites.MINI_VERSION)
    assert Counter(q.category for q in mini.questions) == dict.fromkeys(suites.TITLES, 8)
    assert all(len(q.turns) == (2 if q.category == "mt_bench" else 1) for q in mini.questions)
    assert len({turn for q in mini.questions for turn in q.turns}) == 48 + 8


def test_mini_keeps_the_prompt_shapes_of_its_categories():
    prompts = {name: [q.turns[0] for q in suites.load("mini", categories=[name]).questions] for name in suites.TITLES}
    assert all(prompt.startswith("Translate German to English: ") for prompt in prompts["translation"])
    assert all(prompt.startswith("Summarize: ") and 80 <= len(prompt.split()) - 1 <= 160 for prompt in prompts["summarization"])
    assert all(prompt.count("\n") in (1, 2) and prompt.endswith("?") for prompt in prompts["rag"])
    assert all(len(prompt.splitlines()[-1].split()) < 20 for prompt in prompts["rag"])
    assert all(q.reference for q in suites.load("mini", categories=["math_reasoning"]).questions)


def test_warmup_questions_are_not_in_the_suite():
    warm = {turn for q in suites.warmup() for turn in q.turns}
    assert len(suites.warmup()) == 2
    assert not warm & {turn for q in suites.load("mini").questions for turn in q.turns}


def test_thirteen_raw_categories_are_reported_as_six_and_others_unchanged(write):
    names = [*RAW_TOPICS, "translation", "summarization", "qa", "math_reasoning", "rag", "poems"]
    suite = suites.load("file", suite_file=write(*(row(i, name) for i, name in enumerate(names))))
    assert [q.category for q in suite.questions] == ["mt_bench"] * 8 + names[8:]


def test_all_fields_of_a_file_are_read(write):
    path = write(row(7, reference=[["a", "b"], "c"]), "", row("x", turns=["One", "Two"], reference=None))
    suite = suites.load("file", suite_file=path)
    assert suite.name == "file"
    assert suite.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert suite.questions == (
        suites.Question("7", "qa", ("Why?",), ("a", "b", "c")),
        suites.Question("x", "qa", ("One", "Two"), ()),
    )


def test_numbers_stand_for_their_text(write):
    path = write(row(1.0, 7, reference=[18, 2.5, 3.0]))
    assert suites.load("file", suite_file=path).questions == (suites.Question("1", "7", ("Why?",), ("18", "2.5", "3")),)


def test_a_file_given_without_a_suite_name_replaces_the_default(write):
    suite = suites.load("mini", suite_file=write(row(1)))
    assert suite.name == "file"
    assert suite.version != suites.MINI_VERSION


def test_line_separators_inside_a_string_do_not_split_a_line(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(json.dumps(row(1, turns=["a\u2028b"]), ensure_ascii=False), encoding="utf-8")
    assert suites.load("file", suite_file=path).questions[0].turns == ("a\u2028b",)


@pytest.mark.parametrize(("limit", "kept"), [(1, ["0"]), (3, ["0", "3", "6"]), (4, ["0", "2", "5", "7"]), (10, None), (99, None)])
def test_limit_is_evenly_spaced_in_each_category(write, limit, kept):
    path = write(*(row(i) for i in range(10)), *(row(f"r{i}", "rag") for i in range(10)))
    whole = suites.load("file", suite_file=path)
    suite = suites.load("file", suite_file=path, limit=limit)
    wanted = [q.id for q in whole.questions] if kept is None else kept + [f"r{i}" for i in kept]
    assert [q.id for q in suite.questions] == wanted
    assert suite.sha256 == whole.sha256


def test_categories_filter_keeps_suite_order(write):
    path = write(row(1, "rag"), row(2, "qa"), row(3, "math"), row(4, "rag"))
    suite = suites.load("file", suite_file=path, categories=["mt_bench", "rag"])
    assert [q.id for q in suite.questions] == ["1", "3", "4"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no questions"),
        ([row(1), "{oops"], "line 2: not a question (not JSON: "),
        ([row(1), row(2, turns=["half \ud800"])], "line 2: not a question (half of a surrogate pair in its text"),
        (["[" * 100_000], "line 1: not a question (nested too deeply"),
        ([row(1), "", "[1]"], "line 3: not a question (an object is needed, found [1])"),
        ([{"category": "qa", "turns": ["a"]}], "line 1: field 'question_id' must be a number or a non-empty string, found nothing"),
        ([row(True)], "line 1: field 'question_id'"),
        ([row(1, [5])], "line 1: field 'category' must be a non-empty string, found [5]"),
        ([row(1, "")], "line 1: field 'category'"),
        ([row(1), row(2, turns="Why?")], "line 2: field 'turns' must be a non-empty list of non-empty strings, found \"Why?\""),
        ([row(1, turns=[])], "line 1: field 'turns'"),
        ([row(1, turns=["a", " "])], "line 1: field 'turns'"),
        ([row(1, reference=[{}])], "line 1: field 'reference'"),
        (['{"question_id": NaN}'], "line 1: not a question (not JSON"),
        (['{"question_id": %s}' % ("9" * 5000)], "line 1: not a question (not JSON: number out of range"),
        (['{"question_id": 1e400}'], "line 1: field 'question_id'"),
        ([row(1), row(2), row("1")], "line 3: question_id '1' was already used at"),
    ],
)
def test_a_bad_line_of_a_file_is_named(write, lines, message):
    path = write(*lines)
    refused = refusal("file", suite_file=path)
    assert message in refused
    assert str(path) in refused


def test_the_line_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_bytes(json.dumps(row(1)).encode() + b"\n\xff\xfe\n")
    assert "line 2: not a question (not UTF-8 text)" in refusal("file", suite_file=path)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("spec-bnech", {}, "did you mean 'spec-bench'?"),
        ("file", {}, "--suite-file FILE"),
        ("file", {"suite_file": Path("no/such.jsonl")}, "no/such.jsonl does not exist"),
        ("file", {"suite_file": Path(__file__).parent}, "cannot be read"),
        ("mini", {"categories": ["ragg"]}, "did you mean 'rag'?"),
        ("mini", {"limit": 0}, "limit 0 is below 1"),
        ("mini", {"hf_columns": {"turns": "q"}}, "not from the hub"),
        ("hf:a/b", {"suite_file": Path("x")}, "is from the hub"),
        ("hf:", {}, "names no data set"),
    ],
)
def test_bad_arguments_are_refused(name, options, message):
    assert message in refusal(name, **options)


@pytest.fixture
def published(write, monkeypatch, tmp_path):
    """Serve a stand-in for the published file from a file URL, with an empty user cache."""
    path = write(row(1, "math"), row(2, "math_reasoning"), name="published/question.jsonl")
    monkeypatch.setattr(spec_bench, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(spec_bench, "URL", path.as_uri())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SPECBENCH_DATA", raising=False)
    return path


def test_spec_bench_is_downloaded_once(published, tmp_path):
    suite = suites.load("spec-bench")
    published.unlink()
    assert suites.load("spec-bench") == suite
    assert [q.category for q in suite.questions] == ["mt_bench", "math_reasoning"]
    assert [p.name for p in (tmp_path / "cache").rglob("*")] == ["specbench", "spec_bench", "question.jsonl"]


def test_spec_bench_is_read_from_the_data_folder_before_the_network(published, write, monkeypatch, tmp_path):
    provided = write(published.read_text().strip(), name="data/spec_bench/question.jsonl")
    published.unlink()
    monkeypatch.setenv("SPECBENCH_DATA", str(tmp_path / "data"))
    assert len(suites.load("spec-bench").questions) == 2
    assert not (tmp_path / "cache").exists()
    provided.write_text("{}\n")
    assert "unset SPECBENCH_DATA" in refusal("spec-bench")


def test_the_checksum_of_spec_bench_is_always_checked(published, write, tmp_path):
    assert len(suites.load("spec-bench", suite_file=published).questions) == 2
    changed = write(row(3))
    assert f"{changed}: sha256" in refusal("spec-bench", suite_file=changed)
    suites.load("spec-bench")
    next((tmp_path / "cache").rglob("question.jsonl")).write_text("torn")
    assert "delete it and run again" in refusal("spec-bench")


def test_a_changed_download_is_not_kept(published, tmp_path):
    published.write_text("something else\n")
    assert "sha256" in refusal("spec-bench")
    assert not (tmp_path / "cache").exists()


def test_the_error_without_a_network_names_the_next_step(published):
    published.unlink()
    message = refusal("spec-bench")
    assert "could not be downloaded" in message
    assert "--suite-file FILE" in message


def test_the_error_of_an_unwritable_cache_names_the_variable(published, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert "XDG_CACHE_HOME" in refusal("spec-bench")


def test_datasets_and_torch_are_not_imported_for_other_suites():
    check = "import sys; from specbench import suites; suites.load('mini'); print({'datasets', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
