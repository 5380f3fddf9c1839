import os
import signal

import pytest
import torch
from helpers.worker_processes import but_for_times, quiet, small_options

from specbench.measure.progress import RunProgress
from specbench.measure.runner import run
from specbench.measure.session import prepare
from specbench.measure.workers.on_ray import Actors
from specbench.measure.workers.start import started
from specbench.store import records
from specbench.store.manifest import RunManifest

ray = pytest.importorskip("ray")
torch.set_num_threads(1)


def test_a_local_ray_gives_the_records_of_one_process_though_an_actor_is_killed(tmp_path, monkeypatch):
    options = small_options(tmp_path)
    run(prepare(options), tmp_path / "alone", quiet())
    pids, start, add, seen = [], Actors.start, RunProgress.add, []

    def known(self, index):
        actor = start(self, index)
        pids.append(ray.get(actor.handle.__ray_call__.remote(lambda bench: os.getpid())))
        return actor

    def kill_one(self, record) -> None:
        add(self, record)
        seen.append(record)
        if len(seen) == 3:
            os.kill(pids[0], signal.SIGKILL)

    monkeypatch.setattr(Actors, "start", known)
    monkeypatch.setattr(RunProgress, "add", kill_one)
    console = quiet()
    with started(options, 2, "local", console) as crew:
        run(crew, tmp_path / "ray", console)
    assert len(pids) == 3
    assert "worker 0: ended (" in console.file.getvalue()
    assert but_for_times(tmp_path / "ray") == but_for_times(tmp_path / "alone")
    found = records.read(tmp_path / "ray")[0]
    assert all(len({r.device for r in found if r.question_id == question}) == 1 for question in {r.question_id for r in found})
    manifest = RunManifest.read(tmp_path / "ray")
    assert manifest.status == "complete"
    assert (manifest.environment["workers"], manifest.environment["ray"]) == (2, ray.__version__)
    assert len(manifest.prepared) == 3
    assert not ray.is_initialized()
