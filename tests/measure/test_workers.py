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
    but_for_times,
    children_of,
    crew_to_be_killed,
    forked,
    lines_of,
    quiet,
    run_by_two,
    until,
)

from methods.core.errors import UserError
from specbench.measure.progress import RunProgress
from specbench.measure.runner import run
from specbench.measure.session import prepare
from specbench.measure.workers import on_ray, processes, start
from specbench.measure.workers.start import started
from specbench.store import records
from specbench.store.manifest import RunManifest
from specbench.store.records import device_kind

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _forked(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # what the server of forks finds its imports by
    monkeypatch.setattr(processes, "CONTEXT", forked())


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    return worker_processes.small_options(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def alone(options, tmp_path_factory):
    """The records of a run in one process."""
    run_dir = tmp_path_factory.mktemp("alone")
    run(prepare(options), run_dir, quiet())
    return but_for_times(run_dir)


def workers_left() -> list[int]:
    return [child.pid for child in processes.multiprocessing.active_children()]


def test_two_workers_give_the_records_of_one(options, alone, tmp_path):
    run_by_two(options, tmp_path)
    assert but_for_times(tmp_path) == alone
    assert all(record.status == "ok" for record in alone)
    devices = {question: {r.device for r in records.read(tmp_path)[0] if r.question_id == question} for question, _, _ in QUESTIONS}
    assert all(len(of_question) == 1 for of_question in devices.values())
    assert len(set.union(*devices.values())) == 2
    assert len({device_kind(device) for (device,) in devices.values()}) == 1
    manifest = RunManifest.read(tmp_path)
    assert (manifest.status, manifest.environment["workers"], manifest.environment["threads"]) == ("complete", 2, 1)
    assert sorted(each["worker"] for each in manifest.prepared) == [0, 1]
    assert all(each["seconds"] > 0 and each["device"].endswith(f"#cpu worker {each['worker']}") for each in manifest.prepared)
    assert manifest.fingerprint() == prepare(options).manifest.fingerprint()
    assert "all 28 turns are measured" in run_by_two(options, tmp_path)
    assert not workers_left()


def test_a_killed_worker_loses_nothing_and_the_run_completes(options, alone, tmp_path, monkeypatch):
    suite = options.suite_file.read_bytes()
    (tmp_path / "suite.jsonl").write_bytes(suite)
    monkeypatch.setattr(processes, "serve", worker_processes.killed_once)
    said = run_by_two(replace(options, suite_file=tmp_path / "suite.jsonl"), tmp_path / "run")
    assert but_for_times(tmp_path / "run") == alone
    assert said.count("ended (killed by SIGKILL); another takes its place") == 1
    manifest = RunManifest.read(tmp_path / "run")
    assert manifest.status == "complete"
    assert len(manifest.prepared) == 3


def test_a_question_that_kills_its_worker_twice_becomes_error_rows(options, alone, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "serve", worker_processes.killed_each_time)
    run_by_two(options, tmp_path)
    found = but_for_times(tmp_path)
    assert [record.key for record in found] == [record.key for record in alone]
    failed = {record.key: record.error for record in found if record.status == "error"}
    assert [record for record in found if record.key not in failed] == [record for record in alone if record.key not in failed]
    assert DEADLY in failed
    assert {key[1] for key in failed} == {"n1"}
    assert ("pld", "n1", 0, 0) not in failed
    assert set(failed.values()) == {"2 workers ended over this question, the last one: killed by SIGKILL"}
    assert RunManifest.read(tmp_path).status == "complete"


def test_where_every_worker_ends_the_run_ends_and_resumes(options, alone, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "serve", worker_processes.killed_at_once)
    with pytest.raises(UserError, match=r"^5 workers ended and no question was finished .* killed by SIGKILL; everything measured is kept"):
        run_by_two(options, tmp_path)
    assert not workers_left()
    assert RunManifest.read(tmp_path).status == "interrupted"
    given_up = {record.question_id for record in records.read(tmp_path)[0]}
    assert len(given_up) == 2
    run(prepare(options), tmp_path, quiet())
    answered = [record for record in but_for_times(tmp_path) if record.question_id not in given_up]
    assert answered == [record for record in alone if record.question_id not in given_up]


def interrupt_after(turns: int, monkeypatch) -> None:
    seen = []

    def add(self, record) -> None:
        seen.append(record)
        if len(seen) == turns:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunProgress, "add", add)


@pytest.mark.parametrize("first", ["workers", "alone"])
def test_interrupted_and_resumed_by_another_number_of_workers(options, alone, tmp_path, monkeypatch, first):
    with monkeypatch.context() as patch:
        interrupt_after(6, patch)
        with pytest.raises(KeyboardInterrupt):
            run_by_two(options, tmp_path) if first == "workers" else run(prepare(options), tmp_path, quiet())
    assert not workers_left()
    assert 6 <= lines_of(tmp_path) <= 7, "at most the other worker's turn is kept too"
    assert RunManifest.read(tmp_path).status == "interrupted"
    run(prepare(options), tmp_path, quiet()) if first == "workers" else run_by_two(options, tmp_path)
    assert but_for_times(tmp_path) == alone
    assert RunManifest.read(tmp_path).status == "complete"


@pytest.mark.skipif(not os.access(f"/proc/self/task/{os.getpid()}/children", os.R_OK), reason="no list of child processes here")
def test_workers_of_a_killed_run_end_by_themselves(options, tmp_path):
    crew = forked().Process(target=crew_to_be_killed, args=(replace(options, max_new_tokens=200, repeats=50), tmp_path))
    crew.start()
    until(lambda: lines_of(tmp_path) >= 2)
    workers = children_of(crew.pid)
    os.kill(crew.pid, signal.SIGKILL)
    crew.join()
    assert len(workers) == 2
    until(lambda: not any(map(alive, workers)), 10)


def test_what_a_worker_refuses_is_the_runs_one_line(options, tmp_path):
    with pytest.raises(UserError, match=r"^unknown target 'tiny-7bb'; did you mean 'tiny-7b'"):
        run_by_two(replace(options, target="tiny-7bb"), tmp_path)
    assert not workers_left()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("workers", "address", "change", "said"),
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
def test_what_cannot_be_is_said_before_a_worker_starts(options, monkeypatch, workers, address, change, said):
    monkeypatch.setattr(processes.Processes, "start", lambda self, index: pytest.fail("a worker was started"))
    with pytest.raises(UserError, match=said), started(replace(options, **change), workers, address, quiet()):
        pass


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("recycling:scope=session", r"^recycling:scope=session: state that outlives a question is not shared by workers"),
        ("endpoint", "endpoint asks one server"),
    ],
)
def test_what_cannot_be_shared_is_refused(options, method, said):
    start._checked(replace(options, methods=["recycling", "hf-generate"]))
    with pytest.raises(UserError, match=said):
        start._checked(replace(options, methods=[method]))


