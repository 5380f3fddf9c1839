"""The driver of `make gpu`: which steps run and for how long, the plan of the run, the identity of a visit; and shipping."""

import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from methods.core.errors import UserError
from specbench.config import tuned
from specbench.config.options import RunConfig
from specbench.config.tuned import TunedOn
from specbench.measure.session import prepare
from specbench.util.terminal import Console
from tools.gpu_visit import __main__ as command
from tools.gpu_visit import driver, measurement, steps
from tools.gpu_visit import visit as gpu_visit
from tools.gpu_visit.plan import LADDER, SPARE, Pace, plan
from tools.gpu_visit.steps import STEPS, VisitStep, pack, steps_of
from tools.gpu_visit.visit import Visit, VisitSettings

CONFIG = RunConfig(target="tiny", device="cpu", dtype="fp32", limit=1, backend="static")
SETTINGS = VisitSettings(CONFIG)
STUB = """
import json, pathlib, sys, time
out, step, budget = pathlib.Path(sys.argv[1]), sys.argv[3], sys.argv[5]
with (out / "calls").open("a") as calls: print(step, budget, file=calls)
action = json.loads((out / "script").read_text()).get(step, 0)
if action == "slow":
    try: time.sleep(60)
    except KeyboardInterrupt: (out / "orderly").touch(); sys.exit(130)
if action == 0:
    (out / "steps").mkdir(exist_ok=True); (out / "steps" / f"{step}.json").write_text("{}")
sys.exit(action)
"""


class ScriptedVisit:
    """A visit whose steps are played by a script: by name, an exit code or "slow"."""

    def __init__(self, out, seconds=100.0, needs=None, **script):
        self.visit, self.needs = Visit(SETTINGS, out, seconds), needs or {}
        self.early: tuple[str, ...] = ()
        self.may_use_all: tuple[str, ...] = ()
        (out / "script").write_text(json.dumps(script))
        (out / "stub.py").write_text(STUB)
        self.printed = Console(record=True, quiet=False, width=200, file=open("/dev/null", "w"))  # noqa: SIM115

    def drive(self, **reserved):
        steps = {
            name: VisitStep(seconds, lambda visit, console: {}, self.needs.get(name, ()), name in self.early, name in self.may_use_all)
            for name, seconds in reserved.items()
        }
        out = self.visit.out
        code = driver.drive(self.visit, steps, [sys.executable, "-S", str(out / "stub.py"), str(out)], self.printed)
        calls = out / "calls"
        found = [line.split() for line in calls.read_text().splitlines()] if calls.is_file() else []
        calls.unlink(missing_ok=True)
        return code, found


def test_steps_run_in_order_and_once(tmp_path):
    visit = ScriptedVisit(tmp_path)
    code, calls = visit.drive(a=10, b=20, c=30)
    assert code == 0
    assert [call[0] for call in calls] == ["a", "b", "c"]
    assert visit.drive(a=10, b=20, c=30) == (0, [])


def test_a_step_may_take_the_time_that_is_not_reserved_for_later_steps(tmp_path):
    visit = ScriptedVisit(tmp_path)
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "c.json").write_text("{}")
    _, calls = visit.drive(a=10, b=20, c=30)
    assert [float(call[1]) for call in calls] == pytest.approx([80, 100], abs=2), "c is done and takes nothing"


def test_early_steps_reserve_no_time_for_other_steps(tmp_path):
    visit = ScriptedVisit(tmp_path)
    visit.early = ("a", "b")
    _, calls = visit.drive(a=10, b=20, c=30, d=40)
    assert [float(call[1]) for call in calls] == pytest.approx([80, 100, 60, 100], abs=2)


def test_some_steps_may_use_all_the_remaining_time(tmp_path):
    visit = ScriptedVisit(tmp_path)
    visit.early, visit.may_use_all = ("a", "b"), ("a",)
    _, calls = visit.drive(a=10, b=20, c=30)
    assert [float(call[1]) for call in calls] == pytest.approx([100, 100, 100], abs=2)


