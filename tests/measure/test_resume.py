"""Resuming a run: after kills and torn lines it gives the same records; another run's directory is never written to."""

import dataclasses
import io
import json
import lzma
import multiprocessing
import random
import signal
import time
from pathlib import Path

import pytest
import torch
from helpers.consoles import printed
from helpers.edited_runs import without_digests
from helpers.tiny_target import write_suite, write_target

from methods.core.errors import UserError
from specbench.config.options import RunConfig
from specbench.measure.progress import describe_failures
from specbench.measure.runner import LocalExecutor, run
from specbench.measure.schedule import units_of
from specbench.measure.session import prepare
from specbench.store import records, rundir
from specbench.store.manifest import RunManifest
from specbench.store.records import Record
from specbench.util.terminal import Console

torch.set_num_threads(1)
KILLS = 5


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> RunConfig:
    folder = tmp_path_factory.mktemp("inputs")
    target, suite_file = write_target(folder / "target"), write_suite(folder / "suite.jsonl")
    return RunConfig(["pld"], str(target), suite_file=suite_file, max_new_tokens=24, temperature=0.8, repeats=3, dtype="fp32", device="cpu")


@pytest.fixture(scope="module")
def undisturbed(options, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed")
    run(LocalExecutor(prepare(options)), run_dir, quiet())
    return run_dir


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def records_without_times(run_dir: Path) -> list[Record]:
    found, torn, *_ = records.read(run_dir)
    assert not torn
    return [
        dataclasses.replace(
            r, prefill_s=0, total_s=1, peak_bytes=0, steps=dataclasses.replace(r.steps, draft_s=[], verify_s=[], commit_s=[])
        )
        for r in found
    ]


def count_records(run_dir: Path) -> int:
    path = run_dir / records.FILE
    return path.read_bytes().count(b"\n") if path.exists() else 0


def resume_quietly(run_dir: Path) -> None:
    run(LocalExecutor(prepare(RunManifest.read(run_dir).settings)), run_dir, quiet())


def test_run_that_is_killed_five_times_gives_the_same_records(options, undisturbed, tmp_path):
    prepare(options).manifest.write(tmp_path)
    total = RunManifest.read(tmp_path).units_total
    chance = random.Random()
    for _ in range(KILLS):
        wanted = count_records(tmp_path) + chance.randrange(total // KILLS - 1)
        child = multiprocessing.get_context("fork").Process(target=resume_quietly, args=(tmp_path,))
        child.start()
        deadline = time.monotonic() + 60
        while count_records(tmp_path) < wanted:
            assert time.monotonic() < deadline, "the run makes no progress"
            time.sleep(0.001)
        time.sleep(chance.random() * 0.02)
        child.kill()
        child.join()
        assert child.exitcode == -signal.SIGKILL
    assert count_records(tmp_path) < total
    resume_quietly(tmp_path)
    assert records_without_times(tmp_path) == records_without_times(undisturbed)
    assert RunManifest.read(tmp_path).status == "complete"


@pytest.mark.parametrize("kept", [1, 40, -1], ids=["one byte", "half", "all but the newline"])
def test_torn_last_line_is_dropped_with_a_notice(options, undisturbed, tmp_path, kept):
    lines = (undisturbed / records.FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / records.FILE).write_bytes(b"".join(lines[:-2]) + lines[-2][:kept])
    (tmp_path / "manifest.json").write_bytes((undisturbed / "manifest.json").read_bytes())
    console = quiet()
    run(LocalExecutor(prepare(options)), tmp_path, console)
    assert "dropped a torn last record" in printed(console)
    assert records_without_times(tmp_path) == records_without_times(undisturbed)


def copied(run_dir: Path, to: Path, lines: list[bytes]) -> Path:
    """Write a copy of a run that holds these lines of records."""
    to.mkdir(exist_ok=True)
    (to / "manifest.json").write_bytes((run_dir / "manifest.json").read_bytes())
    (to / records.FILE).write_bytes(b"".join(lines))
    return to


def lines_of(run_dir: Path) -> list[bytes]:
    return (run_dir / records.FILE).read_bytes().splitlines(keepends=True)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"arm": "nope"}, "holds 1 record(s) of turns that the run does not have, the first: nope, question a1, turn 1, repeat 1;"),
        ({"question_id": "x"}, "the first: vanilla, question x, turn 1, repeat 1;"),
        ({"turn": -1}, "line 1: not a record (turn: Input should be greater than or equal to 0);"),
        ({"repeat": 99}, "the first: vanilla, question a1, turn 1, repeat 100;"),
        ({"turn": 0.5}, "line 1: not a record (turn: Input should be a valid integer);"),
        ({"arm": ["pld"]}, "line 1: not a record (arm: Input should be a valid string);"),
    ],
)
def test_record_of_a_turn_that_the_run_does_not_have_is_refused(options, undisturbed, tmp_path, changed, named):
    first, *others = lines_of(undisturbed)
    copied(undisturbed, tmp_path, [first, *others])
    first, *others = lines_of(without_digests(tmp_path))
    edited = [json.dumps({**json.loads(first), **changed}).encode() + b"\n", *others]
    (tmp_path / records.FILE).write_bytes(b"".join(edited))
    with pytest.raises(UserError) as refusal:
        run(LocalExecutor(prepare(options)), tmp_path, quiet())
    assert named in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert lines_of(tmp_path) == edited