def test_without_ray_there_is_one_line(options, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'specbench\[ray\]'"), started(options, 2, "local", quiet()):
        pass


def cluster(*nodes, init=lambda *asked, **named: None):
    resources = [{"Alive": True, "Resources": node} for node in nodes]
    nodes = [*resources, {"Alive": False, "Resources": {"CPU": 99, "GPU": 99}}]
    return SimpleNamespace(init=init, nodes=lambda: nodes, shutdown=nodes.clear, __version__="2")


def unreachable(*asked, **named):
    raise ConnectionError("Could not find any running Ray instance.\nPlease start one")


def test_where_nothing_answers_ray_is_not_asked(options, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", cluster(init=lambda *asked, **named: pytest.fail("it would wait")))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with (
        pytest.raises(UserError, match=rf"no Ray cluster at 127.0.0.1:{port} \(.*refused"),
        started(options, 2, f"127.0.0.1:{port}", quiet()),
    ):
        pass


@pytest.mark.parametrize(
    ("ray", "said"),
    [
        (cluster({"CPU": 2}, {"CPU": 1}), "--workers 4 on the Ray cluster at there, which has 3 CPUs: each needs one"),
        (cluster({"CPU": 64, "GPU": 3}), "--workers 4 on the Ray cluster at there, which has 3 GPUs: each needs one"),
        (cluster(init=unreachable), r"no Ray cluster at there \(Could not find any running Ray instance. Please start one\)"),
    ],
)
def test_a_cluster_that_will_not_do_is_one_line(options, monkeypatch, ray, said):
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(UserError, match=said), started(replace(options, device=None), 4, "there", quiet()):
        pass
    assert not ray.nodes() or ray.init is unreachable


@pytest.mark.parametrize(("cpus", "workers", "share"), [([4, 4], 2, 4), ([4, 3], 3, 2), ([3, 3], 3, 1), ([1], 2, 0), ([], 2, 0)])
def test_a_workers_cpus_are_of_one_machine(cpus, workers, share):
    assert on_ray._share(cpus, workers) == share