def test_a_step_with_less_than_its_reserved_time_is_not_started(tmp_path):
    visit = ScriptedVisit(tmp_path)
    code, calls = visit.drive(a=10, b=101)
    assert (code, [call[0] for call in calls]) == (3, ["a"])
    assert "b: not started, it needs 101 s" in visit.printed.export_text()


def test_a_failed_step_is_left_to_do_and_the_others_run(tmp_path):
    visit = ScriptedVisit(tmp_path, b=70)
    code, calls = visit.drive(a=10, b=20, c=30)
    assert (code, [call[0] for call in calls]) == (3, ["a", "b", "c"])
    assert "left to do: b" in visit.printed.export_text()
    assert [call[0] for call in visit.drive(a=10, b=20, c=30)[1]] == ["b"]


def test_a_wrong_result_stops_everything(tmp_path):
    visit = ScriptedVisit(tmp_path, b=1)
    code, calls = visit.drive(a=10, b=20, c=30)
    assert (code, [call[0] for call in calls]) == (1, ["a", "b"])
    assert "WRONG RESULTS in b" in visit.printed.export_text()
    assert (tmp_path / "outcome.txt").read_text() == "wrong results in b\n"


def test_the_outcome_is_written_to_the_folder(tmp_path):
    visit = ScriptedVisit(tmp_path, b=70)
    visit.drive(a=10, b=20)
    assert (tmp_path / "outcome.txt").read_text() == "left to do: b\n"
    (tmp_path / "script").write_text("{}")
    visit.drive(a=10, b=20)
    assert (tmp_path / "outcome.txt").read_text() == "all done\n"


def test_a_step_out_of_time_is_interrupted(tmp_path):
    visit = ScriptedVisit(tmp_path, seconds=0.6, a="slow")
    began = time.monotonic()
    code, calls = visit.drive(a=0.5, b=5)
    assert time.monotonic() - began < driver.GRACE_S, "the step was interrupted, not killed"
    assert (code, [call[0] for call in calls]) == (3, ["a"]), "for b there is no time left"
    assert (tmp_path / "orderly").is_file()
    assert "a: out of time" in visit.printed.export_text()


def test_a_step_waits_for_those_it_needs(tmp_path):
    visit = ScriptedVisit(tmp_path, needs={"c": ["a", "b", "of another visit"]}, b=70)
    code, calls = visit.drive(a=10, b=20, c=30)
    assert (code, [call[0] for call in calls]) == (3, ["a", "b"])
    assert "c: not started, it needs b" in visit.printed.export_text()


def test_the_first_visit_makes_the_report_and_the_second_the_rest(tmp_path):
    first = {name: step for name, step in STEPS.items() if step.early}
    assert list(STEPS)[: len(first)] == list(first) == ["environment", "correctness", "tune", "run", "report"]
    assert sum(step.reserved_s for step in first.values()) <= command.BUDGET_S
    assert sum(step.reserved_s for name, step in STEPS.items() if name not in first) <= command.BUDGET_S
    assert command.BUDGET_S + driver.GRACE_S <= 9 * 60 - 30, "imports come on top"
    untuned, tuned = (steps_of(Visit(replace(SETTINGS, tuning=file), tmp_path, 1)) for file in (None, Path("file")))
    assert list(untuned) == [name for name in STEPS if name != "tune"]
    assert list(tuned) == list(STEPS)


def test_every_measurement_needs_the_correctness_check():
    def needed(name):
        return {name}.union(*(needed(each) for each in STEPS[name].needs))

    assert [name for name in STEPS if "correctness" not in needed(name)] == ["environment"]


