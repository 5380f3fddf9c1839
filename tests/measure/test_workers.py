"""Runs measured by worker processes: their records, workers that die, interrupts, and refused settings."""

import os
import signal
import socket
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers import worker_processes
from helpers.tiny_target import QUESTIONS
from helpers.worker_processes import (
    DEADLY,
    alive,
    children_of,
    count_records,
    forked,
    quiet,
    records_without_times,
    run_by_two,
    run_to_be_killed,
    wait_until,
)

from methods.core.errors import UserError
from specbench.measure.progress import RunProgress
from specbench.measure.runner import LocalExecutor, run
from specbench.measure.session import prepare
from specbench.measure.workers import driver, on_ray, processes
from specbench.measure.workers.driver import started
from specbench.store import records
from specbench.store.manifest import RunManifest
from specbench.store.records import device_kind

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def forked_workers(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # the fork server finds its imports by it
    monkeypatch.setattr(processes, "CONTEXT", forked())


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return worker_processes.small_config(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def expected(config, tmp_path_factory):
    """Return the records of the same run in one process."""
    run_dir = tmp_path_factory.mktemp("local")
    run(LocalExecutor(prepare(config)), run_dir, quiet())
    return records_without_times(run_dir)


def running_workers() -> list[int]:
    return [child.pid for child in processes.multiprocessing.active_children() if child.pid]


def test_two_workers_give_the_same_records_as_one_process(config, expected, tmp_path):
    run_by_two(config, tmp_path)
    assert records_without_times(tmp_path) == expected
    assert all(record.status == "ok" for record in expected)
    devices = {question: {r.device for r in records.read(tmp_path)[0] if r.question_id == question} for question, _, _ in QUESTIONS}
    assert all(len(of_question) == 1 for of_question in devices.values())
    assert len(set.union(*devices.values())) == 2
    assert len({device_kind(device) for (device,) in devices.values()}) == 1
    manifest = RunManifest.read(tmp_path)
    assert (manifest.status, manifest.environment.workers, manifest.environment.threads) == ("complete", 2, 1)
    assert sorted((one.worker for one in manifest.prepared), key=str) == [0, 1]
    assert all(one.seconds > 0 and one.device.endswith(f"#cpu worker {one.worker}") for one in manifest.prepared)
    assert manifest.fingerprint() == prepare(config).manifest.fingerprint()
    assert "all 28 turns are measured" in run_by_two(config, tmp_path)
    assert not running_workers()


def test_run_completes_without_loss_after_a_worker_is_killed(config, expected, tmp_path, monkeypatch):
    suite = config.suite_file.read_bytes()
    (tmp_path / "suite.jsonl").write_bytes(suite)
    monkeypatch.setattr(processes, "serve", worker_processes.killed_once)
    printed = run_by_two(replace(config, suite_file=tmp_path / "suite.jsonl"), tmp_path / "run")
    assert records_without_times(tmp_path / "run") == expected
    assert printed.count("ended (killed by SIGKILL); another takes its place") == 1
    manifest = RunManifest.read(tmp_path / "run")
    assert manifest.status == "complete"
    assert len(manifest.prepared) == 3


def test_question_that_kills_its_worker_twice_becomes_error_records(config, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "serve", worker_processes.killed_each_time)
    run_by_two(config, tmp_path)
    found = records_without_times(tmp_path)
    assert [record.key for record in found] == [record.key for record in expected]
    failed = {record.key: record.error for record in found if record.status == "error"}
    assert [record for record in found if record.key not in failed] == [record for record in expected if record.key not in failed]
    assert DEADLY in failed
    assert {key[1] for key in failed} == {"n1"}
    assert ("pld", "n1", 0, 0) not in failed
    assert set(failed.values()) == {"2 workers ended over this question, the last one: killed by SIGKILL"}
    assert RunManifest.read(tmp_path).status == "complete"


def test_run_whose_workers_all_die_ends_and_can_be_resumed(config, expected, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "serve", worker_processes.killed_at_once)
    with pytest.raises(UserError, match=r"^5 workers ended and no question was finished .* killed by SIGKILL; everything measured is kept"):
        run_by_two(config, tmp_path)
    assert not running_workers()
    assert RunManifest.read(tmp_path).status == "interrupted"
    given_up = {record.question_id for record in records.read(tmp_path)[0]}
    assert len(given_up) == 2
    run(LocalExecutor(prepare(config)), tmp_path, quiet())
    answered = [record for record in records_without_times(tmp_path) if record.question_id not in given_up]
    assert answered == [record for record in expected if record.question_id not in given_up]


def interrupt_after(turns: int, monkeypatch) -> None:
    seen = []

    def add(self, record) -> None:
        seen.append(record)
        if len(seen) == turns:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunProgress, "add", add)


@pytest.mark.parametrize("first", ["workers", "local"])
def test_interrupted_run_is_resumed_by_another_number_of_workers(config, expected, tmp_path, monkeypatch, first):
    with monkeypatch.context() as patch:
        interrupt_after(6, patch)
        with pytest.raises(KeyboardInterrupt):
            run_by_two(config, tmp_path) if first == "workers" else run(LocalExecutor(prepare(config)), tmp_path, quiet())
    assert not running_workers()
    assert 6 <= count_records(tmp_path) <= 7, "at most the other worker's turn is kept too"
    assert RunManifest.read(tmp_path).status == "interrupted"
    run(LocalExecutor(prepare(config)), tmp_path, quiet()) if first == "workers" else run_by_two(config, tmp_path)
    assert records_without_times(tmp_path) == expected
    assert RunManifest.read(tmp_path).status == "complete"


@pytest.mark.skipif(not os.access(f"/proc/self/task/{os.getpid()}/children", os.R_OK), reason="no list of child processes here")
def test_workers_end_when_their_parent_is_killed(config, tmp_path):
    parent = forked().Process(target=run_to_be_killed, args=(replace(config, max_new_tokens=200, repeats=50), tmp_path))
    parent.start()
    assert parent.pid is not None
    wait_until(lambda: count_records(tmp_path) >= 2)
    workers = children_of(parent.pid)
    os.kill(parent.pid, signal.SIGKILL)
    parent.join()
    assert len(workers) == 2
    wait_until(lambda: not any(map(alive, workers)), 10)


def test_user_error_in_a_worker_is_raised_by_the_run(config, tmp_path):
    with pytest.raises(UserError, match=r"^unknown target 'tiny-7bb'; did you mean 'tiny-7b'"):
        run_by_two(replace(config, target="tiny-7bb"), tmp_path)
    assert not running_workers()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("workers", "address", "change", "message"),
    [
        (None, "local", {}, "add --workers N"),
        (1, None, {}, "--workers is 1; it must be at least 2"),
        (2, None, {"device": "cuda:1"}, "--device cuda:1 with --workers: .*; choices: cpu, cuda"),
        (999, None, {}, r"--workers 999 on \d+ CPU cores"),
        (999, None, {"device": "cuda"}, r"--workers 999 needs as many GPUs, torch sees \d+"),
        (2, None, {"device_map": "auto"}, "--device-map spreads one target"),
        (2, None, {"methods": ["pdl"]}, "unknown method 'pdl'"),
        (2, None, {"categories": ["numbrs"]}, "unknown category"),
    ],
)
def test_wrong_settings_are_refused_before_a_worker_starts(config, monkeypatch, workers, address, change, message):
    monkeypatch.setattr(processes.ProcessPool, "start", lambda self, index: pytest.fail("a worker was started"))
    with pytest.raises(UserError, match=message), started(replace(config, **change), workers, address, quiet()):
        pass


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("recycling:scope=session", r"^recycling:scope=session: state that outlives a question is not shared by workers"),
        ("endpoint", "endpoint asks one server"),
    ],
)
def test_arms_that_workers_cannot_share_are_refused(config, method, message):
    driver.check_shareable(replace(config, methods=["recycling", "hf-generate"]), "cpu")
    with pytest.raises(UserError, match=message):
        driver.check_shareable(replace(config, methods=[method]), "cpu")


