"""Suites from data sets of the Hugging Face hub."""

import sys
from datetime import date
from types import SimpleNamespace

import pytest

from methods.core.errors import UserError
from specbench import suites


def row(identity, *turns):
    return {"question_id": identity, "category": "qa", "turns": list(turns)}


class Table(list):
    """A stand-in for a data set's split, with the attributes that suites use."""

    @property
    def column_names(self):
        return list(self[0])


class Labelled(Table):
    """A stand-in for a split with a column of class labels."""

    @property
    def features(self):
        return {"topic": SimpleNamespace(names=["poems", "riddles"]), "turns": SimpleNamespace()}


@pytest.fixture
def hub(monkeypatch):
    """Replace the hub by data sets {(id, config): {split: rows}}; others are unreachable."""
    stored = {
        ("own/quiz", None): {"train": Table({"prompt": f"Q{i}", "answer": f"A{i}", "topic": "coding"} for i in range(3))},
        ("own/plain", "de"): {"train": Table([row(1, "a")]), "test": Table([row(2, "Why?"), row(3, "a", "b")])},
        ("own/typed", None): {"train": Labelled([{"day": date(2024, 7, 26), "topic": 1, "turns": "Why?"}])},
        ("own/twice", None): {"train": Table([row(1, "a"), row(1, "b")])},
    }

    def load_dataset(identity, config):
        if (identity, config) not in stored:
            raise ConnectionError(f"Couldn't reach {identity}\nand a second line")
        return stored[identity, config]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))


def test_a_hub_data_set_is_read_through_the_column_mapping(hub):
    suite = suites.load("hf:own/quiz", hf_columns={"turns": "prompt", "reference": "answer", "category": "topic"}, limit=1)
    assert suite.name == "hf:own/quiz"
    assert suite.questions == (suites.Question("0", "mt_bench", ("Q0",), ("A0",)),)
    whole = suites.load("hf:own/quiz", hf_columns={"turns": "prompt", "reference": "answer", "category": "topic"})
    other = suites.load("hf:own/quiz", hf_columns={"turns": "answer"})
    assert suite.sha256 == whole.sha256 != other.sha256
    assert {q.category for q in other.questions} == {"quiz"}


def test_a_hub_data_set_with_the_schemas_columns_needs_no_mapping(hub):
    suite = suites.load("hf:own/plain:de@test")
    assert [(q.id, q.turns) for q in suite.questions] == [("2", ("Why?",)), ("3", ("a", "b"))]


def test_class_labels_are_read_by_their_names_and_dates_as_text(hub):
    suite = suites.load("hf:own/typed", hf_columns={"category": "topic", "question_id": "day"})
    assert suite.questions == (suites.Question("2024-07-26", "riddles", ("Why?",), ()),)


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        ("hf:own/none", {}, "'own/none' could not be loaded (Couldn't reach own/none)"),
        ("hf:own/plain:de", {}, "has the splits train, test; choose one, as in hf:own/plain:de@train"),
        ("hf:own/plain:de@tset", {}, "did you mean 'test'?"),
        ("hf:own/quiz", {}, "no column 'turns'; map one of prompt, answer, topic"),
        ("hf:own/quiz", {"turns": "promt"}, "did you mean 'prompt'?"),
        ("hf:own/quiz", {"turn": "prompt"}, "did you mean 'turns'?"),
        ("hf:own/typed", {"turns": "day"}, "row 0: column 'day', read as 'turns' must be a non-empty list of non-empty strings"),
        ("hf:own/twice", {}, "row 1: question_id '1' was already used at hf:own/twice, row 0"),
    ],
)
def test_a_bad_hub_suite_is_refused(hub, name, columns, message):
    with pytest.raises(UserError) as caught:
        suites.load(name, hf_columns=columns)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_error_without_the_datasets_package_names_the_next_step(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match="pip install datasets"):
        suites.load("hf:own/quiz")
