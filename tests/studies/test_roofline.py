import csv
import gc
import json
import re
import time
import weakref
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from helpers.small_models import CPU, build, small_target
from helpers.tiny_target import write_target

from methods.core import backend, decode
from specbench import targets
from specbench.cli import app, common
from specbench.cli.roofline import roofline
from specbench.studies.roofline import measure, report
from specbench.studies.roofline import run as running
from specbench.studies.roofline.cost import Cost, Device
from specbench.studies.roofline.result import Drafted, Roofline, Verified
from specbench.studies.roofline.run import Options, run

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return str(write_target(tmp_path_factory.mktemp("target")))


@pytest.fixture
def now(monkeypatch):
    """A clock that stands still until told otherwise."""
    hands = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: hands[0])
    return hands


@pytest.fixture
def quick(monkeypatch):
    """A device measured in milliseconds, badly; a static back end that does not wait for a compiler."""
    monkeypatch.setattr(measure, "COPIED", 2**16)
    monkeypatch.setattr(measure, "SIDE", {"cpu": 64})
    monkeypatch.setattr(measure, "PASSES", (2, 2))
    monkeypatch.setattr(running, "NEW_TOKENS", 16)
    monkeypatch.setattr(backend, "_compiler_present", lambda device: False)


@pytest.fixture
def found() -> Roofline:
    """1 GB/s, 10 GFLOP/s: a plain step is bound by memory, a tree of 4 by arithmetic."""
    environment = {"gpu": None, "cpu": "a processor", "threads": 1, "torch": "2", "transformers": "5"}
    facts = {"target": "t", "note": "", "parameters": 5e6, "dtype": "float32", "device": "cpu", "backend": "eager", "past": 9}
    plain, tree = Cost(1e9, 2e9), Cost(1e9, 20e9)
    return Roofline(
        facts={**facts, "environment": environment},
        device=Device(1e9, 10e9),
        verified=[Verified(1, plain, 1.25), Verified(4, tree, 2.5)],
        drafted=[
            Drafted("vanilla", "Vanilla", 1, Cost(0, 0), 0.125, 1.25, 0.125),
            Drafted("m", "Method", 4, Cost(1e8, 1e6), 0.4, 2.6, 0.125),
            Drafted("pld", "Lookup", 11, Cost(0, 0), 0.5, 2.5, 0.0),
        ],
        limit={1: 1.0, 2: 1.0, 3: 1.5, 4: 2.0},
        load_s=1.0,
        prepare_s=2.0,
        peak_bytes=3 * 2**20,
    )


class Scripted:
    """A target whose tree of n nodes takes n seconds, and 50 more right after another size."""

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
    target = Scripted(now)
    assert measure.curve(target, [1, 5, 8], 7) == {1: 1, 5: 5, 8: 8}
    assert len(target.prompt) == 7
    assert {past for _, past in target.calls} == {7}


def test_sizes_take_turns_and_a_slow_device_gets_fewer_passes(now, monkeypatch):
    monkeypatch.setattr(measure, "PASSES", (2, 9))
    target = Scripted(now)
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


def test_rounds_leave_out_the_first_few():
    target = small_target()
    rounds = measure.rounds(target, *build("vanilla", target), measure.filler(20, 64), 12)
    assert len(rounds) == 12 - 1 - measure.SETTLING
    assert all(each.nodes == 1 and each.verify_s > 0 for each in rounds)


def test_a_device_is_as_good_as_its_best_repeat(monkeypatch):
    monkeypatch.setattr(measure, "COPIED", 2**20)
    monkeypatch.setattr(measure, "SIDE", {"cpu": 32})
    monkeypatch.setattr(measure, "laps", lambda call, repeats, device: [0.5, 0.25, 2.0])
    assert measure.device_numbers(CPU, torch.float32) == Device(2 * 2**20 / 0.25, 2 * 32**3 / 0.25)


def test_matrices_are_of_numbers_as_models_have_them(monkeypatch):
    seen = []
    monkeypatch.setattr(measure, "SIDE", {"cpu": 64})
    monkeypatch.setattr(torch, "mm", lambda a, b, out: seen.append((a, b)))
    measure._rate(CPU, torch.bfloat16)
    for each in seen[0]:
        assert each.dtype == torch.bfloat16
        assert 0.9 < each.float().std() < 1.1
        assert abs(each.float().mean()) < 0.1
    assert not torch.equal(*seen[0])


def test_rows_hold_measured_against_limit(found):
    rows = found.frame().set_index(["what", "nodes"])
    plain, tree = rows.loc[("verify", 1)], rows.loc[("verify", 4)]
    assert (plain["predicted_ms"], plain["measured_ms"], plain["share_of_limit"], plain["bound_by"]) == (1000, 1250, 0.8, "memory")
    assert (tree["predicted_ms"], tree["v"], tree["v_predicted"], tree["bound_by"]) == (2000, 2.0, 2.0, "arithmetic")
    draft, lookup = rows.loc[("draft", 4)], rows.loc[("draft", 11)]
    assert (draft["predicted_ms"], draft["measured_ms"], draft["share_of_limit"]) == (100, 400, 0.25)
    assert draft["round_cost"] == (0.4 + 2.6 + 0.125) / (0.125 + 1.25 + 0.125), "over vanilla's whole round, not over T(1)"
    assert rows.loc[("draft", 1), "round_cost"] == 1
    assert lookup["bound_by"] == ""
    assert lookup["share_of_limit"] == 0


def test_knees_of_measurement_and_limit(found):
    assert (found.knee, found.knee_at_limit) == (1, 2)
    flat = replace(found, verified=[found.verified[0], Verified(4, found.verified[1].cost, 1.3)])
    assert flat.knee == 4


