"""Devices in records and reports: ratios are formed within one kind of device only."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.edited_runs import without_digests
from helpers.gated_runs import answers, call
from helpers.gated_runs import run as gated_run
from helpers.scripted_records import failed, frame, turn, write_run

from specbench.analysis.frames import pair
from specbench.analysis.metrics import measure
from specbench.report import findings, tables
from specbench.report.run import load_runs
from specbench.store import records
from specbench.store.manifest import Start
from specbench.store.records import Record, device_kind
from specbench.util import environment
from specbench.util.environment import Environment, GitState

OLD, NEW = "NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3"
BOTH = ("vanilla", "medusa")


def turns_on(question: str, *devices: str, repeat: int = 0) -> list[Record]:
    """Return a turn of both arms on each device; the second arm's steps take twice as long."""
    half = {"vanilla": (0.0, 0.010, 0.0), "medusa": (0.0, 0.020, 0.0)}
    return [
        replace(turn(arm, question, [1] * 4, number=number, repeat=repeat, step_s=half[arm]), device=device)
        for number, device in enumerate(devices)
        for arm in BOTH
    ]


def test_a_question_on_two_kinds_of_device_is_left_out_and_counted():
    one = [*turns_on("q1", f"{OLD} #GPU-1"), *turns_on("q2", f"{NEW} #GPU-2")]
    resumed = turns_on("q3", f"{OLD} #GPU-1", f"{NEW} #GPU-2")
    torn = turns_on("q4", f"{OLD} #GPU-1")
    torn[1] = replace(torn[1], device=f"{NEW} #GPU-2", total_s=0.001 + torn[1].total_s)
    both = pair(frame(one + resumed + torn), "medusa")
    assert (both.failed, both.mixed, both.excluded) == (0, 2, 2)
    assert set(both.arm["question_id"]) == set(both.reference["question_id"]) == {"q1", "q2"}
    row, clean = measure(frame(one + resumed + torn), "medusa"), measure(frame(one), "medusa")
    assert row["speedup"] == pytest.approx(clean["speedup"])
    assert (row["excluded_questions"], row["mixed_questions"]) == (2, 2)
    assert measure(frame(resumed), "medusa")["questions"] == 0


def test_devices_of_one_kind_are_compared_and_repeats_may_use_others():
    rows = [*turns_on("q1", f"{OLD} #GPU-1", f"{OLD} #GPU-2"), *turns_on("q2", f"{OLD} #GPU-1"), *turns_on("q2", f"{NEW} #GPU-3", repeat=1)]
    assert pair(frame(rows), "medusa").excluded == 0
    assert pair(frame(rows[:0]), "medusa").excluded == 0


def test_a_failed_question_is_counted_once():
    rows = [*turns_on("q1", f"{OLD} #GPU-1", f"{NEW} #GPU-2"), *turns_on("q2", f"{OLD} #GPU-1"), failed("medusa", "q1", number=2)]
    both = pair(frame(rows), "medusa")
    assert (both.failed, both.mixed) == (1, 0)


def test_the_kind_of_a_cpu_is_its_model_threads_and_workers(monkeypatch):
    monkeypatch.setattr(environment, "cpu_model", lambda: "A CPU")
    cpu, threads = torch.device("cpu"), torch.get_num_threads()
    assert environment.device_id(cpu) == f"A CPU, {threads} threads #cpu"
    first, second = (environment.device_id(cpu, index, 2) for index in (0, 1))
    assert first == f"A CPU, {threads} threads, 2 workers #cpu worker 0"
    assert first != second
    kinds = {device_kind(device) for device in (environment.device_id(cpu), first, second, environment.device_id(cpu, 0, 3))}
    assert len(kinds) == 3


def test_a_cuda_device_is_named_by_model_and_uuid(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(name=NEW, uuid="01-ab"))
    assert environment.device_id(torch.device("cuda"), 1, 2) == f"{NEW} #GPU-01-ab"
    assert device_kind(f"{NEW} #GPU-01-ab") == NEW


def test_merged_environments_list_all_values_where_they_differ():
    ours, theirs = Environment(gpu=NEW, threads=8), Environment(gpu=OLD, threads=8)
    assert environment.merge_environments([ours, theirs]) == Environment(gpu=f"{OLD}, {NEW}", threads=8, driver=None)


