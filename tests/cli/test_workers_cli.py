"""`specbench run --workers` as a user starts it: workers are spawned, and Ctrl-C reaches every process."""

import os
import signal
import subprocess
import sys

import pytest
import torch
from helpers.worker_processes import count_records, quiet, records_without_times, small_config, wait_until

from specbench.cli import app
from specbench.cli import run as run_command
from specbench.measure.runner import LocalExecutor, run
from specbench.measure.session import prepare
from specbench.store import records
from specbench.store.manifest import RunManifest
from specbench.util.environment import SPIN_COUNT
from specbench.util.exits import INTERRUPTED

torch.set_num_threads(1)


def group_left(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_ctrl_c_ends_every_process_and_the_run_can_be_resumed(tmp_path):
    config = small_config(tmp_path)
    arguments = ["run", "--method", "pld", "--target", config.target, "--suite-file", str(config.suite_file), "--max-new-tokens", "16"]
    arguments += ["--temperature", "0.8", "--repeats", "200", "--dtype", "fp64", "--device", "cpu", "--backend", "eager"]
    out = tmp_path / "run"
    command = [sys.executable, "-m", "specbench", *arguments, "--workers", "2", "--out", str(out)]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | {"OMP_NUM_THREADS": "2"}
    started = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a shell's background jobs ignore it
    )
    with started:
        wait_until(lambda: count_records(out) >= 6 or started.poll() is not None)
        os.killpg(started.pid, signal.SIGINT)
        _, errors = started.communicate(timeout=60)
    assert errors == f"interrupted; resume with: specbench resume {out}\n"
    assert started.returncode == INTERRUPTED
    wait_until(lambda: not group_left(started.pid), 10)
    found, torn, *_ = records.read(out)
    assert not torn
    assert len(found) >= 6
    manifest = RunManifest.read(out)
    assert manifest.status == "interrupted"
    assert [getattr(manifest.environment, name) for name in ("workers", "threads", "gomp_spincount")] == [2, 1, SPIN_COUNT]
    assert len({record.device for record in found}) == 2
    once = tmp_path / "once"
    run(LocalExecutor(prepare(config)), once, quiet())
    undisturbed = {record.key: record for record in records_without_times(once)}
    assert all(undisturbed.get(record.key, record) == record for record in records_without_times(out))


def test_resume_takes_the_worker_options(tmp_path, monkeypatch):
    calls = []
    config = small_config(tmp_path)
    prepare(config).manifest.write(tmp_path)
    monkeypatch.setattr(run_command, "measure", lambda *arguments: calls.append(arguments[1:]))
    for arguments in ([], ["--workers", "2"], ["--workers", "4", "--ray-address", "local"], ["--retry-errors"]):
        with pytest.raises(SystemExit):
            app.main(["resume", str(tmp_path), *arguments])
    assert calls == [(tmp_path, None, None, False), (tmp_path, 2, None, False), (tmp_path, 4, "local", False), (tmp_path, None, None, True)]
