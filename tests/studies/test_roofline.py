import csv
import gc
import json
import re
import time
import weakref
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.commands import call
from helpers.small_models import CPU, build, small_target
from helpers.tiny_target import write_target

from methods.core import backend
from methods.core.errors import UserError
from specbench import targets
from specbench.cli import common
from specbench.cli.roofline import roofline
from specbench.config.options import RunConfig
from specbench.engines.own import OwnEngine
from specbench.studies.base import Conditions
from specbench.studies.roofline import measure, report
from specbench.studies.roofline import run as running
from specbench.studies.roofline.cost import Cost, Device
from specbench.studies.roofline.result import Drafted, Roofline, Verified
from specbench.studies.roofline.run import run
from specbench.util.environment import Environment, GitState

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return str(write_target(tmp_path_factory.mktemp("target")))


@pytest.fixture
def now(monkeypatch):
    """Replace the clock by one that a test sets."""
    hands = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: hands[0])
    return hands


@pytest.fixture
def quick(monkeypatch):
    """Measure the device coarsely in milliseconds, and switch compiling off."""
    monkeypatch.setattr(measure, "COPIED", 2**16)
    monkeypatch.setattr(measure, "SIDE", {"cpu": 64})
    monkeypatch.setattr(measure, "PASSES", (2, 2))
    monkeypatch.setattr(running, "NEW_TOKENS", 16)
    monkeypatch.setattr(backend, "_compiler_present", lambda device: False)


@pytest.fixture
def found() -> Roofline:
    """Return a roofline at 1 GB/s and 10 GFLOP/s: a plain step is bound by memory, a tree of size 4 by arithmetic."""
    where = Environment(cpu="a processor", threads=1, torch="2", transformers="5")
    conditions = Conditions("now", [], "t", "", 5_000_000, "fp32", "cpu", "eager", where, GitState())
    plain, tree = Cost(1e9, 2e9), Cost(1e9, 20e9)
    return Roofline(
        conditions=conditions,
        past=9,
        device=Device(1e9, 10e9),
        verified=[Verified(0, plain, 1.25), Verified(3, tree, 2.5)],
        drafted=[
            Drafted("vanilla", "Vanilla", 0, Cost(0, 0), 0.125, 1.25, 0.125),
            Drafted("m", "Method", 3, Cost(1e8, 1e6), 0.4, 2.6, 0.125),
            Drafted("pld", "Lookup", 10, Cost(0, 0), 0.5, 2.5, 0.0),
        ],
        limit={0: 1.0, 1: 1.0, 2: 1.5, 3: 2.0},
        load_s=1.0,
        prepare_s=2.0,
        peak_bytes=3 * 2**20,
    )


def config(target, backend, *methods):
    return RunConfig(methods=list(methods), target=target, dtype="fp32", device="cpu", backend=backend)


class Scripted:
    """A target whose tree of size n takes n seconds, and 50 more right after another size."""

    device, config = CPU, SimpleNamespace(vocab_size=50)

    def __init__(self, now):
        self.now, self.last, self.calls = now, None, []

    def prefill(self, prompt):
        self.prompt = prompt

    def score(self, tree, past):
        self.calls.append((tree.size, past))
        self.now[0] += tree.size + (50 if tree.size != self.last else 0)
        self.last = tree.size


def test_the_curve_is_the_median_of_settled_calls(now, monkeypatch):
    monkeypatch.setattr(measure, "IN_A_ROW", 2)  # every other call is an unsettled one
    target: Any = Scripted(now)
    assert measure.curve(target, [1, 5, 8], 7) == {1: 1, 5: 5, 8: 8}
    assert len(target.prompt) == 7
    assert {past for _, past in target.calls} == {7}


def test_sizes_take_turns_and_a_slow_device_gets_fewer_passes(now, monkeypatch):
    monkeypatch.setattr(measure, "PASSES", (2, 9))
    target: Any = Scripted(now)
    measure.curve(target, [1, 4], 3)
    timed = [size for size, _ in target.calls][2 * measure.WARMUP :]
    assert timed == ([1] * measure.IN_A_ROW + [4] * measure.IN_A_ROW) * 2
    monkeypatch.setattr(measure, "BUDGET_S", 1e9)
    target = Scripted(now)
    measure.curve(target, [1, 4], 3)
    assert len(target.calls) == 2 * measure.WARMUP + 9 * 2 * measure.IN_A_ROW


def test_measuring_does_not_disturb_the_target():
    target = small_target()
    before = target.prefill(measure.filler(20, 64)).logits_NV.clone()
    measure.curve(target, [1, 6], 20)
    assert torch.equal(target.prefill(measure.filler(20, 64)).logits_NV, before)
    assert int(target.cache.length) == 20


