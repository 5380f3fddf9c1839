"""A run measured by actors of a Ray cluster that is started here."""

import os
import signal

import pytest
import torch
from helpers.consoles import printed
from helpers.worker_processes import quiet, records_without_times, small_config

from specbench.measure.progress import RunProgress
from specbench.measure.runner import LocalExecutor, run
from specbench.measure.session import prepare
from specbench.measure.workers.driver import started
from specbench.measure.workers.on_ray import RayPool
from specbench.store import records
from specbench.store.manifest import RunManifest

ray = pytest.importorskip("ray")
torch.set_num_threads(1)


@pytest.mark.slow
def test_local_ray_cluster_gives_the_same_records_as_one_process_even_if_an_actor_is_killed(tmp_path, monkeypatch):
    config = small_config(tmp_path)
    run(LocalExecutor(prepare(config)), tmp_path / "local", quiet())
    pids, start, add, seen = [], RayPool.start, RunProgress.add, []

    def start_and_note_pid(self, index):
        actor = start(self, index)
        pids.append(ray.get(actor.handle.__ray_call__.remote(lambda session: os.getpid())))
        return actor

    def kill_one(self, record) -> None:
        add(self, record)
        seen.append(record)
        if len(seen) == 3:
            os.kill(pids[0], signal.SIGKILL)

    monkeypatch.setattr(RayPool, "start", start_and_note_pid)
    monkeypatch.setattr(RunProgress, "add", kill_one)
    console = quiet()
    with started(config, 2, "local", console) as executor:
        run(executor, tmp_path / "ray", console)
    assert len(pids) == 3
    assert "worker 0: ended (" in printed(console)
    assert records_without_times(tmp_path / "ray") == records_without_times(tmp_path / "local")
    found = records.read(tmp_path / "ray")[0]
    assert all(len({r.device for r in found if r.question_id == question}) == 1 for question in {r.question_id for r in found})
    manifest = RunManifest.read(tmp_path / "ray")
    assert manifest.status == "complete"
    assert (manifest.environment.workers, manifest.environment.ray) == (2, ray.__version__)
    assert len(manifest.prepared) == 3
    assert not ray.is_initialized()
