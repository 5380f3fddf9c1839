"""Files that specbench wrote and somebody edited: whatever a field holds, a command takes it or says in one line what is wrong."""

import copy
import json
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from helpers.edited_runs import without_digests
from helpers.gated_runs import answers, call, run
from typer.testing import CliRunner

from methods.core.errors import UserError
from specbench.cli.app import app
from specbench.config.tuned import Tuned
from specbench.gate.baseline import read_baseline
from specbench.store import records
from specbench.store.manifest import RunManifest
from specbench.util.exits import MISUSE

WRONG: tuple[Any, ...] = (None, True, -1, 0.5, 10**30, "3", "", "x", [], ["x"], [[1]], {}, {"x": 1})
RAW = (
    b"", b"nul", b"[]", b"3", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b'{"schema": %s}' % (b"9" * 5000), b'{"schema": "\\ud800"}',
    b'{"schema": NaN}', b'{"schema": 2}',
)  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Return a run directory with few questions, and its baseline."""
    folder = tmp_path_factory.mktemp("sound")
    without_digests(run(folder / "run", answers(questions=4, again=True)))
    code, said = call("baseline", "set", folder / "run", "--out", folder / "baseline.json")
    assert code == 0, said
    return folder


def fields(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every field, and of the first item of each list."""
    inner = value.items() if isinstance(value, dict) else list(enumerate(value))[:1] if isinstance(value, list) else ()
    for key, below in inner:
        yield (*path, key)
        yield from fields(below, (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return a copy with another value in one field."""
    value = copy.deepcopy(value)
    place = value
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new
    return value


def variants(value: Any) -> Iterator[tuple[tuple[Any, ...], Any, Any]]:
    """Yield every field with every wrong value: the field's path, the wrong value, and the whole with it in place."""
    for path in fields(value):
        for wrong in WRONG:
            yield path, wrong, changed(value, path, wrong)


def is_one_line(text: str) -> bool:
    return bool(text) and "\n" not in text and text.isprintable() and len(text) < 1000


def refuses(read, *given) -> bool:
    """Return whether a file is refused, which must be in one line."""
    try:
        read(*given)
    except UserError as refusal:
        said = str(refusal)
    else:
        return False
    assert is_one_line(said), said
    return True


def runs(*arguments: object) -> None:
    """Run a command, which may end in an error of one line but not in another exception."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if isinstance(result.exception, UserError):
        assert is_one_line(str(result.exception)), arguments
    else:
        assert result.exception is None or isinstance(result.exception, SystemExit), (arguments, result.exception)
        assert result.exit_code != MISUSE, result.output


def test_a_manifest(sound, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(sound / "run", run_dir)
    path = run_dir / "manifest.json"
    taken = []
    for field, wrong, whole in variants(json.loads(path.read_text())):
        path.write_text(json.dumps(whole))
        if not refuses(RunManifest.read, run_dir):
            taken.append((field, wrong, path.read_text()))
    for field, wrong, text in taken[::5]:
        path.write_text(text)
        print(field, wrong)  # shown if the command fails
        runs("verify", run_dir, "--claim", "s4c")


def test_a_record(sound):
    stored = json.loads((sound / "run" / "records.jsonl").read_bytes().splitlines()[1])
    for field, wrong, whole in variants(stored):
        if not refuses(records.from_line, json.dumps(whole).encode(), "here, line 1"):
            value = stored
            for key in field:
                value = value[key]
            alike = type(wrong) is type(value) or (wrong is None and field[0] in ("tokens", "text_tokens", "drafting"))
            numbers = not isinstance(wrong, bool) and isinstance(wrong, int | float) and isinstance(value, float)
            assert alike or numbers or (field, type(wrong)) == (("text_tokens",), int), (field, wrong)
            assert wrong not in (-1, 10**30) or field == ("total_s",), (field, wrong)


def test_a_baseline(sound, tmp_path):
    path = tmp_path / "baseline.json"
    taken = []
    for field, wrong, whole in variants(json.loads((sound / "baseline.json").read_text())):
        path.write_text(json.dumps(whole))
        if not refuses(read_baseline, path):
            taken.append((field, wrong, path.read_text()))
    for field, wrong, text in taken[::15]:
        path.write_text(text)
        print(field, wrong)  # shown if the command fails
        runs("check", sound / "run", "--baseline", path)


def test_a_tuned_file(tmp_path):
    path = tmp_path / "tuned.toml"
    facts = dict.fromkeys(("target", "target_sha256", "dtype", "device", "backend"), "x")
    whole = {"tuned_on": facts | {"note": "n"}, "methods": {"pld": {"nodes": 4}}}
    for _, _, edited in variants(whole):
        lines = [f"{name} = {json.dumps(value)}" for name, value in edited.items()]
        path.write_text("\n".join(lines).replace('": ', '" = ').replace("null", '"null"'))
        refuses(Tuned.read, path)


@pytest.mark.parametrize("raw", RAW, ids=range(len(RAW)))
def test_a_file_of_something_else(raw, sound, tmp_path):
    (tmp_path / "manifest.json").write_bytes(raw)
    assert refuses(RunManifest.read, tmp_path)
    assert refuses(records.from_line, raw, "here, line 1")
    (tmp_path / "b.json").write_bytes(raw)
    assert refuses(read_baseline, tmp_path / "b.json")
    (tmp_path / "t.toml").write_bytes(raw)
    assert refuses(Tuned.read, tmp_path / "t.toml")
