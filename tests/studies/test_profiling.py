import csv
import gzip
import json
from math import isnan

import pytest
import torch
from helpers.commands import call
from helpers.tiny_target import write_suite, write_target

from methods.core.acceptance import Sampling
from methods.core.errors import UserError
from specbench.cli.profile import profile
from specbench.config.options import RunConfig
from specbench.measure.session import prepare
from specbench.studies.base import decoded
from specbench.studies.profiling import trace
from specbench.studies.profiling.split import split
from specbench.studies.profiling.trace import labelled

torch.set_num_threads(1)


def event(cat, name, start, end, correlation=None, tid=1):
    args = {} if correlation is None else {"correlation": correlation}
    return {"ph": "X", "cat": cat, "name": name, "tid": tid, "ts": start, "dur": end - start, "args": args}


def steps(*starts):
    """Return the labels of one answer.

    Each step drafts for 10 us and commits 50 us after its start; the answer ends 100 us after the start of the last step.
    """
    found = [event("user_annotation", "specbench.answer", starts[0] - 20, starts[-1] + 100)]
    for start in starts:
        found += [
            event("user_annotation", "specbench.draft", start, start + 10),
            event("user_annotation", "specbench.score", start + 12, start + 40),
            event("user_annotation", "specbench.commit", start + 50, start + 60),
            event("user_annotation", "specbench.observe", start + 62, start + 70),
        ]
    return found


def us(seconds):
    return round(seconds * 1e6, 3)


def test_on_a_cpu_phases_are_time_inside_ops_and_host_is_the_rest():
    rows = [
        *steps(100, 200),
        event("cpu_op", "aten::prefill", 81, 99),  # before the first step
        event("cpu_op", "aten::draft", 101, 109),
        event("cpu_op", "aten::mm", 115, 135),
        event("cpu_op", "aten::copy_", 120, 125),  # inside the one before
        event("cpu_op", "aten::_local_scalar_dense", 126, 127),
        event("cpu_op", "## Call CompiledFxGraph foopzu2z ##", 102, 103),  # inside the draft's
        event("cpu_op", "## Call CompiledFxGraph fjgytq52 ##", 103, 104),
        event("cpu_op", "aten::sum", 145, 155),  # from verify into commit, which begins at 150
        event("cpu_op", "aten::mm", 215, 225),
        event("cpu_op", "aten::elsewhere", 160, 190, tid=2),
        {"ph": "M", "name": "process_name"},
    ]
    found = split(trace.from_rows(rows))
    assert (found.steps, us(found.wall)) == (2, 200)
    assert {name: us(seconds) for name, seconds in found.busy.items()} == {"draft": 8, "verify": 20 + 5 + 10, "commit": 5}
    assert us(found.host) == 200 - 48
    assert isnan(found.gaps)
    assert (found.reads, found.waits) == (1, None)
    verify = [(cost.name, us(cost.seconds), cost.calls) for cost in found.ops["verify"]]
    assert verify == [("aten::mm", 14 + 10, 2), ("aten::sum", 10, 1), ("aten::copy_", 5, 1), ("aten::_local_scalar_dense", 1, 1)]
    assert [(cost.name, us(cost.seconds), cost.calls) for cost in found.ops["draft"]] == [("aten::draft", 6, 1), ("CompiledFxGraph", 2, 2)]


def test_on_cuda_phases_are_time_in_kernels_and_idle_time_is_launch_gaps_or_host():
    rows = [
        *steps(100),
        event("cuda_runtime", "cudaGraphLaunch", 102, 104, 1),
        event("kernel", "draft_a", 105, 110, 1, tid=7),
        event("kernel", "draft_b", 110, 116, 1, tid=7),  # of the same graph; runs while the host verifies already
        event("cpu_op", "aten::mm", 120, 140),
        event("cuda_runtime", "cudaLaunchKernel", 130, 132, 2),
        event("kernel", "gemm", 133, 153, 2, tid=7),  # launched by verify, runs into commit
        event("cuda_runtime", "cudaMemcpyAsync", 160, 162, 3),
        event("gpu_memcpy", "Memcpy DtoH (Device -> Pageable)", 163, 165, 3, tid=7),
        event("cuda_runtime", "cudaStreamSynchronize", 162, 166),
        event("kernel", "prefill", 82, 103, 9, tid=7),
        event("cuda_runtime", "cudaLaunchKernel", 81, 82, 9),
        event("kernel", "late", 125, 127, 9, tid=7),  # of the prefill too, in the middle of the step
    ]
    found = split(trace.from_rows(rows))
    assert us(found.wall) == 100
    assert {name: us(seconds) for name, seconds in found.busy.items()} == {"draft": 11, "verify": 20, "commit": 2}
    # Idle: 103-105 (1 us of it in a call), 116-125 (5 in an op), 127-133 (all in it), 153-163 (3 in calls), 165-200 (1 in a call)
    assert us(found.gaps) == 1 + 5 + 6 + 3 + 1
    assert us(found.host) == 1 + 4 + 7 + 34
    # The prefill's kernels still ran in the step, which is no part of it.
    assert us(sum(found.busy.values()) + found.gaps + found.host) == 100 - 3 - 2
    assert (found.reads, found.waits) == (1, 1)
    assert [cost.name for cost in found.ops["draft"]] == ["draft_b", "draft_a"]


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return str(write_target(tmp_path_factory.mktemp("target"), context=4096))


