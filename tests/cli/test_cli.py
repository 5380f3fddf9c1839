"""The commands run, resume, report, methods, targets and claims as a user calls them, and their errors and exit codes."""

import importlib.metadata
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.scripted_records import turn, write_run
from helpers.tiny_target import QUESTIONS, write_suite, write_target
from transformers import AutoTokenizer

from specbench.claims.claim import load_claims
from specbench.cli import app, common
from specbench.cli import run as run_command
from specbench.measure.measurer import Measurer
from specbench.store import records
from specbench.store.manifest import ImportSource, RunManifest
from specbench.store.records import Record
from specbench.util.exits import TURNS_FAILED

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def target(tmp_path_factory) -> Path:
    return write_target(tmp_path_factory.mktemp("target"))


@pytest.fixture
def base(target, tmp_path, monkeypatch) -> list[str]:
    """Return the arguments of a valid run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(common.console, "_width", 200)
    suite = write_suite(tmp_path / "suite.jsonl")
    return ["run", "--target", str(target), "--method", "pld", "--suite-file", str(suite), "--device", "cpu", "--max-new-tokens", "8"]


def ended(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        app.main(arguments)
    return int(end.value.code or 0)


def complaint(arguments: list[str], capsys) -> str:
    """Return the single line that wrong arguments print."""
    assert ended(arguments) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    return errors


def test_run_measures_reports_and_does_nothing_the_second_time(base, tmp_path, capsys):
    assert ended(base) == 0
    shown = capsys.readouterr().out
    (run_dir,) = (tmp_path / "results").iterdir()
    assert run_dir.name.startswith("file-")
    assert f"report: results/{run_dir.name}/report" in shown
    assert (run_dir / "report" / "report.md").is_file()
    before = (run_dir / records.FILE).read_bytes()
    manifest = RunManifest.read(run_dir)
    assert list(manifest.arms) == ["vanilla", "pld"]
    assert before.count(b"\n") == 2 * sum(len(turns) for _, _, turns in QUESTIONS)
    assert ended(base) == 0
    assert "all 14 turns are measured" in capsys.readouterr().out
    assert (run_dir / records.FILE).read_bytes() == before
    assert ended([*base, "--seed", "1"]) == 0
    assert len(list((tmp_path / "results").iterdir())) == 2


def test_aa_runs_an_arm_twice(base, target, tmp_path, capsys):
    out = tmp_path / "mine"
    assert ended([*base, "--out", str(out), "--aa", "pld", "--set", "pld.nodes=3"]) == 0
    manifest = RunManifest.read(out)
    assert list(manifest.arms) == ["vanilla", "pld", "pld#2"]
    assert manifest.arms["pld#2"].config == manifest.arms["pld"].config == {"max_ngram": 3, "nodes": 3}
    found = {record.key: record for record in records.read(out)[0]}
    pairs = [(record, found["pld#2", *key[1:]]) for key, record in found.items() if key[0] == "pld"]
    assert len(pairs) == sum(len(turns) for _, _, turns in QUESTIONS)
    assert all(one.output_ids == two.output_ids and one.steps.accepted == two.steps.accepted for one, two in pairs)
    read_back = AutoTokenizer.from_pretrained(target)
    assert [one.text_tokens for one, _ in pairs] == [len(read_back.encode(one.output_text.strip())) for one, _ in pairs]
    lines = (out / records.FILE).read_bytes().splitlines(keepends=True)
    (out / records.FILE).write_bytes(b"".join(lines[:5]))
    assert ended(["resume", str(out)]) == 0
    assert (out / records.FILE).read_bytes().count(b"\n") == len(lines)
    assert "unknown method 'pdl'" in complaint([*base, "--aa", "pdl"], capsys)


def test_resume_and_report_of_a_run_directory(base, tmp_path, capsys):
    out = tmp_path / "mine"
    assert ended([*base, "--out", str(out), "--set", "pld.nodes=3"]) == 0
    lines = (out / records.FILE).read_bytes().splitlines(keepends=True)
    (out / records.FILE).write_bytes(b"".join(lines[:5]))
    assert ended(["resume", str(out)]) == 0
    assert (out / records.FILE).read_bytes().startswith(b"".join(lines[:5]))
    assert (out / records.FILE).read_bytes().count(b"\n") == len(lines)
    assert RunManifest.read(out).arms["pld"].config["nodes"] == 3
    assert ended(["report", str(out), "--out", str(tmp_path / "elsewhere")]) == 0
    assert (tmp_path / "elsewhere" / "report.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--method", "medsua"], ["unknown method 'medsua'", "did you mean 'medusa'?"]),
        (["--target", "tiny-7bb"], ["unknown target 'tiny-7bb'", "did you mean 'tiny-7b'?"]),
        (["--suite", "mimi", "--suite-file="], ["unknown suite 'mimi'", "did you mean 'mini'?"]),
        (["--categories", "letters,numbrs"], ["unknown category", "did you mean 'numbers'?"]),
        (["--set", "noodles=3"], ["unknown option in --set 'noodles'", "did you mean 'nodes'?"]),
        (["--set", "pld.noodles=3"], ["unknown option of pld 'noodles'", "choices: acceptance, backend, max_ngram, nodes"]),
        (["--set", "eagle.nodes=3"], ["unknown arm in --set 'eagle'", "choices: pld, vanilla"]),
        (["--set", "nodes"], ["--set 'nodes' is not KEY=VALUE"]),
        (["--set", "nodes=many"], ["pld's nodes is 'many'", "whole number"]),
        (["--set", "acceptance=macth"], ["did you mean 'match'?"]),
        (["--turns", "their"], ["unknown value of --turns 'their'"]),
        (["--attention", "flash"], ["unknown attention 'flash'"]),
        (["--backend", "statik"], ["unknown backend 'statik'", "did you mean 'static'?"]),
        (["--set", "backend=eager"], ["--set 'backend=eager': the back end of all arms is --backend"]),
        (["--method", "pld:backend=graph"], ["unknown value of pld's backend 'graph'", "choices: eager, static"]),
        (["--dtype", "bf61"], ["unknown dtype 'bf61'", "did you mean 'bf16'?"]),
        (["--device", "cuda"], ["cuda"]),
        (["--device", "tpu"], ["unknown device 'tpu'"]),
        (["--limit", "0"], ["limit 0 is below 1"]),
        (["--repeats", "0"], ["--repeats is 0; it must be at least 1"]),
        (["--temperature", "-1"], ["--temperature is -1.0"]),
        (["--temperature", "nan"], ["--temperature is nan"]),
        (["--top-k", "-1"], ["--top-k is -1; it must be at least 0"]),
        (["--top-p", "0"], ["--top-p is 0.0; it must be above 0"]),
        (["--top-p", "nan"], ["--top-p is nan"]),
        (["--top-k", "3"], ["--top-k 3 has no effect at temperature 0; leave it out, or sample with --temperature"]),
        (["--top-k", "3", "--top-p", "0.5"], ["--top-k 3 --top-p 0.5 has no effect at temperature 0"]),
        (
            ["--temperature", "1", "--top-p", "0.9", "--set", "acceptance=typical"],
            ["--top-p 0.9 has no meaning for the rule typical of pld"],
        ),
        (["--temperature", "1", "--top-k", "3", "--method", "endpoint"], ["--top-k 3 does not reach endpoint"]),
        (["--max-new-tokens", "0"], ["--max-new-tokens is 0"]),
        (["--suite-file", "absent.jsonl"], ["absent.jsonl does not exist"]),
        (["--method", "s4c"], ["s4c needs trained s4c weights"]),
        (["--hf-column", "turns"], ["--hf-column 'turns' is not NAME=VALUE"]),
        (["--out", "suite.jsonl/here"], ["cannot write to suite.jsonl/here", "choose another --out"]),
        (["--out", "/proc/here"], ["cannot write to /proc/here"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and value[0].startswith("--") else "",
)
def test_wrong_arguments_print_one_line_and_write_nothing(base, tmp_path, capsys, arguments, parts):
    if arguments[-1] == "cuda" and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    if "--suite-file=" in arguments:
        index = base.index("--suite-file")
        base, arguments = base[:index] + base[index + 2 :], arguments[:-1]
    line = complaint([*base, *arguments], capsys)
    assert all(part in line for part in parts), line
    assert [path.name for path in tmp_path.iterdir()] == ["suite.jsonl"]


def test_directory_of_another_run_is_not_changed(base, tmp_path, capsys):
    out = tmp_path / "mine"
    assert ended([*base, "--out", str(out)]) == 0
    before = (out / records.FILE).read_bytes()
    capsys.readouterr()
    assert "max_new_tokens 8 -> 9" in complaint([*base, "--out", str(out), "--max-new-tokens", "9"], capsys)
    facts = json.loads((out / "manifest.json").read_text())
    (out / "manifest.json").write_text(json.dumps({**facts, "schema": 9}))
    assert "schema version 9" in complaint([*base, "--out", str(out)], capsys)
    assert "schema version 9" in complaint(["resume", str(out)], capsys)
    assert (out / records.FILE).read_bytes() == before


def test_resume_and_report_of_a_missing_run_are_refused(tmp_path, capsys):
    assert "holds no manifest.json" in complaint(["resume", str(tmp_path)], capsys)
    assert "does not exist" in complaint(["report", str(tmp_path / "none")], capsys)
    assert "say where it goes: --out DIR" in complaint(["report", str(tmp_path), str(tmp_path)], capsys)


def test_imported_and_incomplete_directories_are_not_resumed(base, tmp_path, capsys):
    imported = write_run(tmp_path / "imported", [], imported=[ImportSource("vanilla", "a.jsonl", "0" * 64, [])])
    assert "imported, not measured here" in complaint(["resume", str(imported)], capsys)
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / f"{records.FILE}.xz").write_bytes(b"")
    assert "but no manifest.json" in complaint([*base, "--out", str(tmp_path / "packed")], capsys)


def test_damaged_records_print_one_line(tmp_path, capsys):
    run = write_run(tmp_path / "run", [turn("vanilla", "a", [0])])
    for damaged in (b"null\n", b"5\n", (run / records.FILE).read_bytes() * 2):
        (run / records.FILE).write_bytes(damaged)
        assert f"{run / records.FILE}" in complaint(["report", str(run)], capsys)
    (run / records.FILE).unlink()
    (run / f"{records.FILE}.xz").write_bytes(b"\xfd7zXZ\x00torn")
    assert "cannot be unpacked" in complaint(["report", str(run)], capsys)
    (run / records.FILE).mkdir()
    assert "cannot be unpacked" in complaint(["report", str(run)], capsys)
    (run / f"{records.FILE}.xz").unlink()
    assert "is no file" in complaint(["report", str(run)], capsys)


def test_failed_turns_have_an_exit_code_until_they_are_measured_again(base, tmp_path, capsys, monkeypatch):
    attempt = Measurer.attempt

    def failing(self, unit, max_new_tokens):
        if unit.key == ("pld", "n2", 0, 0):
            return Record("pld", "n2", unit.question.category, 0, 0, "error", error="out of memory")
        return attempt(self, unit, max_new_tokens)

    monkeypatch.setattr(run_command, "write_report", lambda *arguments, **options: None)
    failure = "1 of 14 turns failed: pld 1 of 7; measure them again with: specbench resume mine --retry-errors\n"
    with monkeypatch.context() as patch:
        patch.setattr(Measurer, "attempt", failing)
        assert ended([*base, "--out", "mine"]) == TURNS_FAILED
    assert capsys.readouterr().err == failure
    assert RunManifest.read(Path("mine")).status == "complete"
    assert ended(["resume", "mine"]) == TURNS_FAILED
    assert capsys.readouterr().err == failure
    assert ended(["resume", "mine", "--retry-errors"]) == 0
    assert "mine: dropped 1 failed turn(s); they are measured again" in capsys.readouterr().out
    assert all(record.status == "ok" for record in records.read(Path("mine"))[0])


def test_ctrl_c_prints_the_command_that_resumes(base, tmp_path, capsys, monkeypatch):
    def interrupted(executor, run_dir, console, retry_errors) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("specbench.measure.runner.run", interrupted)
    assert ended([*base, "--out", "mine"]) == 130
    assert capsys.readouterr().err == "interrupted; resume with: specbench resume mine\n"


def test_internal_error_has_its_own_exit_code(monkeypatch, capsys):
    monkeypatch.setattr("specbench.cli.app.app", lambda args: 1 / 0)
    assert ended(["verify"]) == 70
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_claims_are_listed_with_what_is_built(monkeypatch, capsys):
    monkeypatch.setattr(common.console, "_width", 200)
    monkeypatch.setitem(load_claims(), "absent", replace(load_claims()["confu"], name="absent", arm="no-such-method"))
    assert ended(["claims"]) == 0
    lines = {line.split()[0]: " ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert lines["absent"] == "absent no-such-method eagle3 speedup 1.08x-1.11x not built here"
    assert lines["s4c"] == "s4c s4c vanilla speedup 2.26x-2.60x built"


def test_methods_and_targets_are_listed(base, capsys):
    assert ended(["methods"]) == 0
    shown = capsys.readouterr().out
    assert "S4C (reconstruction)" in shown
    assert "max_ngram" in shown
    assert ended(["targets"]) == 0
    assert "tiny-7b" in capsys.readouterr().out


def test_a_run_started_with_relative_paths_is_resumed_from_another_folder(target, base, tmp_path, monkeypatch, capsys):
    (tmp_path / "own").symlink_to(target)
    relative = [text.replace(str(target), "own").replace(f"{tmp_path}/", "") for text in base]
    assert ended([*relative, "--out", "mine"]) == 0
    lines = (tmp_path / "mine" / records.FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / "mine" / records.FILE).write_bytes(b"".join(lines[:-2]))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert ended(["resume", str(tmp_path / "mine")]) == 0
    assert (tmp_path / "mine" / records.FILE).read_bytes().count(b"\n") == len(lines)
    (tmp_path / "own").unlink()
    assert f"target folder {tmp_path}/own does not exist" in complaint(["resume", str(tmp_path / "mine")], capsys)


@pytest.mark.parametrize("written", [["--out", "~/mine"], ["--out=~/mine"]])
def test_a_path_in_the_home_folder_is_found(base, tmp_path, capsys, monkeypatch, written):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "suite.jsonl").rename(tmp_path / "home" / "suite.jsonl")
    base = ["--suite-file=~/suite.jsonl" if "suite" in text else text for text in base if text != "--suite-file"]
    seen = []
    monkeypatch.setattr("specbench.cli.run.measure", lambda config, out, *rest: seen.append((config.suite_file, out, config.system_prompt)))
    app_ended = ended([*base, *written, "--system-prompt", "~/ is home"])
    assert app_ended == 0
    assert seen == [(tmp_path / "home" / "suite.jsonl", tmp_path / "home" / "mine", "~/ is home")]


@pytest.mark.parametrize("option", ["--target", "--dtype", "--device", "--out", "--aa", "--suite-file", "--method", "--stop", "--template"])
def test_an_empty_text_is_refused(base, tmp_path, capsys, option):
    for written in ([option, ""], [f"{option}="]):
        assert complaint([*base, *written], capsys) == f"error: {option} is empty; give it a value or leave it out\n"
    assert [path.name for path in tmp_path.iterdir()] == ["suite.jsonl"]


def test_a_terminal_of_another_encoding_gets_signs_for_what_it_lacks():
    code = "import specbench.cli.app as cli; cli.main(['run', '--help'])"
    for encoding in ("ascii", "latin-1"):
        environment = os.environ | {"PYTHONIOENCODING": encoding, "COLUMNS": "40"}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
        assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("given", "expected"), [({}, "None 1000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE None"), ({"GOMP_SPINCOUNT": "7"}, "None 7")]
)
def test_thread_waiting_is_configured_before_torch_is_imported(given, expected):
    code = (
        "import os, sys, specbench.cli.app as cli; assert 'torch' not in sys.modules\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules; print(*map(os.environ.get, ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')))"
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment | given, check=True)
    assert done.stdout.splitlines()[-1] == expected


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as end:
        app.main(["--version"])
    assert not end.value.code
    assert capsys.readouterr().out == f"specbench {importlib.metadata.version('specbench')}\n"
