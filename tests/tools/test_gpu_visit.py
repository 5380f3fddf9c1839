"""What `make gpu` does around its pieces: which are left, how long each may take, what the run may hold, what ships."""

import json
import sys
import time
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from methods.core.errors import UserError
from specbench.config import tuned
from specbench.measure.session import prepare
from specbench.train import ship
from tools.gpu_visit import __main__ as command
from tools.gpu_visit import driver, measured
from tools.gpu_visit import work as gpu_work
from tools.gpu_visit.plan import LADDER, SPARE, Pace, plan
from tools.gpu_visit.steps import PIECES, Piece, due, pack
from tools.gpu_visit.work import Asked, Work

ASKED = Asked("tiny", "cpu", "fp32", 1, None)
STUB = """
import json, pathlib, sys, time
out, piece, budget = pathlib.Path(sys.argv[1]), sys.argv[3], sys.argv[5]
with (out / "calls").open("a") as calls: print(piece, budget, file=calls)
action = json.loads((out / "script").read_text()).get(piece, 0)
if action == "slow":
    try: time.sleep(60)
    except KeyboardInterrupt: (out / "orderly").touch(); sys.exit(130)
if action == 0:
    (out / "pieces").mkdir(exist_ok=True); (out / "pieces" / f"{piece}.json").write_text("{}")
sys.exit(action)
"""


class Visit:
    """A visit whose pieces are played by a script: what each does, by name; an exit code or "slow"."""

    def __init__(self, out, seconds=100.0, needs=None, **script):
        self.work, self.needs = Work(ASKED, out, seconds), needs or {}
        self.first = self.gates = ()
        (out / "script").write_text(json.dumps(script))
        (out / "stub.py").write_text(STUB)
        self.printed = Console(record=True, quiet=False, width=200, file=open("/dev/null", "w"))  # noqa: SIM115

    def drive(self, **meant):
        pieces = {
            name: Piece(seconds, lambda work, console: {}, self.needs.get(name, ()), name in self.first, name in self.gates)
            for name, seconds in meant.items()
        }
        code = driver.drive(self.work, pieces, [sys.executable, "-S", str(self.work.out / "stub.py"), str(self.work.out)], self.printed)
        calls = self.work.out / "calls"
        found = [line.split() for line in calls.read_text().splitlines()] if calls.is_file() else []
        calls.unlink(missing_ok=True)
        return code, found


def test_pieces_run_in_order_and_once(tmp_path):
    visit = Visit(tmp_path)
    code, calls = visit.drive(a=10, b=20, c=30)
    assert code == 0
    assert [call[0] for call in calls] == ["a", "b", "c"]
    assert visit.drive(a=10, b=20, c=30) == (0, [])


def test_a_piece_may_take_what_the_ones_after_it_are_not_meant_to_have(tmp_path):
    visit = Visit(tmp_path)
    (tmp_path / "pieces").mkdir()
    (tmp_path / "pieces" / "c.json").write_text("{}")
    _, calls = visit.drive(a=10, b=20, c=30)
    assert [float(call[1]) for call in calls] == pytest.approx([80, 100], abs=2), "c is done and takes nothing"


def test_what_comes_first_keeps_nothing_back_for_what_does_not(tmp_path):
    visit = Visit(tmp_path)
    visit.first = ("a", "b")
    _, calls = visit.drive(a=10, b=20, c=30, d=40)
    assert [float(call[1]) for call in calls] == pytest.approx([80, 100, 60, 100], abs=2)


def test_a_gate_may_take_all_that_is_left(tmp_path):
    visit = Visit(tmp_path)
    visit.first, visit.gates = ("a", "b"), ("a",)
    _, calls = visit.drive(a=10, b=20, c=30)
    assert [float(call[1]) for call in calls] == pytest.approx([100, 100, 100], abs=2)


def test_a_piece_with_less_time_than_it_is_meant_to_have_is_not_begun(tmp_path):
    visit = Visit(tmp_path)
    code, calls = visit.drive(a=10, b=101)
    assert (code, [call[0] for call in calls]) == (3, ["a"])
    assert "b: left, it is meant to have 101 s" in visit.printed.export_text()


