"""Every piece of `make gpu`, done for real on the CPU with the shipped target, a few tokens and one question a category."""

import inspect
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from methods.core.errors import UserError
from specbench import targets
from specbench.cli import tune as tune_cli
from specbench.engines import base
from specbench.measure import runner
from specbench.measure.session import registry
from specbench.store import records
from specbench.store.records import Record
from specbench.studies.roofline import NODES, measure
from specbench.studies.roofline import run as roofline_run
from specbench.suites import spec_bench
from tools.gpu_visit import correctness, measured, plan, steps
from tools.gpu_visit.work import Asked, Work

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
    monkeypatch.setattr(spec_bench, "_cache_dir", lambda: targets.shipped_folder() / "nothing")
    monkeypatch.setattr(spec_bench, "_download", no_network)


def do(work, name):
    facts = steps.PIECES[name].run(work, QUIET)
    work.finish(name, facts)
    return json.loads((work.out / "pieces" / f"{name}.json").read_text())


def test_environment(work):
    facts = do(work, "environment")
    assert {"torch", "transformers", "cpu", "gpu", "driver", "git", "clocks", "code"} <= facts.keys()
    assert facts["suite"] == "mini"
    assert "no network" in facts["suite_note"]


def test_a_network_that_does_not_answer_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(steps, "PROBE_S", 0.1)
    monkeypatch.setattr(spec_bench, "_download", lambda path: time.sleep(20))
    began = time.monotonic()
    suite, note = steps._suite()
    assert time.monotonic() - began < 10
    assert suite == "mini"
    assert "no answer within" in note


def test_the_clocks_are_the_drivers(monkeypatch):
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


def test_every_method_is_checked_on_both_back_ends(work):
    ready = [name for name, row in registry.METHODS.items() if row.model or row.weights in (None, *registry.SHIPPED_WEIGHTS)]
    facts = do(work, "correctness")
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
    """What the rule emits, shifted by one token."""

    def wrong(tree, logits_NV, *rest):
        return rule(tree, logits_NV.roll(1, dims=-1), *rest)

    return wrong


def says_something_else(monkeypatch):
    spoilt(monkeypatch, "medusa:backend=eager", off_by_one)


def says_nothing(monkeypatch):
    decode = base.decode

    def broken(target, drafter, *rest):
        if target.backend.name == "eager" and type(drafter).__module__.endswith("medusa"):
            raise RuntimeError("no")
        return decode(target, drafter, *rest)

    monkeypatch.setattr(base, "decode", broken)


@pytest.mark.parametrize(
    ("broken", "said"), [(says_something_else, "violation: medusa:backend=eager"), (says_nothing, "turn(s) failed in it")]
)
def test_a_back_end_that_says_something_else_or_nothing_is_wrong(tmp_path, monkeypatch, broken, said):
    monkeypatch.setattr(registry, "METHODS", {name: registry.METHODS[name] for name in ("vanilla", "medusa")})
    work = Work(Asked("tiny", "cpu", "fp32", 1, None), tmp_path, 60)
    with monkeypatch.context() as patch:
        broken(patch)
        found = correctness.correctness(work, QUIET)
    assert found["wrong"]
    assert all(line.startswith("fp32: ") and said in line and "medusa:backend=eager" in line for line in found["wrong"])
    assert [path.name for path in tmp_path.iterdir()] == ["correctness-fp32-wrong"]
    assert correctness.correctness(work, QUIET)["wrong"] == [], "by the answers of the program as it is now"


def test_roofline_is_of_every_method_on_static_and_of_vanilla_on_eager(work, monkeypatch):
    monkeypatch.setattr(registry, "METHODS", {name: registry.METHODS[name] for name in ("vanilla", "s4c")})
    for backend, methods, sizes in (("static", {"vanilla", "s4c"}, NODES), ("eager", {"vanilla"}, (1, 8, 64))):
        facts = do(work, f"roofline-{backend}")
        assert any("GB/s" in line for line in facts["summary"])
        rows = json.loads((work.out / f"roofline-{backend}" / "roofline.json").read_text())["rows"]
        assert {row["method"] for row in rows if row["what"] == "draft"} == methods
        assert tuple(row["nodes"] for row in rows if row["what"] == "verify") == sizes


def test_tuning_is_of_the_runs_methods_on_the_prompts_given(tmp_path, monkeypatch):
    signature, given = inspect.signature(tune_cli.tune), []
    monkeypatch.setattr(tune_cli, "tune", lambda **options: given.append(signature.bind(**options).arguments))
    do(Work(Asked("tiny", "cpu", "fp32", 1, __file__), tmp_path, 60), "tune")
    [options] = given
    assert (options["method"], options["suite_file"]) == (list(steps.METHODS), Path(__file__))
    assert options["out"] == measured.tuned(Work(Asked("tiny", "cpu", "fp32", 1, None), tmp_path, 60))


def test_tuning_without_prompts_is_misuse(work):
    with pytest.raises(UserError, match="tune needs prompts; pass --tuning FILE"):
        do(work, "tune")


def test_a_plan_stays_once_an_answer_is_recorded_and_not_before(tmp_path, monkeypatch):
    work = Work(Asked("tiny", "cpu", "fp32", 1, None), tmp_path, 60)
    work.finish("environment", {"suite": "mini", "suite_note": ""})
    monkeypatch.setattr(measured, "paces", lambda session: dict.fromkeys(arm.name for arm in session.arms))
    monkeypatch.setattr(runner, "warm_up", lambda session, console: {})

    def asked(planned: int, answers: int) -> int:
        """Tokens a turn of a visit that would plan ``planned`` and is interrupted after ``answers``."""
        tokens = []

        def interrupted(session, run_dir, console):
            run_dir.mkdir(exist_ok=True)
            session.manifest.write(run_dir)
            tokens.append(session.manifest.settings.max_new_tokens)
            writer = records.Writer(run_dir)
            for turn in range(base):
                writer.write(Record("vanilla", "1", "qa", turn, 0, "error", error="no"))
            writer.close()
            raise KeyboardInterrupt

        monkeypatch.setattr(measured, "plan", lambda found, *rest: plan.Plan(list(found), planned, 1.0, "as told"))
        monkeypatch.setattr(runner, "run", interrupted)
        with pytest.raises(KeyboardInterrupt):
            measured.measured(work, QUIET)
        return tokens[0]

    assert [asked(2, 0), asked(3, 1), asked(4, 0)] == [2, 3, 3]


def test_the_run_is_planned_once_measured_and_reported(work, monkeypatch):
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
    assert not (work.out / "run" / "agreement.json").exists()
    assert "S4C (reconstruction)" in noted["sentence"]
    assert json.loads((work.out / "verdict.json").read_text())["sentence"] == noted["sentence"]
    before = (work.out / "report" / "report.md").read_text()
    with monkeypatch.context() as patch:
        patch.setattr(steps, "referee_fits", lambda target, device: False)
        assert do(work, "agreement")["judged"] is False
    assert do(work, "agreement")["wrong"] == []
    assert (work.out / "report" / "report.md").read_text() != before
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


@pytest.mark.parametrize(("free", "fits"), [(25e9, False), (79e9, True)])
def test_a_target_is_asked_again_in_fp32_where_that_fits(monkeypatch, free, fits):
    from specbench.util import memory

    monkeypatch.setattr(memory, "free", lambda device: int(free))
    assert steps.referee_fits("tiny-7b", "cuda") is fits
    assert steps.referee_fits("tiny-33b", "cuda") is False
    assert steps.referee_fits("tiny", "cuda") is True