def test_turn_that_is_recorded_twice_is_refused(undisturbed, tmp_path):
    lines = lines_of(undisturbed)
    copied(undisturbed, tmp_path, [*lines[:-2], *lines[:2]])
    with pytest.raises(UserError, match=r"holds 2 turn\(s\) twice, the first: vanilla, question a1, turn 1, repeat 1; "):
        records.read(tmp_path)


@pytest.mark.parametrize(("mark", "end"), [(b"", b"\r\n"), (b"\xef\xbb\xbf", b"\n")], ids=["CR LF", "byte order mark"])
def test_records_with_a_byte_order_mark_or_cr_lf_are_read(options, undisturbed, tmp_path, mark, end):
    lines = [line.replace(b"\n", end) for line in lines_of(undisturbed)[:-2]]
    copied(undisturbed, tmp_path, [mark, *lines])
    console = quiet()
    run(LocalExecutor(prepare(options)), tmp_path, console)
    assert "dropped" not in printed(console)
    assert records_without_times(tmp_path) == records_without_times(undisturbed)
    assert (tmp_path / records.FILE).read_bytes().startswith(mark + b"".join(lines))


@pytest.mark.parametrize("from_line", [0, 5], ids=["all", "the last lines"])
def test_records_that_end_in_cr_alone_are_refused(options, undisturbed, tmp_path, from_line):
    lines = lines_of(undisturbed)
    edited = [*lines[:from_line], *(line.replace(b"\n", b"\r") for line in lines[from_line:])]
    copied(undisturbed, tmp_path, edited)
    with pytest.raises(UserError, match=r"^.*records.jsonl has lines that end in CR alone; .* tr '.r' '.n' < .*$"):
        run(LocalExecutor(prepare(options)), tmp_path, quiet())
    assert (tmp_path / records.FILE).read_bytes() == b"".join(edited)


def with_failures(lines: list[bytes], keys: list[tuple[str, str, int, int]]) -> list[bytes]:
    """Return the lines of records with those of these keys failed."""
    found = [records.from_line(line, "") for line in lines]
    failed = [Record(*r.key[:2], r.category, *r.key[2:], status="error", error="out of memory") if r.key in keys else r for r in found]
    return [f"{records.to_line(record)}\n".encode() for record in failed]


def test_only_failed_turns_are_measured_again(options, undisturbed, tmp_path):
    keys = [("pld", "n1", 1, 0), ("pld", "n1", 2, 0), ("vanilla", "a2", 0, 2)]
    lines = with_failures(lines_of(undisturbed), keys)
    kept = b"".join(line for line in lines if b"out of memory" not in line)
    copied(undisturbed, tmp_path, [*lines, b'{"schema":2,"ar'])
    console = quiet()
    tallies = run(LocalExecutor(prepare(options)), tmp_path, console)
    assert describe_failures(tallies) == f"3 of {len(lines)} turns failed: vanilla 1 of {len(lines) // 2}, pld 2 of {len(lines) // 2}"
    assert b"".join(lines) == (tmp_path / records.FILE).read_bytes(), "a resume alone retries nothing"

    tallies = run(LocalExecutor(prepare(options)), tmp_path, console, retry_errors=True)
    assert f"{tmp_path}: dropped 3 failed turn(s); they are measured again" in printed(console)
    assert describe_failures(tallies) == ""
    assert (tmp_path / records.FILE).read_bytes().startswith(kept)
    by_key = {record.key: record for record in records_without_times(undisturbed)}
    assert {record.key: record for record in records_without_times(tmp_path)} == by_key
    assert RunManifest.read(tmp_path).status == "complete"
    assert len(RunManifest.read(tmp_path).resumed) == 2


def test_a_run_that_goes_on_is_held_against_no_number_of_records_until_it_ends(options, undisturbed, tmp_path):
    session = prepare(options)
    copied(undisturbed, tmp_path, lines_of(undisturbed)[:-2])
    with pytest.raises(UserError, match="with which the run ended"):
        rundir.read_run(tmp_path)
    rundir.open_run(session.manifest, [unit.key for unit in units_of(session.suite, session.manifest)], tmp_path, quiet())
    assert RunManifest.read(tmp_path).ending is None
    assert rundir.read_run(tmp_path).undigested == ""
    run(LocalExecutor(session), tmp_path, quiet())
    assert RunManifest.read(tmp_path).ending == rundir.ending_of(tmp_path)
    assert rundir.read_run(tmp_path).undigested == ""


