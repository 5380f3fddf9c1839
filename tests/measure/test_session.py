"""How a run's options meet: the device's defaults, a tuned config, --set, the arm's own; and what a resume finds again."""

import dataclasses

import pytest
from helpers.small_models import CPU
from helpers.tiny_target import write_suite, write_target
from rich.console import Console

from methods.core import backend as backends
from methods.core.backend import DEFAULT_BACKEND
from methods.core.errors import UserError
from specbench.config.options import Options
from specbench.config.tuned import Config
from specbench.measure import session
from specbench.measure.runner import run
from specbench.measure.session import prepare, resolve
from specbench.store.manifest import RunManifest

TUNED = {"eagle2": {"nodes": 9, "depth": 3}, "pld": {"nodes": 4}}


def config(**changes):
    facts = {"target": "t", "target_sha256": "0" * 64, "dtype": "fp32", "device": "cpu", "backend": "eager", **changes}
    return Config(TUNED, facts, "tuned.toml")


def test_a_config_goes_before_the_defaults_and_behind_what_is_typed():
    arms = resolve(["eagle2", "eagle2:depth=2", "s4c"], ["eagle2.nodes=7"], "cpu", config=config())
    assert (arms["eagle2"].config.nodes, arms["eagle2"].config.depth, arms["eagle2"].config.width) == (7, 3, 3)
    assert (arms["eagle2:depth=2"].config.nodes, arms["eagle2:depth=2"].config.depth) == (9, 2)
    assert arms["s4c"].config.nodes == resolve(["s4c"], [], "cpu")["s4c"].config.nodes


def test_an_arm_may_have_a_back_end_of_its_own():
    arms = resolve(["pld", "vanilla:backend=eager"], [], "cpu", "static")
    assert {name: each.backend for name, each in arms.items()} == {"vanilla": "static", "pld": "static", "vanilla:backend=eager": "eager"}


@pytest.mark.parametrize("override", ["backend=eager", "vanilla.backend=eager"])
def test_no_override_changes_a_back_end_behind_an_arms_name(override):
    with pytest.raises(UserError, match="the back end of all arms is --backend; one arm's is named with it, METHOD:backend=eager"):
        resolve(["pld"], [override], "cpu", "static")


@pytest.fixture
def options(tmp_path):
    suite = write_suite(tmp_path / "suite.jsonl", [("a", "talks", ["Say a."])])
    return Options(["pld"], str(write_target(tmp_path / "t")), suite_file=suite, max_new_tokens=4, dtype="fp32", device="cpu")


def with_config(options, **changes):
    return Options(**{**vars(options), "config": config(**changes)})


def test_a_config_is_kept_in_the_manifest_and_used_again_by_resume(options, tmp_path, capsys):
    sha256 = prepare(options).manifest.target["weights_sha256"]
    session = prepare(with_config(options, target_sha256=sha256))
    run(session, tmp_path / "run", Console())
    found = RunManifest.read(tmp_path / "run")
    assert found.methods["pld"].config["nodes"] == 4
    again = prepare(Options.of(found))
    assert again.manifest.identity() == found.identity()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": "tiny-7b"}, "tuned for target 'tiny-7b', the run is on 't'"),
        ({"dtype": "bf16"}, "tuned for dtype 'bf16', the run is on 'fp32'"),
        ({"device": "cuda"}, "tuned for device 'cuda', the run is on 'cpu'"),
        ({"backend": "static"}, "tuned for backend 'static', the run is on 'eager'"),
        ({}, "tuned for other weights"),
    ],
)
def test_a_config_for_something_else_is_refused(options, changes, message):
    with pytest.raises(UserError, match=message):
        prepare(with_config(options, **changes))


def test_what_ships_is_the_static_back_end(options, monkeypatch):
    monkeypatch.setattr(session, "DEFAULT_BACKEND", DEFAULT_BACKEND)
    monkeypatch.setattr(backends, "_compiler_present", lambda device: False)
    manifest = prepare(options).manifest
    assert manifest.settings.backend == "static"
    assert {facts.backend for facts in manifest.methods.values()} == {"static"}


def test_a_second_copy_of_the_weights_has_to_fit(options, monkeypatch):
    monkeypatch.setattr(session, "free", lambda device: 1000)
    prepare(options)
    with pytest.raises(UserError, match=r"keeps a second copy of .*use --backend eager or a smaller --target"):
        prepare(Options(**{**vars(options), "backend": "static"}))


def test_arms_of_one_back_end_share_their_target(options):
    prepared = prepare(Options(**{**vars(options), "methods": ["pld", "vanilla:backend=static"]}))
    vanilla, pld, static = prepared.arms
    assert vanilla.target is pld.target is prepared.target
    assert static.target is not vanilla.target
    assert [each.target.backend.name for each in prepared.arms] == ["eager", "eager", "static"]
    assert static.target.device == CPU


def test_a_repeat_finds_no_state_of_its_own(options):
    with pytest.raises(UserError, match="recycling:scope=session keeps state across questions"):
        prepare(dataclasses.replace(options, methods=["recycling:scope=session"], repeats=2))