def test_a_failed_piece_is_left_and_the_others_are_not(tmp_path):
    visit = Visit(tmp_path, b=70)
    code, calls = visit.drive(a=10, b=20, c=30)
    assert (code, [call[0] for call in calls]) == (3, ["a", "b", "c"])
    assert "left to do: b" in visit.printed.export_text()
    assert [call[0] for call in visit.drive(a=10, b=20, c=30)[1]] == ["b"]


def test_a_wrong_result_stops_everything_loudly(tmp_path):
    visit = Visit(tmp_path, b=1)
    code, calls = visit.drive(a=10, b=20, c=30)
    assert (code, [call[0] for call in calls]) == (1, ["a", "b"])
    assert "WRONG RESULTS in b" in visit.printed.export_text()
    assert (tmp_path / "outcome.txt").read_text() == "wrong results in b\n"


def test_how_the_visit_ended_is_left_for_who_does_not_see_the_exit_code(tmp_path):
    visit = Visit(tmp_path, b=70)
    visit.drive(a=10, b=20)
    assert (tmp_path / "outcome.txt").read_text() == "left to do: b\n"
    (tmp_path / "script").write_text("{}")
    visit.drive(a=10, b=20)
    assert (tmp_path / "outcome.txt").read_text() == "all done\n"


def test_a_piece_out_of_time_is_stopped_as_by_ctrl_c(tmp_path):
    visit = Visit(tmp_path, seconds=0.6, a="slow")
    began = time.monotonic()
    code, calls = visit.drive(a=0.5, b=5)
    assert time.monotonic() - began < driver.ORDERLY_S, "it heeded Ctrl-C"
    assert (code, [call[0] for call in calls]) == (3, ["a"]), "for b there is no time left"
    assert (tmp_path / "orderly").is_file()
    assert "a: out of time" in visit.printed.export_text()


def test_a_piece_waits_for_the_one_it_needs(tmp_path):
    visit = Visit(tmp_path, needs={"c": ["a", "b", "of another visit"]}, b=70)
    code, calls = visit.drive(a=10, b=20, c=30)
    assert (code, [call[0] for call in calls]) == (3, ["a", "b"])
    assert "c: left, it needs b" in visit.printed.export_text()


def test_one_visit_gives_a_run_and_its_report_in_nine_minutes_and_another_the_rest(tmp_path):
    first = {name: piece for name, piece in PIECES.items() if piece.first}
    assert list(PIECES)[: len(first)] == list(first) == ["environment", "correctness", "tune", "run", "report"]
    assert sum(piece.seconds for piece in first.values()) <= command.BUDGET_S
    assert sum(piece.seconds for name, piece in PIECES.items() if name not in first) <= command.BUDGET_S
    assert command.BUDGET_S + driver.ORDERLY_S <= 9 * 60 - 30, "imports come on top"
    untuned, tuned = (due(Work(replace(ASKED, tuning=file), tmp_path, 1)) for file in (None, "file"))
    assert list(untuned) == [name for name in PIECES if name != "tune"]
    assert list(tuned) == list(PIECES)


def test_nothing_is_measured_on_a_device_that_was_not_checked():
    def needed(name):
        return {name}.union(*(needed(each) for each in PIECES[name].needs))

    assert [name for name in PIECES if "correctness" not in needed(name)] == ["environment"]


def test_pieces_of_two_programs_settings_or_prompts_do_not_mix(tmp_path, monkeypatch):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("{}")
    out = tmp_path / "out"
    Work(ASKED, out, 1).claim()
    Work(replace(ASKED), out, 1).claim()
    for other, said in (
        (replace(ASKED, target="tiny-7b", limit=20), "target tiny -> tiny-7b; limit 1 -> 20"),
        (replace(ASKED, tuning=str(prompts)), "tuning None -> 44136fa355b3"),
    ):
        with pytest.raises(UserError, match=f"other settings: {said}; choose another --out"):
            Work(other, out, 1).claim()
        assert other.fingerprint() != ASKED.fingerprint(), "another default folder"
    monkeypatch.setattr(gpu_work, "code_sha256", lambda: "f" * 64)
    changed = replace(ASKED)
    with pytest.raises(UserError, match=r"other settings: code .{12} -> f{12}; "):
        Work(changed, out, 1).claim()
    assert changed.fingerprint() != ASKED.fingerprint()