def test_a_folder_takes_no_steps_of_other_settings_prompts_or_code(tmp_path, monkeypatch):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("{}")
    out = tmp_path / "out"
    Visit(SETTINGS, out, 1).claim()
    Visit(replace(SETTINGS), out, 1).claim()
    for other, said in (
        (VisitSettings(replace(CONFIG, target="tiny-7b", limit=20)), "target tiny -> tiny-7b; limit 1 -> 20"),
        (VisitSettings(CONFIG, prompts), "tuning None -> 44136fa355b3"),
    ):
        with pytest.raises(UserError, match=f"other settings: {said}; choose another --out"):
            Visit(other, out, 1).claim()
        assert other.fingerprint() != SETTINGS.fingerprint(), "another default folder"
    monkeypatch.setattr(gpu_visit, "code_sha256", lambda: "f" * 64)
    changed = replace(SETTINGS)
    with pytest.raises(UserError, match=r"other settings: code .{12} -> f{12}; "):
        Visit(changed, out, 1).claim()
    assert changed.fingerprint() != SETTINGS.fingerprint()


def test_the_code_is_every_file_of_the_packages(tmp_path, monkeypatch):
    def digest():
        gpu_visit.code_sha256.cache_clear()
        return gpu_visit.code_sha256()

    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "rules.toml").write_text("a = 1")
    monkeypatch.setattr(gpu_visit.specbench, "__path__", [str(tmp_path)])
    before = digest()
    (tmp_path / "__pycache__" / "module.pyc").write_text("")
    assert digest() == before
    (tmp_path / "rules.toml").write_text("a = 2")
    assert digest() != before
    monkeypatch.undo()
    gpu_visit.code_sha256.cache_clear()


def test_files_too_large_to_bring_back_are_marked(tmp_path):
    (tmp_path / "small").write_bytes(b"x" * 2048)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(17 * 2**20)
    small, large, total = Visit(SETTINGS, tmp_path, 1).listing()
    assert small.split() == ["2.0", "KiB", str(tmp_path / "small")]
    assert large.endswith("large  (above 16 MiB: leave it or pack it)")
    assert "in 2 files" in total


PACES = {"vanilla": Pace(0.1, 0.01), "s4c": Pace(0.1, 0.005), "s4c:backend=eager": Pace(0.2, 0.02)}


def cost(arms, tokens, turns=10, warmups=2):
    return SPARE * sum(turns * PACES[arm].turn_s(tokens) + warmups * PACES[arm].turn_s(min(32, tokens)) for arm in arms)


def test_the_plan_takes_the_most_tokens_that_fit():
    for tokens in (64, 96, 128, 192):
        chosen = plan(PACES, ["s4c:backend=eager"], 10, 2, cost(PACES, tokens) + 1e-6)
        assert (chosen.arms, chosen.max_new_tokens) == (list(PACES), tokens)
        assert chosen.seconds == pytest.approx(cost(PACES, tokens))
    assert plan(PACES, [], 10, 2, 1e9).max_new_tokens == LADDER[-1]


def test_with_few_tokens_the_spare_arms_are_dropped_and_named():
    chosen = plan(PACES, ["s4c:backend=eager"], 10, 2, cost(PACES, 64) - 0.1)  # enough for two arms of 128 tokens, not of 192
    assert chosen.arms == ["vanilla", "s4c"]
    assert chosen.max_new_tokens == 128
    assert "left out for that: s4c:backend=eager" in chosen.why


def test_the_smallest_plan_is_taken_if_nothing_fits():
    chosen = plan(PACES, ["s4c:backend=eager"], 10, 2, 1.0)
    assert (chosen.arms, chosen.max_new_tokens) == (["vanilla", "s4c"], LADDER[0])
    assert "continues at the next call" in chosen.why


