"""JSON that others wrote: deep nesting, huge numbers and text that is none are one line in every reader."""

import json
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from methods.core import published, weights
from methods.core.errors import UserError
from methods.core.json_text import parse_json
from specbench.engines.endpoint import client
from specbench.suites.schema import questions_from_jsonl
from specbench.targets import families, placement
from specbench.targets.checkpoint import weight_files
from specbench.train.data import corpus

HOSTILE = {
    b'{"a":' * 100_000: "nested too deeply",
    b'{"a": %s}' % (b"9" * 5000): "not JSON: number out of range",
    b'{"a": "\\ud800"}': "half of a surrogate pair",
    b'{"a": "\xed\xa0\x80"}': "not UTF-8 text",
    b'{"a": NaN}': "not JSON",
    b"\xff\xfe": "not UTF-8 text",
    b'{"a": 1}{': "not JSON: trailing characters",
    b"": "not JSON",
}
RAW = pytest.mark.parametrize("raw", HOSTILE, ids=range(len(HOSTILE)))


def said(read, *given) -> str:
    """Return the one line with which a reader refuses."""
    with pytest.raises((UserError, ValueError)) as refusal:
        read(*given)
    text = str(refusal.value)
    assert "\n" not in text
    assert len(text) < 600
    return text


@RAW
def test_what_is_wrong_is_said_in_one_line(raw):
    assert HOSTILE[raw] in said(parse_json, raw)
    with pytest.raises(ValueError, match=HOSTILE[raw].partition(":")[0]):
        parse_json(raw.decode("utf-8", "surrogatepass") if b"\xff" not in raw else raw)


def test_sound_text_is_what_json_makes_of_it():
    value: Any
    for value in ({"a": [1, 2.5, None, True, "ü😀"]}, 10**25, "x", [[[]]], -0.0):
        assert parse_json(json.dumps(value)) == value
        assert parse_json(b"\xef\xbb\xbf" + json.dumps(value, ensure_ascii=False).encode()) == value


@RAW
def test_every_reader_of_files_refuses(raw, tmp_path):
    for name in ("config.json", "model.safetensors.index.json", "map.json"):
        (tmp_path / name).write_bytes(raw)
    assert "config.json cannot be read" in said(published._config, tmp_path / "config.json", "a drafter")
    assert "is no index of shards" in said(weight_files, tmp_path)
    assert "--device-map" in said(placement.read_map, tmp_path / "map.json", 4, "cpu")
    assert families.family_of(str(tmp_path)).targets == families.family_of("nobody").targets
    assert client._json_object(raw) is None
    assert "suite, line 2: not a question" in said(questions_from_jsonl, b"\n" + (raw or b"{"), "suite")


@pytest.mark.parametrize("raw", [raw for raw in HOSTILE if b"\xff" not in raw and b"\xed" not in raw], ids=len)
def test_the_header_of_a_drafter_refuses(raw, tmp_path):
    save_file({"x": torch.zeros(1)}, tmp_path / "s4c.safetensors", metadata={"format": weights.FORMAT, "about": raw.decode()})
    assert "damaged header" in said(weights.about, tmp_path / "s4c.safetensors")


def test_a_record_of_a_corpus_with_half_a_character_is_passed_over(tmp_path, capsys):
    path = tmp_path / "corpus.jsonl"
    texts = ["plain", "half \ud83d of one", "again"]
    path.write_text("".join(json.dumps({"messages": [{"role": "user", "content": text}]}) + "\n" for text in texts))
    found = [record for held_out in (True, False) for record in corpus.read_records(path, held_out=held_out)]
    assert [record["messages"][0]["content"] for record in found] == ["plain", "again"]
    assert "passed over 1 records" in capsys.readouterr().err
    for raw in (b'{"messages":' * 100_000, b'{"messages": %s}' % (b"9" * 5000)):
        path.write_bytes(raw)
        assert "line 1: not a chat record" in said(lambda: list(corpus.read_records(path, held_out=False)))
