from dataclasses import asdict

import pytest
from helpers.small_models import build, small_model, small_target, trained

from methods import registry
from methods.core.acceptance import RULES
from methods.core.errors import UserError
from methods.registry import METHODS, options, resolve
from methods.vanilla import Vanilla
from specbench.targets import drafters


def refusal(act, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        act(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_unknown_method_is_answered_with_the_nearest():
    assert "unknown method 'medsua'; did you mean 'medusa'? choices: eagle, " in refusal(resolve, "medsua", {}, "cpu")


def test_an_unknown_option_is_answered_with_the_nearest():
    assert "unknown option of s4c 'head'; did you mean 'heads'?" in refusal(resolve, "s4c", {"head": "hydra"}, "cpu")
    assert "unknown option of vanilla 'acceptance'" in refusal(resolve, "vanilla", {"acceptance": "match"}, "cpu")


def test_an_unknown_value_is_answered_with_the_choices():
    message = refusal(resolve, "s4c", {"heads": "recurent"}, "cpu")
    assert "unknown value of s4c's heads 'recurent'; did you mean 'recurrent'?" in message
    assert "choices: hydra, independent, recurrent" in message
    assert "did you mean 'typical'" in refusal(resolve, "medusa", {"acceptance": "tipical"}, "cpu")


def test_a_number_must_be_one():
    assert refusal(resolve, "eagle2", {"depth": "deep"}, "cpu") == "eagle2's depth is 'deep'; it must be a whole number"


@pytest.mark.parametrize("name", METHODS)
def test_every_method_resolves_on_either_device(name):
    cpu, cuda = resolve(name, {}, "cpu"), resolve(name, {}, "cuda:0")
    assert {*asdict(cpu.config), "acceptance", "backend"} == {*options(name), "acceptance"}
    assert (cpu.arm, cpu.name, cpu.acceptance, cpu.lossless, cpu.backend) == (name, name, METHODS[name].acceptance, True, "eager")
    if name != "vanilla":
        assert cpu.config.nodes <= cuda.config.nodes


def test_what_is_typed_goes_before_the_devices_default():
    resolved = resolve("eagle", {"nodes": "5", "acceptance": "typical"}, "cpu")
    assert (resolved.config.nodes, resolved.config.policy) == (5, METHODS["eagle"].cpu["policy"])
    assert resolve("eagle2", {"depth": "4"}, "cpu").config.depth == 4
    assert not resolved.lossless
    drafter, accept = registry.build(resolved, small_target(), trained("eagle", small_model()))
    assert drafter.sizes == (6,)
    assert accept is RULES["typical"].apply


@pytest.mark.parametrize(
    ("name", "asked", "sizes"),
    [
        ("eagle", {}, (8, 4)),
        ("eagle2", {}, (6, 3)),
        ("eagle3", {"nodes": "2", "depth": "4"}, (3, 3)),
        ("s4c", {}, (6, 3)),
    ],
)
def test_a_rule_that_judges_q_has_chains_drawn(name, asked, sizes):
    """They are as deep as the trees, and no larger; the trees of temperature 0 stay."""
    kind, target = METHODS[name].weights, small_target()
    for rule, expected in (("match", sizes[:1]), ("typical", sizes[:1]), ("speculative_sampling", sizes)):
        drafter, _ = registry.build(resolve(name, {"acceptance": rule, **asked}, "cpu"), target, trained(kind, small_model()))
        assert drafter.sizes == expected


def test_drafts_that_are_not_drawn_do_not_go_with_a_rule_that_judges_q():
    resolved = resolve("s4c", {"acceptance": "speculative_sampling", "recycle": "on", "nodes": "9"}, "cpu")
    assert "recycle=on adds drafts that are not drawn" in refusal(registry.build, resolved, small_target(), trained("s4c", small_model()))


def test_a_static_trees_config_is_recorded_as_in_the_runs_of_before():
    assert asdict(resolve("eagle", {}, "cpu").config) == {"nodes": 7, "policy": "static", "depth": 5, "width": 4}
    assert asdict(resolve("eagle", {"policy": "grown", "width": "2"}, "cpu").config) == {
        "nodes": 7,
        "policy": "grown",
        "depth": 5,
        "width": 2,
    }


def test_a_variant_of_a_method_has_a_name_and_a_title_of_its_own():
    variant = resolve("s4c", {"nodes": "8", "depth": "3", "tree": "fresh"}, "cpu", arm="mine", variant=" nodes=8")
    assert (variant.arm, variant.name, variant.title) == ("mine", "s4c", f"{METHODS['s4c'].title} nodes=8")
    assert (variant.config.nodes, variant.config.depth, variant.config.tree) == (8, 3, "fresh")
    assert "did you mean 'nodes'" in refusal(resolve, "s4c", {"node": "8"}, "cpu")
    assert "did you mean 'medusa'" in refusal(resolve, "medsua", {}, "cpu")
    assert "whole number" in refusal(resolve, "pld", {"nodes": ""}, "cpu")


def test_methods_without_weights_need_none():
    assert isinstance(build("vanilla", small_target())[0], Vanilla)


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.weights])
def test_missing_weights_name_the_command_that_makes_them(name):
    message = refusal(drafters.with_next_step()(registry.build), resolve(name, {}, "cpu"), small_target(), None)
    kind = METHODS[name].weights
    assert (f"--drafter {kind}=FOLDER or {kind}=HUB_ID" if METHODS[name].model else f"specbench train {kind}") in message


@pytest.mark.parametrize(("key", "value"), [("heads", "hydra"), ("prefix", "none")])
def test_s4c_weights_of_another_architecture_are_refused(key, value):
    target = small_target()
    message = refusal(drafters.with_next_step()(registry.build), resolve("s4c", {key: value}, "cpu"), target, trained("s4c", small_model()))
    assert f"{key}={value} does not fit" in message
    assert f"specbench train s4c --set {key}={value}" in message


@pytest.mark.parametrize(
    ("name", "setting", "what"),
    [
        ("s4c", {"depth": 6}, "depth=6 is more than the S4C weights' 5 levels"),
        ("s4c", {"nodes": 4, "recycle": "on"}, "nodes is 4, of which recycle=on takes 4"),
        ("s4c", {"tree": "fresh", "prefix": "none"}, "tree=fresh rereads the text"),
        ("eagle2", {"depth": 8, "width": 20}, "grows too large a tree"),
        ("eagle", {"depth": 5}, "policy=static takes no depth (depth=5 given)"),
        ("eagle", {"width": 9}, "policy=static takes no width (width=9 given)"),
        ("eagle2", {"policy": "static"}, "policy=static takes no depth or width (depth=2, width=3 given)"),
        ("s4c", {"width": 0}, "width is 0"),
        ("eagle2", {"nodes": 128}, "nodes is 128"),
        ("medusa", {"nodes": 0}, "nodes is 0"),
        ("hydra", {"nodes": 0}, "nodes is 0"),
        ("hydra", {"heads": 6}, "heads is 6; choose 1 to 5"),
        ("hydra", {"layers": 0}, "layers is 0; choose 1 to 8"),
        ("recycling", {"nodes": 81}, "nodes is 81; Token Recycling's tree has 80: choose 1 to 80"),
        ("pld", {"nodes": 128}, "nodes is 128"),
        ("pld", {"max_ngram": 0}, "max_ngram is 0"),
    ],
)
def test_sizes_out_of_range_are_refused_before_decoding(name, setting, what):
    assert what in refusal(build, name, small_target(), **setting)
