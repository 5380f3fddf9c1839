"""How a run's options meet: the device's defaults, a tuned config, --set, the arm's own; and what a resume finds again."""

import pytest
from rich.console import Console
from small_models import CPU
from tiny_target import write_suite, write_target

from methods.core.errors import UserError
from specbench.manifest import RunManifest
from specbench.runner import run
from specbench.session import Options, prepare, resolve
from specbench.tune.config import Config

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
    arms = resolve(["pld", "vanilla:backend=eager"], ["pld.backend=eager"], "cpu", "static")
    assert {name: each.backend for name, each in arms.items()} == {"vanilla": "static", "pld": "eager", "vanilla:backend=eager": "eager"}


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


def test_arms_of_one_back_end_share_their_target(options):
    session = prepare(Options(**{**vars(options), "methods": ["pld", "vanilla:backend=static"]}))
    vanilla, pld, static = session.arms
    assert vanilla.target is pld.target is session.target
    assert static.target is not vanilla.target
    assert [each.target.backend.name for each in session.arms] == ["eager", "eager", "static"]
    assert static.target.device == CPU
