"""`specbench scale`: the targets that fit, the files of a sweep, and its numbers beside the cost model's."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.commands import call
from helpers.edited_runs import without_digests

from methods.core.errors import UserError
from specbench import targets
from specbench.analysis.frames import pair, turns_frame
from specbench.cli.scale import scale
from specbench.config.options import RunConfig
from specbench.measure.resolve import plan
from specbench.store.records import Record, Steps
from specbench.studies.roofline.cost import Cost, Device, target_cost
from specbench.studies.scale import report, sizes, sweep
from specbench.studies.scale.points import measured_verify_ratio, points
from specbench.studies.scale.sweep import Request
from specbench.targets.widen import SHAPES, ModelShape
from specbench.util import memory
from specbench.util.terminal import Console

SMALL = ModelShape("a toy", 160, 12, 128, 128, 400, 4096)
LARGE = ModelShape("a larger toy", 192, 12, 256, 128, 512, 4200)
DEVICE = Device(bandwidth=1e9, rate=1e12)


def resolved(*methods, device="cpu", backend="eager"):
    """Return the methods as resolved for a device, without asking whether it is here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, "use_device", lambda device: None)
        return plan(RunConfig(methods=list(methods), target="tiny", dtype="fp32", device=device, backend=backend)).methods


ARMS = resolved("pld", "medusa", "eagle", "eagle2")


@pytest.fixture(autouse=True)
def small_shapes(monkeypatch):
    """Give the two smallest targets toy shapes; nothing is built in the others' shapes."""
    monkeypatch.setitem(SHAPES, "tiny-160m", SMALL)
    monkeypatch.setitem(SHAPES, "tiny-1b", LARGE)
    monkeypatch.setattr(sweep, "device_numbers", lambda device, dtype: DEVICE)
    sizes.size_of.cache_clear()
    yield
    sizes.size_of.cache_clear()


CONFIG = RunConfig(
    methods=["pld", "medusa"],
    suite="mini",
    categories=["mt_bench", "qa"],
    limit=1,
    max_new_tokens=8,
    dtype="fp32",
    device="cpu",
    backend="eager",
)


def asked(targets=("tiny-1b", "tiny-160m"), **changes):
    return Request.of(dataclasses.replace(CONFIG, **changes), targets)


def quiet():
    return Console(quiet=True)


def test_parameters_are_those_of_the_target_that_is_built():
    loaded = targets.load("tiny-160m", device="cpu", dtype="fp32", attention="sdpa")
    assert sizes.size_of("tiny-160m").parameters == loaded.parameters
    medusa, eagle = (loaded.drafter_for(ARMS[name]) for name in ("medusa", "eagle"))
    assert medusa is not None
    assert eagle is not None
    trained = sum(parameter.numel() for each in (medusa, eagle) for parameter in each.module.parameters())
    config = sizes.size_of("tiny-160m").config
    cache = 2 * config.num_hidden_layers * 128 * (config.max_position_embeddings + 128)
    assert sizes.needed(sizes.size_of("tiny-160m"), ARMS.values(), torch.float32, "cpu") == pytest.approx(
        1.05 * 4 * (loaded.parameters + trained + cache)
    )


def test_static_on_a_cpu_needs_the_weights_twice_and_each_back_end_a_cache():
    size = sizes.size_of("tiny-7b")
    need = {
        (device, names): sizes.needed(size, resolved(*names, device=device, backend="static").values(), torch.bfloat16, device)
        for device in ("cpu", "cuda")
        for names in (("pld",), ("pld", "vanilla:backend=eager"))
    }
    cache = 1.05 * 2 * 2 * 32 * 4096 * (4096 + 128)
    assert need["cuda", ("pld",)] == pytest.approx(1.05 * 2 * size.parameters + cache)
    assert need["cuda", ("pld", "vanilla:backend=eager")] - need["cuda", ("pld",)] == pytest.approx(cache)
    assert need["cpu", ("pld",)] - need["cuda", ("pld",)] == pytest.approx(1.05 * 2 * size.parameters)


def test_targets_run_smallest_first():
    assert sizes.smallest_first(["tiny-13b", "tiny-160m", "tiny-8b", "tiny-1b", "tiny-33b", "tiny-7b"]) == list(SHAPES)