def test_missing_ray_is_a_user_error(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'specbench\[ray\]'"), started(config, 2, "local", quiet()):
        pass


def cluster(*nodes, init=lambda *asked, **named: None):
    resources = [{"Alive": True, "Resources": node} for node in nodes]
    listed = [*resources, {"Alive": False, "Resources": {"CPU": 99, "GPU": 99}}]
    return SimpleNamespace(init=init, nodes=lambda: listed, shutdown=listed.clear, __version__="2")


def unreachable(*asked, **named):
    raise ConnectionError("Could not find any running Ray instance.\nPlease start one")


def test_ray_is_not_called_if_nothing_answers_at_the_address(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", cluster(init=lambda *asked, **named: pytest.fail("it would wait")))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with (
        pytest.raises(UserError, match=rf"no Ray cluster at 127.0.0.1:{port} \(.*refused"),
        started(config, 2, f"127.0.0.1:{port}", quiet()),
    ):
        pass


@pytest.mark.parametrize(
    ("ray", "message"),
    [
        (cluster({"CPU": 2}, {"CPU": 1}), "--workers 4 on the Ray cluster at there, which has 3 CPUs: each needs one"),
        (cluster({"CPU": 64, "GPU": 3}), "--workers 4 on the Ray cluster at there, which has 3 GPUs: each needs one"),
        (cluster(init=unreachable), r"no Ray cluster at there \(Could not find any running Ray instance. Please start one\)"),
    ],
)
def test_unsuitable_cluster_is_a_user_error(config, monkeypatch, ray, message):
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(UserError, match=message), started(replace(config, device=""), 4, "there", quiet()):
        pass
    assert not ray.nodes() or ray.init is unreachable


@pytest.mark.parametrize(("cpus", "workers", "share"), [([4, 4], 2, 4), ([4, 3], 3, 2), ([3, 3], 3, 1), ([1], 2, 0), ([], 2, 0)])
def test_cpus_of_a_worker_are_on_one_machine(cpus, workers, share):
    assert on_ray.cpus_per_worker(cpus, workers) == share
