"""Every piece of `make gpu`, done for real on the CPU with the shipped target, a few tokens and one question a category."""

import json
from collections.abc import Callable

import pytest
from rich.console import Console

from methods.core.errors import UserError
from specbench import targets
from specbench.gpu import correctness, measured, pieces, plan
from specbench.gpu.work import Asked, Work
from specbench.roofline import measure
from specbench.roofline import run as roofline_run
from specbench.session import registry
from specbench.suites import spec_bench

QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return Work(Asked("tiny", "cpu", "fp32", 1, None), tmp_path_factory.mktemp("gpu"), 60)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Fewer tokens, smaller buffers, no compiler, no network."""
    monkeypatch.setenv("CXX", "none")  # compiling takes seconds a shape
    monkeypatch.setattr(correctness, "TOKENS", 5)
    monkeypatch.setattr(plan, "LADDER", (4,))
    monkeypatch.setattr(measured, "LADDER", (4,))
    monkeypatch.setattr(measured, "METHODS", ("pld", "s4c"))
    monkeypatch.setattr(measured, "EAGER", ())
    monkeypatch.setattr(pieces, "BENCH_TOKENS", 4)
    monkeypatch.setattr(pieces, "BENCH_PAIRS", 1)
    monkeypatch.setattr(pieces, "TRACED", ("vanilla",))
    monkeypatch.setattr(pieces, "TRACED_TOKENS", 3)
    monkeypatch.setattr(measure, "COPIED", 2**20)
    monkeypatch.setattr(measure, "SIDE", {"cpu": 64})
    monkeypatch.setattr(measure, "PASSES", (1, 1))
    monkeypatch.setattr(roofline_run, "ANSWERS", 1)
    monkeypatch.setattr(roofline_run, "NEW_TOKENS", 24)

    def no_network(path):
        raise UserError("no network; pass --suite-file FILE")

    monkeypatch.delenv("SPECBENCH_DATA", raising=False)
    monkeypatch.setattr(spec_bench, "_cache_dir", lambda: targets.shipped_folder() / "nothing")
    monkeypatch.setattr(spec_bench, "_download", no_network)


def do(work, name):
    facts = pieces.PIECES[name].run(work, QUIET)
    work.finish(name, facts)
    return json.loads((work.out / "pieces" / f"{name}.json").read_text())


def test_environment(work):
    facts = do(work, "environment")
    assert {"torch", "transformers", "cpu", "gpu", "driver", "git", "clocks"} <= facts.keys()


def test_the_clocks_are_the_drivers(monkeypatch):
    asked = []

    def driver(*command):
        asked.append(command)
        return "NVIDIA H100, 1980 MHz, 2619 MHz, 1980 MHz, 2619 MHz, 120.1 W, 700.00 W, 35, 81559 MiB\nNVIDIA H100, 345 MHz"

    monkeypatch.setattr(pieces, "_output", driver)
    assert pieces.clocks()["clocks.max.mem"] == "2619 MHz"
    assert pieces.clocks()["memory.total"] == "81559 MiB"
    assert asked[0][0] == "nvidia-smi"
    monkeypatch.setattr(pieces, "_output", lambda *command: "")
    assert pieces.clocks() == {}


def test_every_method_is_checked_on_both_back_ends(work):
    facts = do(work, "correctness")
    assert facts["wrong"] == []
    assert [each["arm"] for each in facts["fp32"]] == [
        *(name for name in registry.METHODS if name != "vanilla"),
        *(f"{name}:backend=eager" for name in registry.METHODS),
    ]
    assert all(each["compared"] == each["same"] > 0 for each in facts["fp32"])


def spoilt(monkeypatch, arm: str, accept: Callable) -> None:
    """Build one arm with another acceptance rule."""
    build = registry.build

    def built(resolved, target, trained):
        drafter, rule = build(resolved, target, trained)
        return drafter, (accept(rule) if resolved.arm == arm else rule)

    monkeypatch.setattr(registry, "build", built)


def off_by_one(rule):
    """What the rule emits, shifted by one token."""

    def wrong(tree, logits_NV, *rest):
        return rule(tree, logits_NV.roll(1, dims=-1), *rest)

    return wrong


def fails(rule):
    def broken(*given):
        raise RuntimeError("no")

    return broken


@pytest.mark.parametrize(("accept", "said"), [(off_by_one, "violation: medusa:backend=eager"), (fails, "turn(s) failed in it")])
def test_a_back_end_that_says_something_else_or_nothing_is_wrong(tmp_path, monkeypatch, accept, said):
    spoilt(monkeypatch, "medusa:backend=eager", accept)
    monkeypatch.setattr(registry, "METHODS", {name: registry.METHODS[name] for name in ("vanilla", "medusa")})
    found = correctness.correctness(Work(Asked("tiny", "cpu", "fp32", 1, None), tmp_path, 60), QUIET)
    assert found["wrong"]
    assert all(line.startswith("fp32: ") and said in line and "medusa:backend=eager" in line for line in found["wrong"])


def test_roofline_is_of_both_back_ends(work, monkeypatch):
    monkeypatch.setattr(registry, "METHODS", {name: registry.METHODS[name] for name in ("vanilla", "s4c")})
    facts = do(work, "roofline")
    for backend in ("static", "eager"):
        assert (work.out / f"roofline-{backend}" / "roofline.md").is_file()
        assert any("GB/s" in line for line in facts[backend])


def test_without_prompts_nothing_is_tuned_and_it_says_so(work):
    facts = do(work, "tune")
    assert facts["tuned"] is False
    assert "TUNING=FILE" in facts["why"]


def test_the_run_is_planned_once_measured_and_reported(work):
    facts = do(work, "run")
    assert facts["suite"] == "mini"
    assert "says nothing of Spec-Bench" in facts["note"]
    assert facts["arms"] == ["vanilla", "pld", "s4c", "vanilla:backend=eager", "s4c#2"]
    manifest = json.loads((work.out / "run" / "manifest.json").read_text())
    assert (manifest["status"], manifest["settings"]["max_new_tokens"]) == ("complete", 4)
    assert {name: method["backend"] for name, method in manifest["methods"].items()} == {
        arm: "eager" if "eager" in arm else "static" for arm in facts["arms"]
    }
    again = do(work, "run")
    assert again["why"] == facts["why"], "planned once"

    noted = do(work, "report")
    assert noted["wrong"] == []
    assert "S4C (reconstruction)" in noted["sentence"]
    assert json.loads((work.out / "verdict.json").read_text())["sentence"] == noted["sentence"]
    assert (work.out / "report" / "report.html").is_file()
    assert sorted(path.name for path in (work.out / "run").iterdir()) == ["agreement.json", "manifest.json", "records.jsonl.xz"]


def test_bench_has_transformers_generate_as_reference(work):
    facts = do(work, "bench")
    assert "static vanilla / generate" in " ".join(facts)
    assert "generate" in (work.out / "bench" / "bench.md").read_text()


def test_the_profile_leaves_traces_small_enough_to_bring_back(work):
    do(work, "profile")
    assert (work.out / "profile" / "profile.md").is_file()
    assert (work.out / "profile" / "trace-vanilla.json.gz").is_file()
    assert not any("above" in line for line in work.listing())