def test_labels_do_not_change_the_steps(target, tmp_path):
    suite = write_suite(tmp_path / "suite.jsonl")
    session = prepare(RunConfig(methods=["pld"], target=target, suite_file=suite, dtype="fp64", device="cpu", backend="eager"))
    prompt, engine = list(range(40, 70)) * 2, session.own[1]
    sampling = Sampling(24)
    plain = decoded(engine, prompt, sampling).steps
    watched = decoded(labelled(engine), prompt, sampling).steps
    assert [(step.tree_size, step.depth, step.emitted) for step in watched] == [
        (step.tree_size, step.depth, step.emitted) for step in plain
    ]
    assert labelled(engine).drafter.sizes == engine.drafter.sizes


def test_the_command_writes_a_report_numbers_and_traces(target, tmp_path, capsys):
    suite, out = write_suite(tmp_path / "suite.jsonl"), tmp_path / "profile"
    given = {"method": "pld", "target": target, "suite-file": suite, "max-new-tokens": 8, "dtype": "fp32", "out": out}
    call(profile, *(f"--{option}={value}" for option, value in given.items()), "--device=cpu", "--backend=eager")
    assert sorted(path.name for path in out.iterdir()) == ["profile.csv", "profile.md", "trace-pld.json.gz", "trace-vanilla.json.gz"]
    with (out / "profile.csv").open() as file:
        rows = list(csv.DictReader(file))
    for arm in ("vanilla", "pld"):
        own = {row["part"]: row for row in rows if row["arm"] == arm and not row["op"]}
        assert sum(float(own[part]["share"]) for part in ("draft", "verify", "commit", "host")) == pytest.approx(1)
        assert own["launch gaps"]["ms"] == own["waits"]["calls"] == ""
        assert float(own["verify"]["share"]) > float(own["draft"]["share"])
        ops = [row for row in rows if row["arm"] == arm and row["op"] and row["part"] == "verify"]
        assert len(ops) == 12
        assert float(ops[0]["ms"]) <= float(own["verify"]["ms"])
    with gzip.open(out / "trace-vanilla.json.gz", "rt") as file:
        names = [row["name"] for row in json.load(file)["traceEvents"] if row.get("cat") == "user_annotation"]
    answers, drafts = names.count("specbench.answer"), names.count("specbench.draft")
    assert answers == 2, "one question of each of two categories"
    assert drafts == names.count("specbench.observe") == names.count("specbench.commit") == names.count("specbench.score") > answers
    text = (out / "profile.md").read_text()
    assert f"| Vanilla | {drafts} |" in text
    assert "Vanilla, verify" in text
    assert "8 new tokens" in " ".join(capsys.readouterr().out.split())


def test_misuse_is_a_user_error_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="unknown backend 'fast'"):
        call(profile, "--method=pld", "--device=cpu", "--backend=fast")
    with pytest.raises(UserError, match="did you mean 'pld'"):
        call(profile, "--method=pdl", "--device=cpu", "--backend=eager")
    with pytest.raises(UserError, match="--max-new-tokens is 1; it must be at least 2"):
        call(profile, "--max-new-tokens=1")
    with pytest.raises(UserError, match="hf-pld is another engine, whose steps specbench cannot profile"):
        call(profile, "--method=hf-pld")
    assert list(tmp_path.iterdir()) == []