def test_the_code_is_every_file_of_the_packages(tmp_path, monkeypatch):
    def digest():
        gpu_work.code_sha256.cache_clear()
        return gpu_work.code_sha256()

    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "rules.toml").write_text("a = 1")
    monkeypatch.setattr(gpu_work.specbench, "__path__", [str(tmp_path)])
    before = digest()
    (tmp_path / "__pycache__" / "module.pyc").write_text("")
    assert digest() == before
    (tmp_path / "rules.toml").write_text("a = 2")
    assert digest() != before
    monkeypatch.undo()
    gpu_work.code_sha256.cache_clear()


def test_what_is_too_large_to_bring_back_says_so(tmp_path):
    (tmp_path / "small").write_bytes(b"x" * 2048)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(17 * 2**20)
    small, large, total = Work(ASKED, tmp_path, 1).listing()
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


def test_with_few_tokens_the_spare_arms_go_first_and_are_named():
    chosen = plan(PACES, ["s4c:backend=eager"], 10, 2, cost(PACES, 64) - 0.1)  # enough for two arms of 128 tokens, not of 192
    assert chosen.arms == ["vanilla", "s4c"]
    assert chosen.max_new_tokens == 128
    assert "left out for that: s4c:backend=eager" in chosen.why


def test_where_nothing_fits_the_least_is_begun():
    chosen = plan(PACES, ["s4c:backend=eager"], 10, 2, 1.0)
    assert (chosen.arms, chosen.max_new_tokens) == (["vanilla", "s4c"], LADDER[0])
    assert "goes on at the next call" in chosen.why