def test_free_memory_is_what_the_system_reports(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal:  99 kB\nMemFree:  1 kB\nMemAvailable:   7 kB\n")
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    assert memory.free_memory("cpu") == 7 * 1024


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Run a sweep over both toys and a third target that is too large; return it with the printed text."""
    out = tmp_path_factory.mktemp("scale")
    patch = pytest.MonkeyPatch()
    patch.setitem(SHAPES, "tiny-160m", SMALL)
    patch.setitem(SHAPES, "tiny-1b", LARGE)
    patch.setattr(sweep, "device_numbers", lambda device, dtype: DEVICE)
    patch.setattr(memory, "free_memory", lambda device: 2**30)
    sizes.size_of.cache_clear()
    found = sweep.run(asked(targets=["tiny-33b", "tiny-1b", "tiny-160m"]), out, quiet())
    report.write(found, out)
    patch.undo()
    return found, out


@pytest.mark.slow
def test_each_target_is_a_run_and_one_that_does_not_fit_is_left_out_with_the_reason(swept):
    found, out = swept
    for name in ("tiny-160m", "tiny-1b"):
        manifest = json.loads((out / name / "manifest.json").read_text())
        assert (manifest["status"], list(manifest["arms"])) == ("complete", ["vanilla", "pld", "medusa"])
        assert manifest["target"]["label"] == "cost-matched"
    assert list(found.left_out) == ["tiny-33b"]
    assert "takes up to" in found.left_out["tiny-33b"]
    assert "1.0 free" in found.left_out["tiny-33b"]
    text = (out / "scale.md").read_text()
    assert "Left out: target tiny-33b" in text
    assert "cost-matched" in text
    assert {path.name for path in out.iterdir() if path.is_file()} == {"scale.json", "scale.csv", "scale.md", "scale.png", "scale.svg"}


def test_a_finished_sweep_loads_nothing_and_other_settings_are_refused(swept, monkeypatch):
    found, out = swept
    monkeypatch.setattr(sweep, "prepare", lambda config: pytest.fail("built again"))
    monkeypatch.setattr(sweep, "device_numbers", lambda device, dtype: pytest.fail("measured again"))
    again = sweep.run(asked(), out, quiet())
    assert (again.draft, again.load_s, again.device) == (found.draft, found.load_s, DEVICE)
    with pytest.raises(UserError, match=r"other settings \(max_new_tokens 8 -> 9\)"):
        sweep.run(asked(max_new_tokens=9), out, quiet())


def test_an_interrupted_target_is_resumed(swept, tmp_path, monkeypatch):
    found, _ = swept
    run, runs = sweep.runner.run, []

    def once(executor, run_dir, console):
        runs.append(run_dir.name)
        if len(runs) == 1:
            raise KeyboardInterrupt
        run(executor, run_dir, console)

    monkeypatch.setattr(sweep.runner, "run", once)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(asked(targets=["tiny-160m"]), tmp_path, quiet())
    monkeypatch.setattr(sweep, "draft_cost", lambda *given: pytest.fail("counted again"))
    assert sweep.run(asked(targets=["tiny-160m"]), tmp_path, quiet()).draft["tiny-160m"] == found.draft["tiny-160m"]
    assert runs == ["tiny-160m", "tiny-160m"]


def test_the_sweep_fails_if_the_smallest_target_does(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 1000)
    with pytest.raises(UserError, match="target tiny-160m in fp32 with its drafters takes up to"):
        sweep.run(asked(), tmp_path, quiet())


def test_a_target_that_runs_out_of_memory_is_left_out(swept, monkeypatch):
    _, out = swept

    def full(config):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(sweep, "prepare", full)
    monkeypatch.setattr(sweep, "draft_costs", lambda config, methods: {})
    monkeypatch.setattr(memory, "free_memory", lambda device: 10**15)
    again = sweep.run(asked(targets=["tiny-160m", "tiny-7b"]), out, quiet())
    assert again.left_out == {
        "tiny-7b": "target tiny-7b in fp32 with its drafters does not fit the memory of cpu; choose a smaller --target or --dtype"
    }


def test_rows_have_the_measured_numbers_and_the_cost_models(swept):
    found, out = swept
    rows = pd.read_csv(out / "scale.csv")
    measured = rows[rows["mat"].notna()]
    assert measured[["target", "arm"]].to_numpy().tolist() == [
        [target, method] for target in ("tiny-160m", "tiny-1b") for method in ("pld", "medusa")
    ]
    assert measured.groupby("arm")["mat"].nunique().eq(1).all(), "cost-matched: the small model's MAT at every size"
    assert np.allclose(measured["speedup_decode"], measured["mat"] / measured["step_cost"], rtol=1e-4)
    assert (measured["load_s"] > 0).all()
    assert (measured["peak_mib"] > 100).all()
    row = measured[(measured["target"] == "tiny-1b") & (measured["arm"] == "medusa")].iloc[0]
    size, past = sizes.size_of("tiny-1b"), int(row["past"])
    plain, tree = (target_cost(size.config, size.parameters, n, past, 4).seconds(DEVICE) for n in (1, 4))
    assert (row["nodes"], row["title"]) == (3, "Medusa")
    assert row["verify_ratio_limit"] == pytest.approx(tree / plain, rel=1e-4)
    draft = found.draft["tiny-1b"]["medusa"]
    assert draft.bytes > 0
    assert row["step_cost_limit"] == pytest.approx((tree + draft.seconds(DEVICE)) / plain, rel=1e-4)
    assert row["speedup_decode_limit"] == pytest.approx(row["mat"] / row["step_cost_limit"], rel=1e-4)
    beyond = rows[rows["mat"].isna()]
    assert set(beyond["target"]) == {"tiny-7b", "tiny-8b", "tiny-13b", "tiny-33b"}
    assert beyond["verify_ratio_limit"].notna().all()
    assert beyond["step_cost_limit"].isna().all()
    assert found.draft["tiny-1b"]["pld"] == Cost(0, 0)


def stored(out, name):
    """Return the records of a target's run as they are on disk."""
    return [json.loads(line) for line in (out / name / "records.jsonl").read_text().splitlines()]


def failing(row):
    kept = ("schema", "arm", "question_id", "category", "turn", "repeat")
    return {**{key: row[key] for key in kept}, "status": "error", "error": "out of it", "steps": {}}


def spoilt(out, name, fails):
    """Rewrite a run's records with failures for the turns that ``fails`` selects."""
    rows = [failing(row) if fails(row) else row for row in stored(out, name)]
    (out / name / "records.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def copied(swept, tmp_path):
    found, out = swept
    copy = shutil.copytree(out, tmp_path / "copy")
    for manifest in copy.glob("*/manifest.json"):
        without_digests(manifest.parent)
    return found, copy


def test_an_interrupted_run_does_not_count_as_measured(copied):
    found, out = copied
    path = out / "tiny-1b" / "manifest.json"
    path.write_text(path.read_text().replace('"complete"', '"interrupted"'))
    rows, failures = points(found, out)
    assert set(rows.loc[rows["mat"].notna(), "target"]) == {"tiny-160m"}
    assert set(rows.loc[rows["mat"].isna(), "target"]) == set(SHAPES) - {"tiny-160m"}
    assert failures == []


def test_a_method_whose_every_turn_failed_has_no_row_and_is_named(copied):
    found, out = copied
    spoilt(out, "tiny-1b", lambda row: row["arm"] == "medusa")
    rows, failures = points(found, out)
    assert rows.loc[rows["mat"].notna(), ["target", "arm"]].to_numpy().tolist() == [
        ["tiny-160m", "pld"], ["tiny-160m", "medusa"], ["tiny-1b", "pld"]
    ]  # fmt: skip
    assert failures == ["tiny-1b, Medusa: 2 question(s), a turn of each failed, the first: out of it"]
    assert set(rows.loc[rows["target"] == "tiny-7b", "arm"]) == {"pld", "medusa"}
    report.write(found, out)
    assert "Left out: tiny-1b, Medusa" in (out / "scale.md").read_text()


def test_nothing_is_shown_if_every_turn_failed(copied):
    found, out = copied
    for name in ("tiny-160m", "tiny-1b"):
        spoilt(out, name, lambda row: row["arm"] == "vanilla")
    with pytest.raises(UserError, match=r"has nothing to show: tiny-160m, Prompt lookup: 2 question.*out of it; choose another --target"):
        report.write(found, out)


def test_v_is_pooled_over_questions_and_lies_in_its_interval():
    def record(arm, question, verify_s):
        count = len(verify_s)
        none, ones = [0] * count, [1] * count
        steps = Steps(ones, none, none, ones, [0.0] * count, verify_s, [0.0] * count)
        return Record(arm, question, "qa", 0, 0, "ok", output_ids=[1] * (count + 1), total_s=sum(verify_s) + 1, steps=steps)

    turns = turns_frame(
        [
            *(record("vanilla", str(i), [1.0, 1.0, 1.0 + i / 10]) for i in range(8)),
            *(record("pld", str(i), [1.5, 1.5 + i / 4]) for i in range(8)),
        ],
        {},
    )
    found = measured_verify_ratio(pair(turns, "pld"))
    assert found.value == pytest.approx(((24 + 7.0) / 16) / ((24 + 2.8) / 24))
    assert found.low < found.value < found.high


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"targets": ["tiny"]}, "unknown cost-matched target 'tiny'"),
        ({"methods": ["medsua"]}, "did you mean 'medusa'"),
        ({"methods": ["hf-pld"]}, "hf-pld is another engine, whose steps specbench cannot time"),
        ({"suite": "maxi"}, "unknown suite 'maxi'"),
        ({"limit": 0}, "limit"),
        ({"max_new_tokens": 0}, "--max-new-tokens is 0"),
        ({"dtype": "fp8"}, "unknown dtype 'fp8'"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"backend": "static-ish"}, "unknown backend"),
    ],
)
def test_misuse_is_refused_before_anything_is_loaded(change, said):
    with pytest.raises(UserError, match=said):
        asked(**change)


def test_the_command_prints_its_output_folder_and_that_targets_are_cost_matched(swept, capsys):
    _, out = swept
    given = {"target": "tiny-160m", "suite": "mini", "limit": 1, "max-new-tokens": 8, "dtype": "fp32", "device": "cpu", "backend": "eager"}
    options = [f"--{option}={value}" for option, value in given.items()]
    call(scale, f"--out={out}", "--method=pld", "--method=medusa", *options)
    printed = capsys.readouterr().out
    assert "cost-matched" in printed
    assert f"scale: {out}/scale.md" in printed
