import dataclasses
import io
import json
import lzma
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers.tiny_target import write_suite, write_target
from rich.console import Console

from methods.core.errors import UserError
from specbench.config.options import Options
from specbench.measure.runner import run
from specbench.measure.session import prepare
from specbench.store import records, rundir
from specbench.store.manifest import RunManifest
from specbench.store.records import Record

torch.set_num_threads(1)
KILLS = 10

# Imports once, then forks a process for each command read from stdin, so that ten starts do not cost ten imports of torch.
FORK_SERVER = """
import io, os, sys
import torch
from pathlib import Path
from rich.console import Console
from specbench import runner, targets
from specbench.manifest import RunManifest
from specbench.options import Options
from specbench.session import prepare
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        directory = Path(line.strip())
        runner.run(prepare(Options.of(RunManifest.read(directory))), directory, Console(file=io.StringIO()))
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> Options:
    folder = tmp_path_factory.mktemp("inputs")
    target, suite_file = write_target(folder / "target"), write_suite(folder / "suite.jsonl")
    return Options(["pld"], str(target), suite_file=suite_file, max_new_tokens=24, temperature=0.8, repeats=6, dtype="fp32", device="cpu")


@pytest.fixture(scope="module")
def undisturbed(options, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed")
    run(prepare(options), run_dir, quiet())
    return run_dir


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def but_for_times(run_dir: Path) -> list[Record]:
    found, torn = records.read(run_dir)
    assert not torn
    return [
        dataclasses.replace(
            r, prefill_s=0, total_s=1, peak_bytes=0, steps=dataclasses.replace(r.steps, draft_s=[], verify_s=[], commit_s=[])
        )
        for r in found
    ]


def lines_of(run_dir: Path) -> int:
    path = run_dir / records.FILE
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_killed_ten_times_and_resumed_gives_the_same_records(options, undisturbed, tmp_path):
    prepare(options).manifest.write(tmp_path)
    total = RunManifest.read(tmp_path).units_total
    chance = random.Random()
    server = subprocess.Popen([sys.executable, "-c", FORK_SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None
    assert server.stdout is not None
    with server:
        for _ in range(KILLS):
            wanted = lines_of(tmp_path) + chance.randrange(total // KILLS - 1)
            server.stdin.write(f"{tmp_path}\n")
            server.stdin.flush()
            child = int(server.stdout.readline())
            patience = time.monotonic() + 60
            while lines_of(tmp_path) < wanted:
                assert time.monotonic() < patience, "the run makes no progress"
                time.sleep(0.001)
            time.sleep(chance.random() * 0.02)
            os.kill(child, signal.SIGKILL)
            assert int(server.stdout.readline()) == -signal.SIGKILL
        server.stdin.close()
    assert lines_of(tmp_path) < total
    run(prepare(options), tmp_path, quiet())
    assert but_for_times(tmp_path) == but_for_times(undisturbed)
    assert RunManifest.read(tmp_path).status == "complete"


@pytest.mark.parametrize("kept", [1, 40, -1], ids=["one byte", "half", "all but the newline"])
def test_a_torn_last_line_is_dropped_with_a_notice(options, undisturbed, tmp_path, kept):
    lines = (undisturbed / records.FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / records.FILE).write_bytes(b"".join(lines[:7]) + lines[7][:kept])
    (tmp_path / "manifest.json").write_bytes((undisturbed / "manifest.json").read_bytes())
    console = quiet()
    run(prepare(options), tmp_path, console)
    assert "dropped a torn last record" in console.file.getvalue()
    assert but_for_times(tmp_path) == but_for_times(undisturbed)


def test_a_finished_run_is_left_as_it_is(options, undisturbed):
    before = {path.name: path.read_bytes() for path in undisturbed.iterdir()}
    run(prepare(options), undisturbed, quiet())
    assert {path.name: path.read_bytes() for path in undisturbed.iterdir()} == before


def test_a_run_from_before_templates_were_a_choice_goes_on(options, undisturbed, tmp_path):
    facts = json.loads((undisturbed / "manifest.json").read_text())
    for name in ("revision", "template", "system_prompt", "thinking", "device_map"):
        del facts["settings"][name]
    del facts["target"]["layers"]
    (tmp_path / "manifest.json").write_text(json.dumps(facts | {"status": "interrupted"}))
    (tmp_path / records.FILE).write_bytes(b"".join((undisturbed / records.FILE).read_bytes().splitlines(keepends=True)[:5]))
    run(prepare(Options.of(RunManifest.read(tmp_path))), tmp_path, quiet())
    assert but_for_times(tmp_path) == but_for_times(undisturbed)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_new_tokens": 25}, ["max_new_tokens 24 -> 25"]),
        ({"seed": 1, "turns": "shared"}, ["seed 0 -> 1", "turns own -> shared"]),
        ({"overrides": ["nodes=3"]}, ["pld.nodes 10 -> 3"]),
        ({"overrides": ["acceptance=typical"]}, ["pld.acceptance match -> typical"]),
        ({"methods": ["vanilla"]}, ['methods ["vanilla", "pld"] -> ["vanilla"]']),
        ({"limit": 1}, ["limit null -> 1"]),
        ({"template": "vicuna_v1.1"}, ["template chat -> vicuna_v1.1", "template_sha256"]),
        ({"system_prompt": "Be brief."}, ["system_prompt null -> Be brief.", "template_sha256"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_other_settings_are_refused_naming_what_differs(options, undisturbed, change, named):
    before = {path.name: path.read_bytes() for path in undisturbed.iterdir()}
    with pytest.raises(UserError) as refusal:
        run(prepare(dataclasses.replace(options, **change)), undisturbed, quiet())
    told = str(refusal.value).partition("other settings: ")[2].partition("; choose")[0].split("; ")
    assert len(told) == len(named)
    assert all(each.startswith(name) for each, name in zip(told, named, strict=True)), told
    assert {path.name: path.read_bytes() for path in undisturbed.iterdir()} == before


def test_other_weights_and_another_template_are_other_settings(options, undisturbed):
    old = RunManifest.read(undisturbed)
    new = dataclasses.replace(old, template_sha256="f" * 64, target={**old.target, "weights_sha256": "e" * 64})
    with pytest.raises(UserError, match=r"target.weights_sha256 \w{12}… -> e{12}…; template_sha256 \w{12}… -> f{12}…;"):
        rundir.open_run(new, undisturbed, quiet())


def test_another_schema_version_is_refused(options, undisturbed, tmp_path):
    facts = json.loads((undisturbed / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**facts, "schema": 7}))
    with pytest.raises(UserError, match="schema version 7, this version reads 1"):
        run(prepare(options), tmp_path, quiet())
    (tmp_path / "manifest.json").write_text(json.dumps(facts))
    line = (undisturbed / records.FILE).read_text().splitlines()[0].replace('"schema":1', '"schema":7')
    (tmp_path / records.FILE).write_text(line + "\n")
    with pytest.raises(UserError, match="record schema 7, this version reads 1"):
        run(prepare(options), tmp_path, quiet())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 1}', '{"schema": 1, "settings": {}, "methods": {}}'])
def test_a_broken_manifest_is_one_line(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match=r"manifest\.json"):
        RunManifest.read(tmp_path)


def test_records_without_a_manifest_are_not_appended_to(options, tmp_path):
    (tmp_path / records.FILE).write_text("")
    with pytest.raises(UserError, match=r"records.jsonl but no manifest.json"):
        run(prepare(options), tmp_path, quiet())


def test_packed_records_count_as_done_and_are_never_hidden(options, undisturbed, tmp_path):
    lines = (undisturbed / records.FILE).read_bytes().splitlines(keepends=True)
    packed = tmp_path / f"{records.FILE}.xz"
    (tmp_path / "manifest.json").write_bytes((undisturbed / "manifest.json").read_bytes())
    packed.write_bytes(lzma.compress(b"".join(lines)))
    run(prepare(options), tmp_path, quiet())
    assert not (tmp_path / records.FILE).exists()
    packed.write_bytes(lzma.compress(b"".join(lines[:-1])))
    with pytest.raises(UserError, match="unpack them first"):
        run(prepare(options), tmp_path, quiet())


def test_two_processes_cannot_write_to_one_directory(options, tmp_path):
    with rundir.claimed(tmp_path), pytest.raises(UserError, match="another specbench is writing"):
        run(prepare(options), tmp_path, quiet())
    with rundir.claimed(tmp_path):
        pass


def test_another_machine_is_noticed(undisturbed, tmp_path):
    old = RunManifest.read(undisturbed)
    dataclasses.replace(old, environment={**old.environment, "cpu": "abacus"}).write(tmp_path)
    console = quiet()
    rundir.open_run(old, tmp_path, console)
    assert f"times may not compare: cpu abacus -> {old.environment['cpu']}" in console.file.getvalue()


def test_what_came_to_be_asked_later_does_not_move_older_runs():
    manifest = RunManifest.read(Path(__file__).parents[2] / "results/spec-bench-tiny-160m-cpu-fp32")
    assert manifest.fingerprint() == "ce92f5a4", "as it was before templates could be chosen"
    settings = dataclasses.replace(manifest.settings, system_prompt="Be brief.")
    assert dataclasses.replace(manifest, settings=settings).fingerprint() != "ce92f5a4"
