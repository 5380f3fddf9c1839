import csv
import io
from dataclasses import replace
from functools import partial
from itertools import pairwise
from math import nan
from typing import Any

import pytest
import torch
from helpers.commands import call
from helpers.small_models import CPU
from helpers.tiny_target import write_target

from methods.core import backend as backends
from methods.core.decode import StepTrace
from methods.core.errors import UserError
from methods.core.target import Target
from specbench.cli.bench import bench
from specbench.engines.own import OwnEngine
from specbench.studies.base import Conditions
from specbench.studies.bench import decoding, overhead, report, steps
from specbench.studies.bench import run as bench_run
from specbench.studies.bench.finding import Finding
from specbench.studies.bench.prefill import prefill_finding
from specbench.studies.bench.run import Benchmark
from specbench.studies.bench.steps import StepTimes, Subject, VerifyTimes
from specbench.studies.profiling.split import OpTime, Split
from specbench.studies.roofline import measure
from specbench.studies.roofline.cost import Device
from specbench.util.environment import Environment, GitState
from specbench.util.terminal import Console

torch.set_num_threads(1)
SUBJECT = Subject("Method, 3 nodes", "m", 6, 10.0)


def spent(*milliseconds):
    """Return a step that took so long to draft, verify and commit."""
    return StepTrace(4, 1, 0, 1, *(each / 1e3 for each in milliseconds))


def timed(given, backend="eager"):
    return StepTimes(SUBJECT, "fp32", backend, given, draft_floor_s=0.5e-3, verify_floor_s=1.5e-3)


OPS = {
    "draft": [OpTime(name, seconds, 12) for name, seconds in zip("abcdef", (0.06, 0.05, 0.04, 0.03, 0.02, 0.01), strict=True)],
    "verify": [OpTime("mm", 0.2, 120)],
}
SPLIT = Split(20, 0.5, {"draft": 0.22, "verify": 0.2, "commit": 0.0}, nan, 0.08, 0, None, OPS)
FAST, SLOW = timed([spent(1, 2, 1), spent(2, 2, 1), spent(1, 1, 1)]), timed([spent(3, 4, 1)], "static")
RATIOS = [VerifyTimes("a shape", "bf16", "eager", 64, {1: 0.002, 8: 0.003, 64: 0.008})]
CONDITIONS = Conditions("now", [], "t", "a note", 5_000_000, "fp32", "cpu", "eager", Environment(), GitState())