def test_a_planned_session_is_the_one_that_a_resume_prepares(tmp_path):
    from specbench.targets import checkpoint, shipped_folder

    facts = {"target": "tiny", "target_sha256": checkpoint.sha256(shipped_folder()), "dtype": "fp32", "device": "cpu", "backend": "static"}
    tuned.write(tmp_path / "tune.toml", {"pld": {"nodes": 4}}, facts, {})
    work = Work(ASKED, tmp_path, 100)
    work.finish("environment", {"suite": "mini", "suite_note": "why"})
    kept = measured._given(work)
    (tmp_path / "tune.toml").unlink()  # what was tuned when the plan was made is in the plan
    everything = prepare(measured._options(work, kept, ["pld", "vanilla:backend=eager", "pld:backend=eager"]))
    chosen = plan({arm.name: PACES["s4c"] for arm in everything.arms}, ["pld:backend=eager"], 7, 2, 12.0)
    now = measured.narrowed(everything, chosen)
    kept = json.loads(json.dumps(kept))
    again = measured.narrowed(prepare(measured._options(work, kept, [arm for arm in chosen.arms if arm != "s4c#2"])), chosen)
    assert "pld:backend=eager" not in chosen.arms
    assert [arm.name for arm in now.arms] == [arm.name for arm in again.arms]
    assert (now.manifest.identity(), now.manifest.units_total) == (again.manifest.identity(), again.manifest.units_total)
    assert now.manifest.methods == again.manifest.methods
    assert now.manifest.methods["pld"].config["nodes"] == 4, "as tuned"
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
        (["--only", "profil", "--device", "cpu"], "unknown piece 'profil'; did you mean 'profile'"),
        (["--device", "cpu", "--tuning", "none.jsonl"], "tuning file none.jsonl does not exist"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--only", "report", "--device", "cpu", "--target", "tiny"], "report needs the piece run"),
        (["--only", "roofline-static", "--device", "cpu", "--target", "tiny"], "roofline-static needs the piece correctness"),
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
def test_no_accident_reads_as_a_wrong_result(error, code, tmp_path, monkeypatch, capsys):
    def broken(work, console):
        raise error

    monkeypatch.setitem(PIECES, "environment", Piece(1, broken))
    monkeypatch.setattr(sys, "argv", ["gpu", "--out", str(tmp_path), "--device", "cpu", "--target", "tiny", "--only", "environment"])
    with pytest.raises(SystemExit) as exit_:
        command.main()
    assert exit_.value.code == code
    assert not (tmp_path / "pieces").exists()


def test_a_wrong_result_is_not_noted_as_done(tmp_path, monkeypatch):
    monkeypatch.setitem(PIECES, "correctness", Piece(1, lambda work, console: {"wrong": ["fp32: s4c"]}))
    work = Work(ASKED, tmp_path, 1)
    assert command._piece(work, "correctness", Console(quiet=True)) == 1
    assert work.done("correctness") is None


def test_what_ships_is_foretold_to_the_parameter():
    """The shipped files were trained with preset micro: their tensors are the count."""
    from specbench import targets

    folder = targets.shipped_folder()
    files = {"target": "model", "medusa": "drafters/medusa", "eagle": "drafters/eagle", "s4c": "drafters/s4c"}
    held = {name: sum(t.numel() for t in load_file(folder / f"{file}.safetensors").values()) for name, file in files.items()}
    assert ship.parameters("micro") == held


def test_a_preset_that_comes_to_too_much_is_refused_before_it_is_trained(monkeypatch):
    ship.fits("micro", Console(quiet=True))
    monkeypatch.setattr(ship, "ALL", 12 * 2**20)
    with pytest.raises(UserError, match=r"preset micro in bf16: target 6.9, .* in all, 12 may ship; give it fewer layers"):
        ship.fits("micro", Console(quiet=True))


def test_large_weights_are_cut_into_files_that_hold_the_same(tmp_path, monkeypatch):
    import shutil

    from specbench import targets
    from specbench.targets import checkpoint

    folder = tmp_path / "target"
    shutil.copytree(targets.shipped_folder(), folder)
    before = load_file(folder / "model.safetensors")
    ship.shard(folder)
    assert (folder / "model.safetensors").is_file(), "small enough as it is"
    monkeypatch.setattr(ship, "LARGEST", 4 * 2**20)
    monkeypatch.setattr(ship, "SHARD", "4MB")
    hashes = []
    for _ in range(2):
        ship.shard(folder)
        parts = sorted(folder.glob("*.safetensors"))
        assert len(parts) == 2
        assert max(path.stat().st_size for path in parts) <= 4 * 2**20
        after = {name: tensor for path in parts for name, tensor in load_file(path).items()}
        assert after.keys() == before.keys()
        assert all(tensor.dtype == torch.bfloat16 and torch.equal(tensor, before[name]) for name, tensor in after.items())
        hashes.append(checkpoint.sha256(folder))
        save_file(before, folder / "model.safetensors", metadata={"format": "pt"})  # as a resumed training saves it again
    assert hashes[0] == hashes[1], "or drafters would be of another target"


def filled(folder, size=1000, without=""):
    (folder / "drafters").mkdir(parents=True)
    names = ["config.json", "model-1.safetensors", *(f"drafters/{kind}.safetensors" for kind in ("eagle", "medusa", "s4c"))]
    for name in names:
        if name != without:
            (folder / name).write_bytes(b"n" * size)
    return folder


def test_what_ships_replaces_what_did_and_leaves_no_old_weights(tmp_path):
    new, place = filled(tmp_path / "new"), tmp_path / "place"
    (place / "drafters").mkdir(parents=True)
    for name in ("model.safetensors", "drafters/old.safetensors", "keep.txt"):
        (place / name).write_text("old")
    left = ship.leave(new, place)
    assert {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()} == {"keep.txt", *map(str, left)}
    assert (place / "model-1.safetensors").read_bytes() == b"n" * 1000


@pytest.mark.parametrize(
    ("size", "without", "limits", "said"),
    [
        (1000, "drafters/s4c.safetensors", (2000, 9000), "lacks s4c"),
        (1000, "config.json", (2000, 9000), "lacks config.json"),
        (3000, "", (2000, 90000), "may ship in a file"),
        (1900, "", (2000, 9000), "may ship; train a smaller preset"),
    ],
)
def test_too_little_or_too_much_to_ship_changes_nothing(tmp_path, monkeypatch, size, without, limits, said):
    place = tmp_path / "place"
    place.mkdir()
    (place / "model.safetensors").write_text("old")
    for name, limit in zip(("LARGEST", "ALL"), limits, strict=True):
        monkeypatch.setattr(ship, name, limit)
    with pytest.raises(UserError, match=said):
        ship.leave(filled(tmp_path / "new", size, without), place)
    assert [path.name for path in place.iterdir()] == ["model.safetensors"]