def test_the_first_few_steps_are_left_out():
    target = small_target()
    steps = measure.steps(OwnEngine("vanilla", target, *build("vanilla", target)), measure.filler(20, 64), 12)
    assert len(steps) == 12 - 1 - measure.SETTLING
    assert all(step.tree_size == 1 and step.verify_s > 0 for step in steps)


def test_a_device_is_as_good_as_its_best_repeat(monkeypatch):
    monkeypatch.setattr(measure, "COPIED", 2**20)
    monkeypatch.setattr(measure, "SIDE", {"cpu": 32})
    monkeypatch.setattr(measure, "laps", lambda call, repeats, device: [0.5, 0.25, 2.0])
    assert measure.device_numbers(CPU, torch.float32) == Device(2 * 2**20 / 0.25, 2 * 32**3 / 0.25)


def test_matrices_are_of_numbers_as_models_have_them(monkeypatch):
    seen = []
    monkeypatch.setattr(measure, "SIDE", {"cpu": 64})
    monkeypatch.setattr(measure, "COPIED", 2**16)
    monkeypatch.setattr(torch, "mm", lambda a, b, out: seen.append((a, b)))
    measure.device_numbers(CPU, torch.bfloat16)
    for each in seen[0]:
        assert each.dtype == torch.bfloat16
        assert 0.9 < each.float().std() < 1.1
        assert abs(each.float().mean()) < 0.1
    assert not torch.equal(*seen[0])


def test_rows_hold_measured_against_limit(found):
    frame = found.frame()
    assert (frame["tree_size"] == frame["nodes"] + 1).all()
    rows = frame.set_index(["what", "nodes"])
    plain, tree = rows.loc[("verify", 0)], rows.loc[("verify", 3)]
    assert (plain["predicted_ms"], plain["measured_ms"], plain["share_of_limit"], plain["bound_by"]) == (1000, 1250, 0.8, "memory")
    assert (tree["predicted_ms"], tree["v"], tree["v_predicted"], tree["bound_by"]) == (2000, 2.0, 2.0, "arithmetic")
    draft, lookup = rows.loc[("draft", 3)], rows.loc[("draft", 10)]
    assert (draft["predicted_ms"], draft["measured_ms"], draft["share_of_limit"]) == (100, 400, 0.25)
    assert draft["step_cost"] == (0.4 + 2.6 + 0.125) / (0.125 + 1.25 + 0.125), "over vanilla's whole step, not over T(1)"
    assert rows.loc[("draft", 0), "step_cost"] == 1
    assert lookup["bound_by"] == ""
    assert lookup["share_of_limit"] == 0


def test_knees_of_measurement_and_limit(found):
    assert (found.knee, found.knee_at_limit) == (0, 1)
    flat = replace(found, verified=[found.verified[0], Verified(3, found.verified[1].cost, 1.3)])
    assert flat.knee == 3


def test_the_report_says_what_a_share_above_one_means(found, tmp_path):
    report.write(found, tmp_path)
    text = (tmp_path / "roofline.md").read_text()
    assert "| 3 | 4 | 1,000.0 | 20.00 | 2,000.00 | 2,500.00 | 2.00 | 2.00 | 80.0 % | arithmetic |" in text
    assert "| Method | 3 | 4 | 100.0 | 0.00 | 100.00 | 400.00 | 25.0 % | 2,600.00 | 125.00 | 2.08 |" in text
    assert "| Lookup | 10 | 11 | \N{EM DASH} | \N{EM DASH} | \N{EM DASH} | 500.00 | \N{EM DASH} | 2,500.00 | 0.00 | 2.00 |" in text
    assert "1.0 GB/s" in text
    assert "10 GFLOP/s" in text
    assert "Knee: 0 nodes" in text
    assert "above 100 %" not in text
    conditions = replace(found.conditions, note="cost-matched!")
    cached = replace(found, verified=[Verified(0, found.verified[0].cost, 0.5), found.verified[1]], conditions=conditions)
    report.write(cached, tmp_path)
    text = (tmp_path / "roofline.md").read_text()
    assert "above 100 %" in text
    assert "**Note.** cost-matched!" in text