def results(findings=(), given=(), verified=()):
    return Benchmark(CONDITIONS, "conditions", findings, given, verified)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Switch compiling off and give the device made-up rates, which need no measurement."""
    monkeypatch.setattr(backends, "_compiler_present", lambda device: False)
    monkeypatch.setattr(measure, "PASSES", (1, 1))
    monkeypatch.setattr(measure, "device_numbers", lambda device, dtype: Device(1e9, 1e9))


def test_a_step_is_the_sum_of_its_parts_and_must_take_half_of_the_reference():
    row = FAST.row()
    assert (row["median"], row["low"], row["high"]) == pytest.approx((4.0, 3.5, 4.5))
    assert (row["draft_ms"], row["verify_ms"], row["commit_ms"]) == pytest.approx((1.0, 2.0, 1.0))
    assert row["wanted"] == pytest.approx(5.0)
    assert row["floor"] == pytest.approx(2.0)
    assert row["share_of_floor"] == pytest.approx(0.5)
    assert (FAST.verdict, SLOW.verdict) == ("met", "missed")


def test_the_tables_show_the_numbers():
    expected = "Method, 3 nodes|6|fp32|eager|4.00|3.50 to 4.50|1.00|2.00|1.00|0.50|1.50|50.0 %|10.0|at most 5.00|met"
    assert steps.steps_table([FAST]).rows == [expected.split("|")]
    assert steps.verify_table(RATIOS).rows == [["a shape", "bf16", "eager", "64", "2.00", "1.50", "4.00"]]
    assert [row["median"] for row in RATIOS[0].rows()] == pytest.approx([1.5, 4.0])
    assert [row["what"] for row in RATIOS[0].rows()] == ["V(8) of a shape", "V(64) of a shape"]


def test_misses_are_named_with_their_slowest_phase():
    findings = [Finding("speed", [0.5], 1.3), Finding("share", [0.01], 0.02, is_share=True), Finding("nothing", [], 1.0)]
    assert report.misses(results(findings, [FAST, SLOW])) == [
        "speed: 0.500x where at least 1.300x was wanted",
        "Method, 3 nodes, 6 layers, fp32, static: 8.00 ms where 5.00 was wanted; "
        "draft 3.00 (floor 0.50), verify 4.00 (floor 1.50), commit 1.00",
    ]
    drafting, verifying = (replace(each, split=SPLIT) for each in (timed([spent(6, 3, 1)]), timed([spent(3, 6, 1)])))
    one, other = report.misses(results(given=[drafting, verifying]))
    assert one.endswith("commit 1.00; most of draft: a 3.00 (1), b 2.50 (1), c 2.00 (1), d 1.50 (1), e 1.00 (1)")
    assert other.endswith("most of verify: mm 10.00 (6)")


def test_the_slowest_ops_of_drafting_are_in_the_report(tmp_path):
    report.write(results(given=[replace(FAST, split=SPLIT)]), tmp_path)
    text = (tmp_path / "bench.md").read_text()
    line = "| Method, 3 nodes | 6 | fp32 | eager | 1.00 | 11.00 | a 3.00 (1), b 2.50 (1), c 2.00 (1), d 1.50 (1), e 1.00 (1) |"
    assert text.index("Milliseconds of a whole step") < text.index(line)
    assert "after everything that is timed" in text


def test_the_files_hold_every_row(tmp_path):
    report.write(results([Finding("speed", [2.0], 1.3)], [FAST], RATIOS), tmp_path)
    text = (tmp_path / "bench.md").read_text()
    assert "Every bound was kept" in text
    assert "another machine" in text
    assert "**Note.** a note" in text
    lines = list(csv.DictReader((tmp_path / "bench.csv").open()))
    assert [line["what"] for line in lines] == ["speed", "step of Method, 3 nodes, 6 layers", "V(8) of a shape", "V(64) of a shape"]
    assert [line["unit"] for line in lines] == ["ratio", "ms", "ratio", "ratio"]
    report.write(results(given=[SLOW]), tmp_path)
    text = (tmp_path / "bench.md").read_text()
    assert "Missed:" in text
    assert "Speed beside other loops" not in text, "nothing is said of what was not measured"
    assert "V(8)" not in text


def test_the_shape_is_the_one_the_reference_was_measured_on():
    model = steps.random_model(6, torch.float32, CPU)
    assert sum(parameter.numel() for parameter in model.parameters()) == 12_157_824
    again = steps.random_model(6, torch.bfloat16, CPU)
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one.to(torch.bfloat16), other)


@pytest.mark.parametrize(("subject", "size", "depth"), [(0, 64, 4), (1, 60, 5), (2, 60, 5)])
def test_the_trees_are_those_the_reference_drafts(subject, size, depth):
    subject = steps.SUBJECTS[subject]
    target = Target(steps.random_model(subject.layers, torch.float32, CPU), capacity=64)
    engine = steps.random_engine(subject.arm, target)
    drafter: Any = engine.drafter
    taken = measure.steps(engine, measure.filler(8, 2000), measure.SETTLING + 4)
    assert {step.tree_size for step in taken} == {size}
    assert drafter.policy.depth == depth  # of the levels drafted: random guesses are so even that the best are shallow


def test_random_drafters_are_the_same_in_every_dtype():
    targets = [Target(steps.random_model(1, dtype, CPU), capacity=64) for dtype in (torch.float32, torch.bfloat16)]
    drafters: list[Any] = [steps.random_engine("medusa:nodes=63", target).drafter for target in targets]
    one, other = (list(drafter.heads.parameters()) for drafter in drafters)
    assert all(torch.equal(a.to(torch.bfloat16), b) for a, b in zip(one, other, strict=True))


def test_every_subject_is_timed_on_both_back_ends(monkeypatch):
    monkeypatch.setattr(
        overhead,
        "SUBJECTS",
        (
            steps.SUBJECTS[0]._replace(arm="medusa:nodes=7", layers=1),
            steps.SUBJECTS[1]._replace(arm="eagle2:nodes=7,depth=2,width=4", layers=2),
        ),
    )
    monkeypatch.setattr(overhead, "NEW_TOKENS", 12)
    monkeypatch.setattr(overhead, "ANSWERS", 2)
    order, answer = [], measure.steps

    def noted(*given):
        order.append("answer")
        return answer(*given)

    monkeypatch.setattr(OwnEngine, "warm_up", lambda engine, sampling: order.append("warm"))
    monkeypatch.setattr(measure, "steps", noted)
    times, verified = overhead.overhead(["bf16"], CPU, Console(file=io.StringIO()))
    assert order == (["warm", "answer"] * 2 + ["answer"] * 4) * 2
    assert [(each.subject.layers, each.backend) for each in times] == [(1, "eager"), (1, "static"), (2, "eager"), (2, "static")]
    for each in times:
        assert 2 * 2 <= len(each.steps) <= 2 * (11 - measure.SETTLING)
        assert each.verify_floor_s > each.draft_floor_s > 0
        assert each.split is not None
        assert each.split.steps == 11
        assert each.split.ops["draft"][0].seconds > 0
    for one, other in pairwise(times[:2]):
        assert one.floor_s == other.floor_s, "what has to be done does not depend on the back end"
    assert [(each.target, each.backend) for each in verified] == [
        (f"random, {layers} layers", name) for layers in (1, 2) for name in ("eager", "static")
    ]


def test_floors_grow_with_the_tree():
    model = steps.random_model(1, torch.float32, CPU)
    few, many = (overhead.floors(model, Subject("", f"medusa:nodes={nodes}", 1, 1.0), Device(1e18, 1e9)) for nodes in (15, 63))
    assert many[1] == pytest.approx(4 * few[1], rel=0.1)
    assert many[0] == few[0] or many[0] > few[0]


def test_the_command_prints_and_writes_its_findings(tmp_path, monkeypatch, capsys, wide_terminal):
    target = str(write_target(tmp_path / "target", context=4096))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(decoding, "MAX_NEW_TOKENS", 4)
    monkeypatch.setattr(bench_run, "prefill_finding", partial(prefill_finding, tokens=200, pairs=2))
    asked = []

    def noted(dtypes, device, console):
        asked.append(dtypes)
        return [FAST], RATIOS

    monkeypatch.setattr(overhead, "overhead", noted)
    call(bench, "--target", target, "--dtype=fp32", "--device=cpu")
    assert asked == [["fp32", "bf16"]], "the run's own dtype first"
    printed = " ".join(capsys.readouterr().out.split())
    assert "fp32, back end eager and static; " in printed
    assert "attention sdpa; 4 new tokens, greedy" in printed
    assert "Milliseconds of a whole step" in printed
    assert "V(64)" in (tmp_path / "reports" / "bench" / "bench.md").read_text()
    lines = list(csv.DictReader((tmp_path / "reports" / "bench" / "bench.csv").open()))
    assert [int(line["count"]) for line in lines[:5]] == [32, 32, 32, 32, 23]
    assert [float(line["wanted"]) for line in lines[:5]] == [0.97, 1.0, 1.3, 1.3, 0.02]
    assert {line["verdict"] for line in lines[:5]} <= {"met", "missed"}
    assert [line["what"] for line in lines if line["what"].startswith("V(8)")] == [f"V(8) of {target}"] * 2 + ["V(8) of a shape"]
    assert list((tmp_path / "results").iterdir()) == []


def test_an_unknown_target_is_a_user_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="unknown target 'tiny-16m'; did you mean"):
        call(bench, "--target=tiny-16m")