def test_older_records_have_no_device(tmp_path):
    run = without_digests(write_run(tmp_path / "run", [turn("vanilla", "q1", [0])]))
    line = (run / records.FILE).read_text()
    (run / records.FILE).write_text(line.replace(',"device":""', ""))
    assert "device" not in (run / records.FILE).read_text()
    assert records.read(run)[0][0].device == ""


def caveats_of(folder, rows, workers=1, device="cuda", resumed=()) -> list[str]:
    environments = {"environment": {"gpu": NEW, "threads": 1, **({"workers": workers} if workers > 1 else {})}}
    run_dir = write_run(
        folder, rows, methods={"vanilla": "Vanilla", "medusa": "Medusa"}, settings={"device": device}, resumed=list(resumed), **environments
    )
    return findings.caveats(load_runs([run_dir])[0])


def test_the_report_names_the_devices_of_the_run(tmp_path):
    one, other = f"{NEW} #GPU-1", f"{NEW} #GPU-2"
    shared = caveats_of(tmp_path / "a", [*turns_on("q1", one), *turns_on("q2", other)], workers=2)
    assert any(line.startswith("Measured on 2 devices by up to 2 worker(s) at a time") for line in shared)
    assert any(line.startswith("Batch size 1, one target in each worker.") for line in shared)
    assert not any("kinds" in line for line in shared)
    alone = caveats_of(tmp_path / "b", turns_on("q1", one))
    assert not any("evices" in line or "worker" in line for line in alone)
    moved = caveats_of(
        tmp_path / "c", [*turns_on("q1", one), *turns_on("q2", other)], resumed=[Start("later", Environment(gpu=NEW), GitState(), [])]
    )
    assert any(line.startswith("Measured on 2 devices by up to 1 worker(s)") for line in moved)
    cpus = caveats_of(tmp_path / "d", turns_on("q1", "A CPU, 1 threads, 2 workers #cpu worker 0"), workers=2, device="cpu")
    assert any(line.startswith("Measured by 2 processes on CPUs. Processes on one machine share its memory bandwidth") for line in cpus)


def test_the_report_counts_questions_on_mixed_devices(tmp_path):
    rows = [*turns_on("q1", f"{OLD} #GPU-1"), *turns_on("q2", f"{NEW} #GPU-2"), *turns_on("q3", f"{OLD} #GPU-1", f"{NEW} #GPU-2")]
    lines = caveats_of(tmp_path / "mixed", [*rows, *turns_on("q4", f"{OLD} #GPU-1"), failed("medusa", "q4", number=1)])
    left_out = "1 question(s) with a failed turn and 1 question(s) whose turns ran on devices of different kinds left out of both arms."
    assert f"Medusa: {left_out}" in lines
    assert f"Devices of 2 kinds, {OLD}: 3 question(s); {NEW}: 2 question(s). " in next(line for line in lines if "kinds," in line)
    table = tables.headline(load_runs([tmp_path / "mixed"])[0].comparison, {name: name for name in BOTH}, tables.FULL, "")
    assert table.rows[1][table.headers.index("Left out")] == "2"


def test_the_gate_compares_only_runs_of_one_kind_and_worker_count(tmp_path):
    rows = answers()
    on: dict[str, Any] = {"environment": {"gpu": NEW, "torch": "2.13", "python": "3.11"}}
    base = gated_run(tmp_path / "base", [replace(row, device=f"{NEW} #GPU-1") for row in rows], **on)
    kinds = np.where(np.arange(len(rows)) < len(rows) // 2, OLD, NEW)
    mixed = gated_run(tmp_path / "mixed", [replace(row, device=f"{kind} #GPU-1") for row, kind in zip(rows, kinds, strict=True)], **on)
    code, line = call("check", mixed, "--baseline", base)
    assert code == 2
    assert f"was measured on devices of 2 kinds ({OLD}; {NEW})" in line
    on["environment"]["workers"] = 2
    shared = gated_run(tmp_path / "shared", rows, **on)
    code, line = call("check", shared, "--baseline", base)
    assert code == 2
    assert "workers none -> 2" in line
    assert call("check", shared, "--baseline", shared)[0] == call("check", base, "--baseline", base)[0] == 0