@pytest.mark.parametrize("name", ["eager", "static"])
def test_a_target_is_measured_and_written(name, target, quick, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = {"target": target, "nodes": 3, "past": 30, "dtype": "fp32", "device": "cpu", "backend": name}
    call(roofline, *(f"--{option}={value}" for option, value in given.items()))
    (folder,) = (tmp_path / "results").iterdir()
    assert folder.name == f"roofline-{target.rsplit('/', 1)[1]}-cpu-{name}"
    assert {path.name for path in folder.iterdir()} == {f"roofline.{kind}" for kind in ("json", "md", "csv", "png", "svg")}
    facts = json.loads((folder / "roofline.json").read_text())
    assert (facts["backend"], facts["past"], facts["dtype"]) == (name, 30, "fp32")
    rows = facts["rows"]
    assert [(row["what"], row["arm"], row["nodes"]) for row in rows[:2]] == [("verify", "", 0), ("verify", "", 3)]
    assert [row["arm"] for row in rows[2:]] == ["vanilla", "pld", "recycling"], "no drafter was trained for this target"
    for row in rows:
        assert row["measured_ms"] > 0
        assert row["share_of_limit"] == pytest.approx(row["predicted_ms"] / row["measured_ms"])
    assert facts["limits"]["bandwidth"] > 0
    assert facts["prepare_s"] > 0
    lines = list(csv.DictReader((folder / "roofline.csv").open()))
    assert [line["what"] for line in lines] == ["verify"] * 2 + ["draft"] * 3
    shown = capsys.readouterr().out
    assert re.search("Verifying a draft tree", shown)
    assert "roofline.md" in shown


def test_misuse_is_one_line(target, quick, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for given, complaint in (
        ({"nodes": "1,two"}, "--nodes '1,two' is not a list of whole numbers; as in --nodes 0,7,63"),
        ({"nodes": "1,128"}, "--nodes has 128; choose 0 to 127 drafted nodes"),
        ({"past": 0}, "--past is 0; it must be at least 1"),
        ({"past": 500}, "--past is 500; beside 16 new tokens the context of .* has room for 496"),
        ({"backend": "fast"}, "unknown backend 'fast'"),
        ({"backend": "eager", "method": "pld:backend=static"}, "pld:backend=static is not of the back end eager"),
        ({"method": "medusa"}, "medusa needs trained medusa weights"),
        ({"method": "hf-generate"}, "hf-generate is another engine, whose steps specbench cannot time"),
        ({"dtype": "fp31"}, "unknown dtype 'fp31'; did you mean"),
    ):
        options = {"target": target, "nodes": "0", "past": 8, "dtype": "fp32", "device": "cpu", **given}
        with pytest.raises(UserError, match=complaint):
            call(roofline, *(f"--{option}={value}" for option, value in options.items()))
    assert not (tmp_path / "results").exists()


def test_methods_are_measured_as_asked(target, quick):
    found = run(config(target, "eager", "pld:nodes=3"), common.console, past=40, nodes=[2])
    assert [(each.arm, each.title) for each in found.drafted] == [("vanilla", "Vanilla"), ("pld:nodes=3", "Prompt lookup nodes=3")]
    assert [each.nodes for each in found.verified] == [0, 2]
    assert list(found.limit) == [0, 1, 2]


def test_nodes_are_those_of_a_methods_options(target, quick, monkeypatch):
    """``--nodes 3`` and ``--set nodes=3`` are trees of the same size."""
    sizes = []
    curve = measure.curve

    def noted(target, given, past):
        sizes.extend(given)
        return curve(target, given, past)

    monkeypatch.setattr(measure, "curve", noted)
    found = run(config(target, "eager", "vanilla"), common.console, past=40, nodes=[3])
    drafter, _ = build("medusa", small_target(), nodes=3)
    assert sizes == [1, *drafter.sizes]
    assert [each.nodes for each in found.drafted] == [0]


@pytest.fixture
def only_explicit_collections():
    """Switch automatic garbage collection off."""
    gc.disable()
    yield
    gc.enable()


def test_the_target_before_is_freed_before_the_next_is_loaded(target, quick, monkeypatch, only_explicit_collections):
    load = targets.load
    loaded: list[weakref.ref] = []

    def watched(*given, **options):
        assert [each() for each in loaded] == [None] * len(loaded)
        found = load(*given, **options)
        loaded.append(weakref.ref(found.model.get_input_embeddings().weight))  # which a target shares
        return found

    monkeypatch.setattr(targets, "load", watched)
    for name in ("static", "eager"):
        run(config(target, name, "pld"), common.console, past=8, nodes=[0])
    assert len(loaded) == 2


def test_methods_are_warm_before_their_steps_are_timed(target, quick, monkeypatch):
    order = []
    steps, warm_up = measure.steps, OwnEngine.warm_up

    def warming(engine, sampling):
        order.append("warm")
        return warm_up(engine, sampling)

    def timing(*given):
        order.append("timed")
        return steps(*given)

    monkeypatch.setattr(OwnEngine, "warm_up", warming)
    monkeypatch.setattr(measure, "steps", timing)
    run(config(target, "eager", "pld"), common.console, past=8, nodes=[0])
    assert order == ["warm", "timed"] * 2 + ["timed"] * 2 * running.ANSWERS