def test_failed_turns_of_packed_records_are_not_measured_again(undisturbed, tmp_path):
    manifest, lines = RunManifest.read(undisturbed), lines_of(undisturbed)
    copied(undisturbed, tmp_path, []).joinpath(records.FILE).unlink()
    packed = lzma.compress(b"".join(with_failures(lines, [("pld", "a1", 0, 0)])))
    (tmp_path / records.PACKED).write_bytes(packed)
    keys = [record.key for record in records.read(undisturbed)[0]]
    with pytest.raises(UserError, match="unpack them first"):
        rundir.open_run(manifest, keys, tmp_path, quiet(), retry_errors=True)
    assert (tmp_path / records.PACKED).read_bytes() == packed


def test_finished_run_is_not_changed(options, undisturbed):
    before = {path.name: path.read_bytes() for path in undisturbed.iterdir()}
    run(LocalExecutor(prepare(options)), undisturbed, quiet())
    assert {path.name: path.read_bytes() for path in undisturbed.iterdir()} == before


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_new_tokens": 25}, ["max_new_tokens 24 -> 25"]),
        ({"seed": 1, "turns": "shared"}, ["seed 0 -> 1", "turns own -> shared"]),
        ({"overrides": ["nodes=3"]}, ["pld.nodes 10 -> 3"]),
        ({"overrides": ["acceptance=typical"]}, ["pld.acceptance match -> typical"]),
        ({"methods": ["vanilla"]}, ["arms vanilla, pld -> vanilla"]),
        ({"limit": 1}, ["limit none -> 1"]),
        ({"template": "vicuna_v1.1"}, ["template chat -> vicuna_v1.1", "template_sha256"]),
        ({"system_prompt": "Be brief."}, ["system_prompt none -> Be brief.", "template_sha256"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_other_settings_are_refused_by_name(options, undisturbed, change, named):
    before = {path.name: path.read_bytes() for path in undisturbed.iterdir()}
    with pytest.raises(UserError) as refusal:
        run(LocalExecutor(prepare(dataclasses.replace(options, **change))), undisturbed, quiet())
    differences = str(refusal.value).partition("other settings: ")[2].partition("; choose")[0].split("; ")
    assert len(differences) == len(named)
    assert all(text.startswith(name) for text, name in zip(differences, named, strict=True)), differences
    assert {path.name: path.read_bytes() for path in undisturbed.iterdir()} == before


def test_other_weights_and_another_template_are_refused(options, undisturbed):
    old = RunManifest.read(undisturbed)
    new = dataclasses.replace(old, template_sha256="f" * 64, target=dataclasses.replace(old.target, weights_sha256="e" * 64))
    with pytest.raises(UserError, match=r"target.weights_sha256 \w{12}… -> e{12}…; template_sha256 \w{12}… -> f{12}…;"):
        rundir.open_run(new, [], undisturbed, quiet())


def test_other_schema_version_is_refused(options, undisturbed, tmp_path):
    facts = json.loads((undisturbed / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**facts, "schema": 7}))
    with pytest.raises(UserError, match="schema version 7, this version reads 2"):
        run(LocalExecutor(prepare(options)), tmp_path, quiet())
    copied(undisturbed, tmp_path, [])
    line = (undisturbed / records.FILE).read_text().splitlines()[0].replace('"schema":2', '"schema":7')
    (tmp_path / records.FILE).write_text(line + "\n")
    with pytest.raises(UserError, match="record schema version 7, this version reads 2"):
        run(LocalExecutor(prepare(options)), tmp_path, quiet())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2}', '{"schema": 2, "settings": {}, "arms": {}}'])
def test_broken_manifest_is_a_user_error(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        RunManifest.read(tmp_path)


def test_records_without_a_manifest_are_refused(options, tmp_path):
    (tmp_path / records.FILE).write_text("")
    with pytest.raises(UserError, match=r"records.jsonl but no manifest.json"):
        run(LocalExecutor(prepare(options)), tmp_path, quiet())


def test_packed_records_count_as_done_and_incomplete_ones_are_refused(options, undisturbed, tmp_path):
    lines = (undisturbed / records.FILE).read_bytes().splitlines(keepends=True)
    packed = tmp_path / f"{records.FILE}.xz"
    (tmp_path / "manifest.json").write_bytes((undisturbed / "manifest.json").read_bytes())
    packed.write_bytes(lzma.compress(b"".join(lines)))
    run(LocalExecutor(prepare(options)), tmp_path, quiet())
    assert not (tmp_path / records.FILE).exists()
    packed.write_bytes(lzma.compress(b"".join(lines[:-1])))
    with pytest.raises(UserError, match="unpack them first"):
        run(LocalExecutor(prepare(options)), tmp_path, quiet())


def test_directory_in_use_is_refused(options, tmp_path):
    with rundir.claimed(tmp_path), pytest.raises(UserError, match="another specbench is writing"):
        run(LocalExecutor(prepare(options)), tmp_path, quiet())
    with rundir.claimed(tmp_path):
        pass


def test_change_of_the_environment_is_printed(undisturbed, tmp_path):
    old = RunManifest.read(undisturbed)
    dataclasses.replace(old, environment=dataclasses.replace(old.environment, cpu="abacus")).write(tmp_path)
    console = quiet()
    rundir.open_run(old, [("vanilla", "a1", 0, 0)], tmp_path, console)
    assert f"times may not compare: cpu abacus -> {old.environment.cpu}" in printed(console)