def test_the_report_says_what_a_share_above_one_means(found, tmp_path):
    report.write(found, tmp_path)
    text = (tmp_path / "roofline.md").read_text()
    assert "| 4 | 1,000.0 | 20.00 | 2,000.00 | 2,500.00 | 2.00 | 2.00 | 80.0 % | arithmetic |" in text
    assert "| Method | 4 | 100.0 | 0.00 | 100.00 | 400.00 | 25.0 % | 2,600.00 | 125.00 | 2.08 |" in text
    assert "| Lookup | 11 | \N{EM DASH} | \N{EM DASH} | \N{EM DASH} | 500.00 | \N{EM DASH} | 2,500.00 | 0.00 | 2.00 |" in text
    assert "1.0 GB/s" in text
    assert "10 GFLOP/s" in text
    assert "Knee: 1 nodes" in text
    assert "above 100 %" not in text
    cached = replace(
        found, verified=[Verified(1, found.verified[0].cost, 0.5), found.verified[1]], facts={**found.facts, "note": "cost-matched!"}
    )
    report.write(cached, tmp_path)
    text = (tmp_path / "roofline.md").read_text()
    assert "above 100 %" in text
    assert "**Note.** cost-matched!" in text


@pytest.mark.parametrize("name", ["eager", "static"])
def test_a_target_is_measured_and_written(name, target, quick, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    roofline(target=target, nodes="4", past=30, dtype="fp32", device="cpu", backend=name)
    (folder,) = (tmp_path / "results").iterdir()
    assert folder.name == f"roofline-{target.rsplit('/', 1)[1]}-cpu-{name}"
    assert {path.name for path in folder.iterdir()} == {f"roofline.{kind}" for kind in ("json", "md", "csv", "png", "svg")}
    facts = json.loads((folder / "roofline.json").read_text())
    assert (facts["backend"], facts["past"], facts["dtype"]) == (name, 30, "float32")
    rows = facts["rows"]
    assert [(row["what"], row["method"], row["nodes"]) for row in rows[:2]] == [("verify", "", 1), ("verify", "", 4)]
    assert [row["method"] for row in rows[2:]] == ["vanilla", "pld", "recycling"], "no drafter was trained for this target"
    for row in rows:
        assert row["measured_ms"] > 0
        assert row["share_of_limit"] == pytest.approx(row["predicted_ms"] / row["measured_ms"])
    assert facts["limits"]["bandwidth"] > 0
    assert facts["prepare_s"] > 0
    lines = list(csv.DictReader((folder / "roofline.csv").open()))
    assert [line["what"] for line in lines] == ["verify"] * 2 + ["draft"] * 3
    shown = capsys.readouterr().out
    assert re.search("Verifying a tree of n nodes", shown)
    assert "roofline.md" in shown


def test_misuse_is_one_line(target, quick, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for given, complaint in (
        ({"nodes": "1,two"}, "--nodes '1,two' is not a list of whole numbers; as in --nodes 1,8,64"),
        ({"nodes": "1,129"}, "--nodes has 129; choose tree sizes of 1 to 128"),
        ({"past": 0}, "--past is 0; it must be at least 1"),
        ({"past": 500}, "--past is 500; beside 16 new tokens the context of .* has room for 496"),
        ({"backend": "fast"}, "unknown backend 'fast'"),
        ({"backend": "eager", "method": ["pld:backend=static"]}, "pld:backend=static is not of the back end eager"),
        ({"method": ["medusa"]}, "medusa needs trained medusa weights"),
        ({"dtype": "fp31"}, "unknown dtype 'fp31'; did you mean"),
    ):
        with pytest.raises(app.UserError, match=complaint):
            roofline(**{"target": target, "nodes": "1", "past": 8, "dtype": "fp32", "device": "cpu", "backend": None, **given})
    assert not (tmp_path / "results").exists()


def test_methods_are_measured_as_asked(target, quick):
    found = run(Options(target, "fp32", "cpu", "eager", ["pld:nodes=3"], past=40, nodes=[2]), common.console)
    assert [(each.method, each.title) for each in found.drafted] == [("vanilla", "Vanilla"), ("pld:nodes=3", "Prompt lookup nodes=3")]
    assert [each.nodes for each in found.verified] == [1, 2]
    assert list(found.limit) == [1, 2]


@pytest.fixture
def no_chance():
    """No collection but those that are asked for."""
    gc.disable()
    yield
    gc.enable()


def test_the_target_before_is_freed_before_the_next_is_loaded(target, quick, monkeypatch, no_chance):
    load, loaded = targets.load, []

    def watched(*given, **options):
        assert [each() for each in loaded] == [None] * len(loaded)
        found = load(*given, **options)
        loaded.append(weakref.ref(found.model.get_input_embeddings().weight))  # which a target shares
        return found

    monkeypatch.setattr(targets, "load", watched)
    for name in ("static", "eager"):
        run(Options(target, "fp32", "cpu", name, ["pld"], past=8, nodes=[1]), common.console)
    assert len(loaded) == 2


def test_rules_are_warm_before_rounds_are_timed(target, quick, monkeypatch):
    order = []
    rounds = measure.rounds
    monkeypatch.setattr(running, "warm", lambda target, *arm: order.append("warm") or decode.warm(target, *arm))
    monkeypatch.setattr(measure, "rounds", lambda *given: order.append("timed") or rounds(*given))
    run(Options(target, "fp32", "cpu", "eager", ["pld"], past=8, nodes=[1]), common.console)
    assert order == ["warm", "timed"] * 2 + ["timed"] * 2 * running.ANSWERS