def test_a_planned_session_is_the_one_that_a_resume_prepares(tmp_path):
    from specbench.targets import checkpoint, shipped_folder

    facts = TunedOn("tiny", checkpoint.sha256(shipped_folder()), "fp32", "cpu", "static")
    tuned.write(tmp_path / "tune.toml", {"pld": {"nodes": 4}}, facts, {})
    visit = Visit(SETTINGS, tmp_path, 100)
    visit.finish("environment", {"suite": "mini", "suite_note": "why"})
    given = measurement.plan_inputs(visit)
    (tmp_path / "tune.toml").unlink()  # the plan has a copy of the tuned options
    everything = prepare(measurement.run_config(visit, given, ["pld", "vanilla:backend=eager", "pld:backend=eager"]))
    chosen = plan({engine.name: PACES["s4c"] for engine in everything.own}, ["pld:backend=eager"], 7, 2, 12.0)
    now = measurement.narrowed(everything, chosen)
    given = json.loads(json.dumps(given))
    resumed = prepare(measurement.run_config(visit, given, [arm for arm in chosen.arms if arm != "s4c#2"]))
    again = measurement.narrowed(resumed, chosen)
    assert "pld:backend=eager" not in chosen.arms
    assert [engine.name for engine in now.own] == [engine.name for engine in again.own]
    assert (now.manifest.identity(), now.manifest.units_total) == (again.manifest.identity(), again.manifest.units_total)
    assert now.manifest.arms == again.manifest.arms
    assert now.manifest.arms["pld"].config["nodes"] == 4, "as tuned"
    assert now.manifest.settings.max_new_tokens == chosen.max_new_tokens < LADDER[-1]
    assert now.target.cache.capacity == again.target.cache.capacity, "or all is compiled again"


def test_records_are_packed_once(tmp_path):
    from specbench.store import records
    from specbench.store.records import Record

    writer = records.Writer(tmp_path)
    writer.write(Record("vanilla", "1", "qa", 0, 0, "error", error="no"))
    writer.close()
    before = records.read(tmp_path)
    for _ in range(2):
        pack(tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl.xz"]
        assert records.read(tmp_path) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "profil", "--device", "cpu"], "unknown step 'profil'; did you mean 'profile'"),
        (["--device", "cpu", "--tuning", "none.jsonl"], "tuning file none.jsonl does not exist"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--only", "report", "--device", "cpu", "--target", "tiny"], "report needs the step run"),
        (["--only", "roofline-static", "--device", "cpu", "--target", "tiny"], "roofline-static needs the step correctness"),
    ],
)
def test_misuse_is_one_line_and_exit_code_2(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path / "out"), *arguments])
    with pytest.raises(SystemExit) as exit_:
        command.main()
    assert exit_.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (ZeroDivisionError(), 70)])
def test_interrupts_and_bugs_have_exit_codes_of_their_own(error, code, tmp_path, monkeypatch, capsys):
    def broken(visit, console):
        raise error

    monkeypatch.setitem(STEPS, "environment", VisitStep(1, broken))
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path), "--device", "cpu", "--target", "tiny", "--only", "environment"])
    with pytest.raises(SystemExit) as exit_:
        command.main()
    assert exit_.value.code == code
    assert not (tmp_path / "steps").exists()


def test_a_step_with_wrong_results_is_not_done(tmp_path, monkeypatch):
    monkeypatch.setitem(STEPS, "correctness", VisitStep(1, lambda visit, console: {"wrong": ["fp32: s4c"]}))
    visit = Visit(SETTINGS, tmp_path, 1)
    assert command.do_step(visit, "correctness", Console(quiet=True)) == 1
    assert visit.done("correctness") is None


@pytest.mark.parametrize(("free", "fits"), [(25e9, False), (79e9, True)])
def test_the_reference_target_is_loaded_if_it_fits(monkeypatch, free, fits):
    from specbench.util import memory

    monkeypatch.setattr(memory, "free_memory", lambda device: int(free))
    assert steps.reference_fits("tiny-7b", "cuda") is fits
    assert steps.reference_fits("tiny-33b", "cuda") is False
    assert steps.reference_fits("tiny", "cuda") is True
