"""Runs whose records or manifest were changed after they were written: every reader notices, or says what it cannot notice."""

import json
import re
import shutil
from dataclasses import replace

import pytest
from helpers.edited_runs import without_digests
from helpers.gated_runs import answers, call, run
from typer.testing import CliRunner

from methods.core.errors import UserError
from specbench.cli.app import app
from specbench.lossless import text
from specbench.lossless.differences import LosslessReport
from specbench.report import findings
from specbench.report.run import load_runs
from specbench.store import digest, records
from specbench.store.manifest import RunManifest
from specbench.store.rundir import ending_of, read_run

CHANGED = "so it was changed after it was written"


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Return a run of eight questions and two arms that ended as runs do."""
    counted = [replace(record, output_text=f"answer {record.question_id}", text_tokens=30) for record in answers(questions=8)]
    run_dir = run(tmp_path_factory.mktemp("ended") / "run", counted)
    replace(RunManifest.read(run_dir), ending=ending_of(run_dir)).write(run_dir)
    return run_dir


@pytest.fixture
def copied(ended, tmp_path):
    return shutil.copytree(ended, tmp_path / "run")


def lines_of(run_dir):
    return (run_dir / records.FILE).read_bytes().splitlines(keepends=True)


def edit(run_dir, change):
    """Replace the lines of a run's records by what ``change`` makes of them."""
    (run_dir / records.FILE).write_bytes(b"".join(change(lines_of(run_dir))))


def with_field(line, **fields):
    return json.dumps({**json.loads(line), **fields}, separators=(",", ":")).encode() + b"\n"


EDITS = {
    "an arm's time": lambda lines: [with_field(lines[0], total_s=9.9), *lines[1:]],
    "an id": lambda lines: [with_field(lines[0], output_ids=[5, *json.loads(lines[0])["output_ids"][1:]]), *lines[1:]],
    "text_tokens": lambda lines: [with_field(lines[0], text_tokens=16), *lines[1:]],
    "a text": lambda lines: [lines[0].replace(b"answer q0", b"answer q9"), *lines[1:]],
    "arms of two lines": lambda lines: [with_field(lines[0], arm="medusa"), with_field(lines[1], arm="vanilla"), *lines[2:]],
    "a digest": lambda lines: [re.sub(rb'"digest":"\w', b'"digest":"', lines[0]), *lines[1:]],
    "the place of a digest": lambda lines: [json.dumps(dict(reversed(json.loads(lines[0]).items()))).encode() + b"\n", *lines[1:]],
}


@pytest.mark.parametrize("what", EDITS)
def test_a_changed_line_is_named(copied, what):
    assert read_run(copied).undigested == ""
    edit(copied, EDITS[what])
    with pytest.raises(UserError, match=f"records.jsonl, line 1: its digest is not that of its text, {CHANGED}") as refusal:
        read_run(copied)
    assert "\n" not in str(refusal.value)


def test_commands_refuse_a_changed_run(copied, ended):
    edit(copied, EDITS["an arm's time"])
    for command in (["report"], ["verify", "--claim", "s4c"], ["check", "--baseline", ended], ["agree"], ["baseline", "set"]):
        result = CliRunner().invoke(app, [str(word) for word in (*command, copied)])
        assert isinstance(result.exception, UserError), command
        assert f"line 1: its digest is not that of its text, {CHANGED}" in str(result.exception), command


@pytest.mark.parametrize(("old", "new"), [('"units_total": 16', '"units_total": 15'), ('"seed": 0', '"seed": 1')])
def test_a_changed_manifest_is_named(copied, old, new):
    path = copied / "manifest.json"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=f"manifest.json: its digest is not that of its text, {CHANGED}"):
        RunManifest.read(copied)


@pytest.mark.parametrize("change", [lambda lines: lines[:-2], lambda lines: lines[2:]], ids=["the last lines", "the first lines"])
def test_lines_that_a_run_lost_are_noticed(copied, change):
    edit(copied, change)
    with pytest.raises(UserError, match=r"does not hold the 16 record\(s\) with which the run ended but 14; .*specbench resume"):
        read_run(copied)


def test_a_line_of_another_run_is_noticed_and_the_order_of_lines_is_not(copied):
    edit(copied, lambda lines: lines[::-1])
    assert len(read_run(copied).records) == 16
    first = read_run(copied).records[0]
    edit(copied, lambda lines: [records.to_line(replace(first, total_s=9.9)).encode() + b"\n", *lines[1:]])
    with pytest.raises(UserError, match=r"with which the run ended but 16; lines were removed or replaced"):
        read_run(copied)


@pytest.mark.parametrize(("mark", "end"), [(b"", b"\r\n"), (b"\xef\xbb\xbf", b"\n")], ids=["CR LF", "byte order mark"])
def test_line_ends_and_a_byte_order_mark_are_no_change(copied, mark, end):
    edit(copied, lambda lines: [mark, *(line.replace(b"\n", end) for line in lines)])
    assert read_run(copied).undigested == ""


def test_a_run_of_before_digests_is_read_and_said_to_have_none(copied, ended, monkeypatch):
    without_digests(copied)
    without = read_run(copied).undigested
    assert without.startswith("Without a digest: the manifest and 16 of 16 records. Changes to them would not be noticed.")
    assert without in findings.caveats(load_runs([copied])[0])
    assert f"warning: {copied}: {without}" in call("check", copied, "--baseline", ended)[1]
    assert f"warning: {copied}: {without}" in call("check", ended, "--baseline", copied)[1]
    assert "digest" not in call("check", ended, "--baseline", ended)[1]
    verdict = json.loads(CliRunner().invoke(app, ["verify", str(copied), "--claim", "s4c", "--method", "medusa", "--json"]).stdout)
    assert without in verdict["caveats"]
    assert text.as_fields(LosslessReport("run", "bf16", (), without))["undigested"] == without

    edit(copied, lambda lines: [*lines_of(ended)[:10], *lines[10:]])
    assert read_run(copied).undigested.startswith("Without a digest: the manifest and 6 of 16 records.")


def test_one_text_has_one_number_of_tokens(copied):
    without_digests(copied)
    assert len(read_run(copied).records) == 16
    edit(copied, lambda lines: [with_field(lines[0], text_tokens=16), *lines[1:]])
    with pytest.raises(UserError) as refusal:
        read_run(copied)
    said = "the same answer has text_tokens 16 in vanilla, question q0, turn 1, repeat 1, and 30 in medusa, question q0, turn 1, repeat 1;"
    assert said in str(refusal.value)


def test_records_that_are_kept_stay_as_they_are(copied):
    without_digests(copied)
    before = lines_of(copied)
    records.keep(copied, {records.from_line(line, "").key for line in before[3:]})
    assert lines_of(copied) == before[3:], "no digest is formed of what had none"


def test_text_with_a_digest_is_still_the_same_json():
    for whole in ('{"a":1}', '{\n "a": 1\n}'):
        sealed = digest.add_digest(whole)
        stored = json.loads(sealed)
        assert {"a": 1, "digest": digest.find_digest(sealed.encode())} == stored
        digest.check_digest(digest.take_digest(stored), sealed.encode(), "here")
        assert stored == {"a": 1}
