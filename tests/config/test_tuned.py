import json
import tomllib
from dataclasses import asdict

import pytest
from pydantic import TypeAdapter

from methods.core.errors import UserError
from specbench.config import tuned
from specbench.config.tuned import Tuned, TunedOn

FACTS = TunedOn("tiny-160m", "a" * 64, "bf16", "cpu", "static", {"processor": 'An "odd" CPU', "prompts": 20})
METHODS = {"s4c": {"nodes": 9, "depth": 3, "width": 2}, "pld": {"nodes": 4}}


@pytest.fixture
def path(tmp_path):
    tuned.write(tmp_path / "tuned.toml", METHODS, FACTS, {"s4c": ["measured: MAT 2.1"]})
    return tmp_path / "tuned.toml"


def test_a_written_file_is_read_back(path):
    found = Tuned.read(path)
    assert (found.methods, found.tuned_on, found.source) == (METHODS, FACTS, str(path))
    assert TypeAdapter(Tuned).validate_python(json.loads(json.dumps(asdict(found)))) == found, "a manifest keeps it"
    assert "# measured: MAT 2.1\n[methods.s4c]\nnodes = 9\n" in path.read_text()
    assert tomllib.loads(path.read_text())["tuned_on"]["processor"] == 'An "odd" CPU'
    assert [file.name for file in path.parent.iterdir()] == ["tuned.toml"]


def test_each_method_has_its_own_options(path):
    found = Tuned.read(path)
    assert found.options("s4c") == {"nodes": "9", "depth": "3", "width": "2"}
    assert found.options("pld") == {"nodes": "4"}
    assert found.options("vanilla") == found.options("eagle2") == {}


def test_a_run_with_another_target_dtype_device_or_back_end_is_refused(path):
    found = Tuned.read(path)
    same = {"target": "tiny-160m", "dtype": "bf16", "device": "cpu", "backend": "static"}
    found.check(**same)
    for other, complaint in (
        ({"target": "tiny-7b"}, "tuned for target 'tiny-160m', the run is on 'tiny-7b'; tune for this run"),
        ({"dtype": "fp32"}, "tuned for dtype 'bf16', the run is on 'fp32'"),
        ({"device": "cuda:0"}, "tuned for device 'cpu', the run is on 'cuda'"),
        ({"backend": "eager"}, "tuned for backend 'static', the run is on 'eager'"),
    ):
        with pytest.raises(UserError, match=complaint):
            found.check(**(same | other))
    found.check_weights("a" * 64)
    with pytest.raises(UserError, match="tuned for other weights \\(sha256 aaaaaaaaaaaa, the target's are bbbbbbbbbbbb\\)"):
        found.check_weights("b" * 64)


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("[methods.pld]", "[methods.pdl]", "unknown method 'pdl'; did you mean 'pld'"),
        ("nodes = 4", "noodles = 4", "unknown option of pld 'noodles'; did you mean 'nodes'"),
        ("nodes = 4", 'nodes = "four"', "pld's nodes is 'four'; it must be a whole number"),
        ("nodes = 4", "nodes = true", "pld's nodes is True; it must be a whole number"),
        ("nodes = 4", "nodes = ", "is not TOML"),
        ("[methods.pld]\nnodes = 4", "[methods]\npld = 4", "unknown option of pld ''"),
        ('dtype = "bf16"\n', "", "needs \\[methods.NAME\\] and \\[tuned_on\\] with target, target_sha256, dtype, device, backend"),
        ("[tuned_on]", "[tuned]", "needs \\[methods.NAME\\]"),
    ],
)
def test_a_damaged_file_is_a_one_line_error(path, old, new, complaint):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(UserError, match=complaint) as error:
        Tuned.read(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_a_one_line_error(tmp_path):
    with pytest.raises(UserError, match="cannot be read \\(No such file or directory\\); make one with: specbench tune"):
        Tuned.read(tmp_path / "none.toml")
