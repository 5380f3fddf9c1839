"""Preparing a run: which of defaults, tuned options, --set and an arm's own options wins, and what is refused."""

import dataclasses

import pytest
from helpers.small_models import CPU
from helpers.tiny_target import write_suite, write_target

from methods.core import backend as backends
from methods.core.errors import UserError
from specbench.config.options import RunConfig
from specbench.config.tuned import Tuned, TunedOn
from specbench.measure import resolve, session
from specbench.measure.runner import LocalExecutor, run
from specbench.measure.session import prepare
from specbench.store.manifest import RunManifest
from specbench.util.terminal import Console

TUNED = {"eagle2": {"nodes": 9, "depth": 3}, "pld": {"nodes": 4}}


def methods(names, **changes):
    """Return the arms of a run by name, with their options settled."""
    return resolve.plan(RunConfig(methods=names, device="cpu", dtype="fp32", target="t", **changes)).methods


def tuned(**changes):
    """Return tuned options that were tuned on the facts of ``options``, with changes."""
    facts = TunedOn(**{"target": "t", "target_sha256": "0" * 64, "dtype": "fp32", "device": "cpu", "backend": "eager", **changes})
    return Tuned(TUNED, facts, "tuned.toml")


def test_tuned_options_override_defaults_and_are_overridden_by_set():
    arms = methods(["eagle2", "eagle2:depth=2", "s4c"], overrides=["eagle2.nodes=7"], tuned=tuned())
    assert (arms["eagle2"].config.nodes, arms["eagle2"].config.depth, arms["eagle2"].config.width) == (7, 3, 3)
    assert (arms["eagle2:depth=2"].config.nodes, arms["eagle2:depth=2"].config.depth) == (9, 2)
    assert arms["s4c"].config.nodes == methods(["s4c"])["s4c"].config.nodes


def test_options_of_an_arm_override_set():
    arms = methods(["s4c", "s4c:nodes=8,tree=fresh"], overrides=["nodes=6", "s4c.depth=3"])
    assert (arms["s4c"].config.nodes, arms["s4c"].config.depth, arms["s4c"].config.tree) == (6, 3, "continuous")
    variant = arms["s4c:nodes=8,tree=fresh"]
    assert (variant.arm, variant.name, variant.title) == ("s4c:nodes=8,tree=fresh", "s4c", "S4C (reconstruction) nodes=8,tree=fresh")
    assert (variant.config.nodes, variant.config.depth, variant.config.tree) == (8, 2, "fresh")
    for text, complaint in (
        ("s4c:node=8", "did you mean 'nodes'"),
        ("medsua:nodes=8", "did you mean 'medusa'"),
        ("pld:nodes", "whole number"),
    ):
        with pytest.raises(UserError, match=complaint):
            methods([text])


def test_arm_may_name_its_own_back_end():
    arms = methods(["pld", "vanilla:backend=eager"], backend="static")
    assert {name: arm.backend for name, arm in arms.items()} == {"vanilla": "static", "pld": "static", "vanilla:backend=eager": "eager"}


@pytest.mark.parametrize("override", ["backend=eager", "vanilla.backend=eager"])
def test_set_cannot_change_a_back_end(override):
    with pytest.raises(UserError, match="the back end of all arms is --backend; one arm's is named with it, METHOD:backend=eager"):
        methods(["pld"], overrides=[override], backend="static")


@pytest.fixture
def options(tmp_path):
    suite = write_suite(tmp_path / "suite.jsonl", [("a", "talks", ["Say a."])])
    return RunConfig(["pld"], str(write_target(tmp_path / "t")), suite_file=suite, max_new_tokens=4, dtype="fp32", device="cpu")


def with_tuned(options, **changes):
    return dataclasses.replace(options, tuned=tuned(**changes))


def test_tuned_options_are_stored_in_the_manifest_and_used_by_resume(options, tmp_path, capsys):
    sha256 = prepare(options).manifest.target.weights_sha256
    session = prepare(with_tuned(options, target_sha256=sha256))
    run(LocalExecutor(session), tmp_path / "run", Console())
    found = RunManifest.read(tmp_path / "run")
    assert found.arms["pld"].config["nodes"] == 4
    again = prepare(found.settings)
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
def test_options_tuned_for_something_else_are_refused(options, changes, message):
    with pytest.raises(UserError, match=message):
        prepare(with_tuned(options, **changes))


def test_default_back_end_is_static(options, monkeypatch):
    monkeypatch.delenv(resolve.BACKEND_VARIABLE)
    monkeypatch.setattr(backends, "_compiler_present", lambda device: False)
    manifest = prepare(options).manifest
    assert manifest.settings.backend == "static"
    assert {facts.backend for facts in manifest.arms.values()} == {"static"}


def test_second_copy_of_the_weights_must_fit_the_memory(options, monkeypatch):
    monkeypatch.setattr(session, "free_memory", lambda device: 1000)
    prepare(options)
    with pytest.raises(UserError, match=r"keeps a second copy of .*use --backend eager or a smaller --target"):
        prepare(dataclasses.replace(options, backend="static"))


def test_arms_of_one_back_end_share_their_target(options):
    prepared = prepare(dataclasses.replace(options, methods=["pld", "vanilla:backend=static"]))
    vanilla, pld, static = prepared.own
    assert vanilla.target is pld.target is prepared.target
    assert static.target is not vanilla.target
    assert [engine.target.backend.name for engine in prepared.own] == ["eager", "eager", "static"]
    assert static.target.device == CPU


def test_repeats_are_refused_for_an_arm_with_state(options):
    with pytest.raises(UserError, match="recycling:scope=session keeps state across questions"):
        prepare(dataclasses.replace(options, methods=["recycling:scope=session"], repeats=2))
