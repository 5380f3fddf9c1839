"""Every step of `make gpu`, run on the CPU with a small target in place of the shipped one, a few tokens and one question."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.tiny_target import write_drafters, write_target

from methods import registry
from methods.core.errors import UserError
from specbench import targets
from specbench.config.options import RunConfig
from specbench.engines import own
from specbench.measure import measurer, runner
from specbench.measure.resolve import settle
from specbench.store import records
from specbench.store.records import Record
from specbench.studies.roofline import NODES, measure
from specbench.studies.roofline import run as roofline_run
from specbench.studies.tune import report as tune_report
from specbench.studies.tune import run as tune_run
from specbench.suites import spec_bench
from specbench.targets import target as loading
from specbench.util.terminal import Console
from tools.gpu_visit import correctness, measurement, plan, steps
from tools.gpu_visit.visit import Visit, VisitSettings

QUIET = Console(quiet=True)


def visit_to(out, tuning=None):
    config = RunConfig(target="tiny", device="cpu", dtype="fp32", categories=["mt_bench"], limit=1, backend="static")
    return Visit(VisitSettings(settle(config), tuning), out, 60)


@pytest.fixture(scope="module")
def visit(tmp_path_factory):
    return visit_to(tmp_path_factory.mktemp("gpu"))


@pytest.fixture(scope="module")
def small_target(tmp_path_factory):
    folder = tmp_path_factory.mktemp("target")
    write_drafters(write_target(folder, context=2048), tmp_path_factory.mktemp("draft"))
    return folder


@pytest.fixture(autouse=True)
def small(monkeypatch, small_target):
    """Use a small target in place of the shipped one, fewer tokens and smaller buffers, no compiler, and no network."""
    for module in (targets, loading):
        monkeypatch.setattr(module, "shipped_folder", lambda: small_target)
    monkeypatch.setenv("CXX", "none")  # compiling takes seconds a shape
    monkeypatch.setattr(measurer, "WARMUP_TOKENS", 4)
    monkeypatch.setattr(correctness, "TOKENS", 5)
    monkeypatch.setattr(plan, "LADDER", (4,))
    monkeypatch.setattr(measurement, "LADDER", (4,))
    monkeypatch.setattr(measurement, "METHODS", ("pld", "s4c"))
    monkeypatch.setattr(measurement, "EAGER", ())
    monkeypatch.setattr(steps, "BENCH_TOKENS", 4)
    monkeypatch.setattr(steps, "BENCH_PAIRS", 1)
    monkeypatch.setattr(steps, "TRACED", ("vanilla",))
    monkeypatch.setattr(steps, "TRACED_TOKENS", 3)
    monkeypatch.setattr(measure, "COPIED", 2**20)
    monkeypatch.setattr(measure, "SIDE", {"cpu": 64})
    monkeypatch.setattr(measure, "PASSES", (1, 1))
    monkeypatch.setattr(roofline_run, "ANSWERS", 1)
    monkeypatch.setattr(roofline_run, "NEW_TOKENS", 24)

    def no_network(path):
        raise UserError("no network; pass --suite-file FILE")

    monkeypatch.delenv("SPECBENCH_DATA", raising=False)
    monkeypatch.setattr(spec_bench, "cache_folder", lambda: small_target / "nothing")
    monkeypatch.setattr(spec_bench, "_download", no_network)


def do(visit, name):
    facts = steps.STEPS[name].run(visit, QUIET)
    visit.finish(name, facts)
    return json.loads((visit.out / "steps" / f"{name}.json").read_text())


def test_environment(visit):
    facts = do(visit, "environment")
    assert {"torch", "transformers", "cpu", "gpu", "driver", "git", "clocks", "code"} <= facts.keys()
    assert facts["suite"] == "mini"
    assert "no network" in facts["suite_note"]


def test_a_network_that_does_not_answer_does_not_delay_the_visit(monkeypatch):
    monkeypatch.setattr(steps, "PROBE_S", 0.1)
    monkeypatch.setattr(spec_bench, "_download", lambda path: time.sleep(20))
    began = time.monotonic()
    suite, note = steps.available_suite()
    assert time.monotonic() - began < 10
    assert suite == "mini"
    assert "no answer within" in note


def test_clocks_are_read_from_the_driver(monkeypatch):
    asked = []

    def driver(*command):
        asked.append(command)
        return "NVIDIA H100, 1980 MHz, 2619 MHz, 1980 MHz, 2619 MHz, 120.1 W, 700.00 W, 35, 81559 MiB\nNVIDIA H100, 345 MHz"

    monkeypatch.setattr(steps, "output_of", driver)
    assert steps.clocks()["clocks.max.mem"] == "2619 MHz"
    assert steps.clocks()["memory.total"] == "81559 MiB"
    assert asked[0][0] == "nvidia-smi"
    monkeypatch.setattr(steps, "output_of", lambda *command: "")
    assert steps.clocks() == {}


@pytest.mark.slow
def test_every_method_is_checked_on_both_back_ends(visit):
    ready = [name for name, row in registry.METHODS.items() if row.model or row.weights in (None, *registry.SHIPPED_WEIGHTS)]
    facts = do(visit, "correctness")
    assert facts["wrong"] == []
    assert [each["arm"] for each in facts["fp32"]] == [*ready[1:], *(f"{name}:backend=eager" for name in ready)]
    assert all(each["compared"] == each["same"] > 0 for each in facts["fp32"])


def spoilt(monkeypatch, arm: str, accept: Callable) -> None:
    """Build one arm with another acceptance rule."""
    build = registry.build

    def built(resolved, target, trained):
        drafter, rule = build(resolved, target, trained)
        return drafter, (accept(rule) if resolved.arm == arm else rule)

    monkeypatch.setattr(registry, "build", built)


def off_by_one(rule):
    """Return a rule whose emitted tokens are shifted by one."""

    def wrong(tree, logits_NV, *rest):
        return rule(tree, logits_NV.roll(1, dims=-1), *rest)

    return wrong


def says_something_else(monkeypatch):
    spoilt(monkeypatch, "medusa:backend=eager", off_by_one)


def says_nothing(monkeypatch):
    decode = own.decode

    def broken(target, drafter, *rest):
        if target.backend.name == "eager" and type(drafter).__module__.endswith("medusa"):
            raise RuntimeError("no")
        return decode(target, drafter, *rest)

    monkeypatch.setattr(own, "decode", broken)


@pytest.mark.parametrize(
    ("broken", "said"), [(says_something_else, "violation: medusa:backend=eager"), (says_nothing, "turn(s) failed in it")]
)
def test_a_back_end_whose_tokens_differ_or_whose_turns_fail_is_wrong(tmp_path, monkeypatch, broken, said):
    monkeypatch.setattr(registry, "METHODS", {name: registry.METHODS[name] for name in ("vanilla", "medusa")})
    visit = visit_to(tmp_path)
    with monkeypatch.context() as patch:
        broken(patch)
        found = correctness.correctness(visit, QUIET)
    assert found["wrong"]
    assert all(line.startswith("fp32: ") and said in line and "medusa:backend=eager" in line for line in found["wrong"])
    assert [path.name for path in tmp_path.iterdir()] == ["correctness-fp32-wrong"]
    assert correctness.correctness(visit, QUIET)["wrong"] == [], "by the answers of the program as it is now"


def test_the_roofline_has_every_method_on_static_and_vanilla_on_eager(visit, monkeypatch):
    monkeypatch.setattr(registry, "METHODS", {name: registry.METHODS[name] for name in ("vanilla", "s4c")})
    for backend, methods, nodes in (("static", {"vanilla", "s4c"}, (0, *NODES)), ("eager", {"vanilla"}, (0, 7, 63))):
        facts = do(visit, f"roofline-{backend}")
        assert any("GB/s" in line for line in facts["summary"])
        rows = json.loads((visit.out / f"roofline-{backend}" / "roofline.json").read_text())["rows"]
        assert {row["arm"] for row in rows if row["what"] == "draft"} == methods
        assert tuple(row["nodes"] for row in rows if row["what"] == "verify") == nodes


def test_tuning_takes_the_runs_methods_and_the_prompts_given(tmp_path, monkeypatch):
    asked, written = [], []
    tuning = SimpleNamespace(methods=[], conditions=SimpleNamespace(note=""), measured={})

    def noted(*given):
        asked.append(given)
        return tuning

    monkeypatch.setattr(tune_run, "run", noted)
    monkeypatch.setattr(tune_report, "write", lambda tuning, path: written.append(path))
    visit = visit_to(tmp_path, Path(__file__))
    do(visit, "tune")
    [(config, data, *_)] = asked
    assert (config.methods, config.suite_file, data, config.limit) == (list(steps.METHODS), Path(__file__), None, None)
    assert (config.target, config.backend) == ("tiny", "static")
    assert written == [measurement.tuned_file(visit)]


def test_tuning_without_prompts_is_a_user_error(visit):
    with pytest.raises(UserError, match="tune needs prompts; pass --tuning FILE"):
        do(visit, "tune")


def test_a_plan_is_kept_once_an_answer_is_recorded(tmp_path, monkeypatch):
    visit = visit_to(tmp_path)
    visit.finish("environment", {"suite": "mini", "suite_note": ""})
    monkeypatch.setattr(measurement, "paces", lambda session: dict.fromkeys(engine.name for engine in session.own))
    monkeypatch.setattr(measurer, "warm_up", lambda session, console: {})

    def asked(planned: int, answers: int) -> int:
        """Return the tokens a turn of a visit that would plan ``planned`` and is interrupted after ``answers``."""
        tokens = []

        def interrupted(executor, run_dir, console):
            run_dir.mkdir(exist_ok=True)
            executor.manifest.write(run_dir)
            tokens.append(executor.manifest.settings.max_new_tokens)
            writer = records.Writer(run_dir)
            for turn in range(answers):
                writer.write(Record("vanilla", "1", "qa", turn, 0, "error", error="no"))
            writer.close()
            raise KeyboardInterrupt

        monkeypatch.setattr(measurement, "plan", lambda paces, *rest: plan.RunPlan(list(paces), planned, 1.0, "as told"))
        monkeypatch.setattr(runner, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            measurement.measure(visit, QUIET)
        return tokens[0]

    assert [asked(2, 0), asked(3, 1), asked(4, 0)] == [2, 3, 3]


@pytest.mark.slow
def test_the_run_is_planned_once_measured_and_reported(visit, monkeypatch):
    facts = do(visit, "run")
    assert facts["suite"] == "mini"
    assert "says nothing of Spec-Bench" in facts["note"]
    assert facts["arms"] == ["vanilla", "pld", "s4c", "vanilla:backend=eager", "s4c#2"]
    manifest = json.loads((visit.out / "run" / "manifest.json").read_text())
    assert (manifest["status"], manifest["settings"]["max_new_tokens"]) == ("complete", 4)
    assert {name: arm["backend"] for name, arm in manifest["arms"].items()} == {
        arm: "eager" if "eager" in arm else "static" for arm in facts["arms"]
    }
    again = do(visit, "run")
    assert again["why"] == facts["why"], "planned once"

    noted = do(visit, "report")
    assert not (visit.out / "run" / "agreement.json").exists()
    assert "S4C (reconstruction)" in noted["sentence"]
    assert json.loads((visit.out / "verdict.json").read_text())["sentence"] == noted["sentence"]
    before = (visit.out / "report" / "report.md").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(steps, "reference_fits", lambda target, device: False)
        assert do(visit, "agreement")["judged"] is False
    assert do(visit, "agreement")["wrong"] == []
    assert (visit.out / "report" / "report.md").read_text() != before
    assert sorted(path.name for path in (visit.out / "run").iterdir()) == ["agreement.json", "manifest.json", "records.jsonl.xz"]


def test_bench_compares_with_transformers_generate(visit):
    facts = do(visit, "bench")
    assert "static vanilla / generate" in " ".join(facts)
    assert "generate" in (visit.out / "bench" / "bench.md").read_text()


def test_the_profiles_traces_are_small_enough_to_bring_back(visit):
    do(visit, "profile")
    assert (visit.out / "profile" / "profile.md").is_file()
    assert (visit.out / "profile" / "trace-vanilla.json.gz").is_file()
    assert not any("above" in line for line in visit.listing())
