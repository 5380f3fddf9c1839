import gc
import importlib.metadata
import json
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import call
from helpers.small_models import CAPACITY, OTHER_PROMPT, PROMPT, RANK_ACCURACY, build, run, small_model, trained
from helpers.tiny_target import write_suite, write_target

from methods import registry
from methods.core.acceptance import Sampling
from methods.core.backend import EAGER, Eager
from methods.core.errors import UserError
from methods.core.policies import best_choices, static_tree
from methods.core.target import Target
from specbench import suites, targets
from specbench.cli.tune import tune
from specbench.config.options import RunConfig
from specbench.config.tuned import Tuned
from specbench.engines.own import OwnEngine
from specbench.studies import base
from specbench.studies.base import Conditions
from specbench.studies.tune import cost, prompts, settings
from specbench.studies.tune.cost import DraftCost, VerifyCost
from specbench.studies.tune.record import WatchedFixed, WatchedGrown, record, static_order
from specbench.studies.tune.replay import ExpandedRows, FixedGuess, GrownGuess, Recording, Replay, StepCosts, ranked
from specbench.studies.tune.run import tuned_on
from specbench.studies.tune.settings import CANDIDATES, WIDTHS, Setting, Space, spread
from specbench.suites import Suite
from specbench.util.environment import GitState
from specbench.util.terminal import Console

torch.set_num_threads(1)
NEW = 40
LONGEST_CHAIN = 15  # of the draft model, whose every node takes a forward pass
UNEVEN = ((0.4, 0.1, 0.3), (0.2, 0.5), (0.3, 0.1))  # ranks out of order, as measured ones may be


@pytest.fixture(scope="module")
def target():
    return Target(small_model(), capacity=CAPACITY)


def watched(name, target):
    """Return a watched method at its largest tree, with its space and weights."""
    resolved = registry.resolve(name, {}, "cpu")
    weights = trained(resolved.method.weights, target) if resolved.method.weights else None
    space = settings.space_of(resolved, weights)
    if name == "sps":
        space = Space(LONGEST_CHAIN)
    drafter = cost.engine_at(space.largest, resolved, target, weights).drafter
    if space.depths:
        return WatchedGrown(drafter, WIDTHS[-1]), resolved, space, weights
    choices = weights.choices(space.most) if weights else ()
    order = static_order(choices) if choices else range(space.most + 1)
    return WatchedFixed(drafter, order), resolved, space, weights


@pytest.fixture(scope="module")
def recording(target):
    """Record two answers of the small model, with every method watched in one pass."""
    found = {name: watched(name, target) for name in settings.TUNABLE}
    looks = {name: watch for name, (watch, *_) in found.items()}
    answers = [record(target, looks, prompt, Sampling(NEW)) for prompt in (PROMPT, OTHER_PROMPT)]
    return answers, found


def really(target, recording, name, setting):
    """Run the method itself at a setting on the same prompts; return emitted tokens, steps, and answers."""
    _, resolved, _, weights = recording[1][name]
    engine = cost.engine_at(setting, resolved, target, weights)
    results = [run(target, engine.drafter, prompt, NEW, engine.accept) for prompt in (PROMPT, OTHER_PROMPT)]
    steps = [step for result in results for step in result.steps]
    return sum(step.emitted for step in steps), len(steps), [result.tokens for result in results]


@pytest.mark.slow
@pytest.mark.parametrize("name", settings.TUNABLE)
def test_replayed_steps_are_those_the_method_runs(name, target, recording):
    answers, found = recording
    space, replay = found[name][2], Replay(answers, name)
    if space.depths:
        shallow, deep = space.depths[0], space.depths[-1]
        tried = [Setting(nodes, depth, WIDTHS[-1]) for nodes, depth in ((6, deep), (63, shallow), (63, deep))]
    else:
        tried = [Setting(nodes) for nodes in (1, 6, space.most)]
    accepted = 0
    for setting in tried:
        emitted, steps, texts = really(target, recording, name, setting)
        replayed = replay.at(setting)
        assert texts == [answer.tokens for answer in answers]
        assert (replayed.emitted, replayed.steps) == (emitted, steps), setting
        assert replayed.mat == pytest.approx(emitted / steps)
        accepted += emitted - steps
    assert accepted > 10, "nothing is shown by drafters that are never right"


@pytest.mark.parametrize("name", ["eagle2", "s4c"])
def test_narrower_trees_are_replayed_approximately(name, target, recording):
    replay = Replay(recording[0], name)
    for setting in (Setting(3, 3, 2), Setting(8, 3, 4), Setting(20, 4, 4)):
        emitted, steps, _ = really(target, recording, name, setting)
        assert 0.93 * emitted / steps <= replay.at(setting).mat <= 1.02 * emitted / steps


def test_replayed_sizes_are_those_of_the_scored_trees(recording):
    answers, _ = recording
    assert set(Replay(answers, "pld").at(Setting(7)).sizes) == {1, 8}, "a lookup that finds nothing drafts nothing"
    assert set(Replay(answers, "medusa").at(Setting(12)).sizes) == {13}
    assert set(Replay(answers, "s4c").at(Setting(30, 2, 4)).sizes) == {1 + 4 + 16}


def test_a_fixed_tree_is_followed_as_far_as_it_holds_the_text():
    guess = FixedGuess([9, 5, 6, 7, 6], [0, 0, 0, 2, 1], [0, 1, 3, 4, 2])
    assert guess.needs([6, 7, 1], 0, 0) == [3, 4]
    assert guess.needs([5, 6], 0, 0) == [1, 2]
    assert guess.needs([7], 0, 0) == guess.needs([], 0, 0) == []
    assert (guess.size(Setting(4)), FixedGuess([9], [0], [0]).size(Setting(4))) == (5, 1)


def test_a_grown_tree_is_cut_by_depth_width_and_log_q():
    def level(rows, tokens, guess, logq):
        return ExpandedRows(np.array(rows), np.array(tokens), np.array(guess), np.array(logq, dtype=np.float32))

    guess = GrownGuess(
        [
            level([0], [0], [[10, 20]], [[-1.0, -2.0]]),
            level([0, 0], [10, 20], [[11, 12], [21, 22]], [[-1.5, -3.0], [-0.25, -5.0]]),
            level([0, 1, 0], [11, 21, 12], [[13, 14], [23, 24], [15, 16]], [[-1.0, -1.25], [-0.5, -4.0], [-0.1, -0.2]]),
        ]
    )  # scores: 10 -1, 20 -2, 11 -2.5, 12 -4, 21 -2.25, 22 -7; 13 -3.5, 14 -3.75, 23 -2.75, 24 -6.25
    assert guess.needs([20, 21], depth=2, width=2) == [2, 3]
    assert guess.needs([10, 12], depth=2, width=2) == [1, 5]
    assert guess.needs([10, 12], depth=1, width=2) == [1]
    assert guess.needs([20, 21, 23, 9], depth=3, width=2) == [2, 3, 5]
    assert guess.needs([10, 12, 15], depth=3, width=2) == [1, 8], "12 is none of the two that are expanded"
    assert guess.needs([10, 11, 5], depth=2, width=1) == [1, 2], "without 20 and what follows it"
    assert guess.needs([20, 21], depth=2, width=1) == []


def test_the_order_of_a_static_tree_says_which_smaller_trees_have_each_node():
    order = static_order(best_choices(UNEVEN, 12))
    largest = static_tree(best_choices(UNEVEN, 12))
    for nodes in range(1, 13):
        smaller = static_tree(best_choices(UNEVEN, nodes))
        kept = [i for i, first in enumerate(order) if first <= nodes]
        assert [-1, *(kept.index(largest.parents[i]) for i in kept[1:])] == list(smaller.parents)
    assert sorted(order) == list(range(13))


@pytest.mark.parametrize("space", [Space(63), Space(20), Space(63, (2, 3, 4, 5)), Space(63, (1, 2))])
def test_candidates_are_different_trees_and_as_many_for_every_method(space):
    found = space.candidates()
    assert len(set(found)) == len(found)
    assert len(found) == (20 if space.most == 20 else CANDIDATES) or space.depths == (1, 2)
    assert all(1 <= each.nodes <= 63 for each in found)
    assert len(set(space.knots())) == len(space.knots()) == (3 if space.most == 20 else 4)
    if space.depths:
        for each in (*found, space.largest, *space.knots()):
            registry.resolve("s4c", {name: str(value) for name, value in each.options.items()}, "cpu")


def test_spread_numbers_are_different_and_grow_by_factors():
    assert spread(2, 6, 5) == [2, 3, 4, 5, 6]
    assert spread(5, 63, 5) == [5, 9, 18, 33, 63]
    assert spread(1, 63, 60)[-1] == 63
    assert len(set(spread(1, 63, 60))) == 60
    assert spread(4, 5, 5) == [4, 5]


def test_weights_set_how_deep_a_method_is_tuned(target):
    assert settings.space_of(registry.resolve("s4c", {}, "cpu"), trained("s4c", target, depth=3)).depths == (1, 2, 3)
    assert settings.space_of(registry.resolve("s4c", {}, "cpu"), trained("s4c", target)).depths == (2, 3, 4, 5)
    assert settings.space_of(registry.resolve("eagle", {}, "cpu"), trained("eagle", target)) == Space(63)
    assert len(RANK_ACCURACY) == 4, "ranks of which 4 + 16 + 64 + 256 nodes can be made"


def test_costs_between_the_timed_settings_are_linear():
    draft = DraftCost({Setting(6, 2, 2): 1.0, Setting(15, 2, 10): 3.0, Setting(15, 5, 2): 4.0, Setting(15, 5, 10): 8.0})
    assert draft.at(Setting(40, 2, 6)) == pytest.approx(2.0)
    assert draft.at(Setting(40, 5, 10)) == pytest.approx(8.0)
    assert draft.at(Setting(9, 3, 2)) == pytest.approx(2.0)
    assert DraftCost({Setting(3): 1.0, Setting(63): 7.0}).at(Setting(23)) == pytest.approx(3.0)


def test_t_of_n_is_linear_between_sizes_and_uses_the_padded_size():
    class Padding(Eager):
        name = "padding"

        def tree_size(self, size):
            return 8

    seconds = {1: 1.0, 4: 2.0, 8: 4.0}
    assert VerifyCost(seconds, EAGER).at(6) == pytest.approx(3.0)
    assert VerifyCost(seconds, Padding()).at(5) == pytest.approx(4.0)


def test_engines_are_warm_before_their_steps_are_timed(target, monkeypatch):
    order, decoded = [], cost.decoded

    def noted(*given):
        order.append("decode")
        return decoded(*given)

    monkeypatch.setattr(OwnEngine, "warm_up", lambda engine, sampling: order.append("warm"))
    monkeypatch.setattr(cost, "decoded", noted)
    engines = {name: OwnEngine(name, target, *build("vanilla", target)) for name in ("a", "b")}
    cost.beside_verifying(VerifyCost({1: 0.0}, EAGER), engines, [PROMPT])
    assert order == ["warm", "decode"] * 2 + ["decode"] * 2


def test_settings_are_ranked_by_acceptance_and_cost():
    text = [0, 1, 2, 3, 4] * 4
    guesses = [FixedGuess([t, *[t + 1, t + 2, t + 3][: 4 - t]], [0, 0, 1, 2], [0, 1, 2, 3]) for t in text[:-1]]
    replay, candidates = Replay([Recording(text, {"m": guesses})], "m"), [Setting(1), Setting(2), Setting(3)]
    free = DraftCost({Setting(1): 0.0, Setting(3): 0.0})
    flat, steep = VerifyCost({1: 1.0, 2: 1.1, 3: 1.1, 4: 1.1}, EAGER), VerifyCost({1: 1.0, 2: 1.1, 3: 4.0, 4: 9.0}, EAGER)
    assert ranked(replay, candidates, StepCosts(flat, free, 1.0))[0].setting == Setting(3)
    best = ranked(replay, candidates, StepCosts(steep, free, 1.0))[0]
    # From each 0 on: steps of 2 tokens (1, 2), 2 (3, 4) and 1 (0, of which nothing was drafted); the last answer's 0 is not there
    assert (best.setting, best.mat, best.verify_s) == (Setting(1), pytest.approx(19 / 11), pytest.approx((8 * 1.1 + 3 * 1.0) / 11))
    assert best.speedup == pytest.approx(19 / (8 * 1.1 + 3 * 1.0))
    dear = DraftCost({Setting(1): 0.5, Setting(3): 8.5})
    assert ranked(replay, candidates, StepCosts(flat, dear, 1.0))[0].setting == Setting(1)


def quiet():
    return Console(quiet=True)


def options(target, suite, out):
    given = {"target": target, "suite-file": suite, "prompts": 4, "max-new-tokens": 24, "dtype": "fp64", "out": out}
    return [*(f"--{option}={value}" for option, value in given.items()), "--device=cpu", "--backend=eager"]


def test_tuning_on_the_test_set_is_refused(tmp_path, monkeypatch):
    mini = tmp_path / "mini.jsonl"
    part = suites.load("mini").questions[3]
    mini.write_text(json.dumps({"question_id": 1, "category": "c", "turns": [part.turns[0]]}))
    with pytest.raises(UserError, match=r"mini\.jsonl, question 1, is the suite mini's, and tuning on the test set"):
        prompts.load(mini, None, 20, quiet())
    file = write_suite(tmp_path / "suite.jsonl")
    prompts.load(file, None, 20, quiet())
    monkeypatch.setattr(prompts, "spec_bench_fingerprints", lambda: {prompts.fingerprint("how  much is 2\nand 2?")})
    with pytest.raises(UserError, match="question n2, is Spec-Bench's"):
        prompts.load(file, None, 1, quiet())
    for suite_file, data in ((None, None), (file, file)):
        with pytest.raises(UserError, match="pass either --suite-file FILE"):
            prompts.load(suite_file, data, 20, quiet())


def test_there_is_a_fingerprint_for_every_question_of_spec_bench():
    known = prompts.spec_bench_fingerprints()
    assert len(known) == 480
    assert all(len(each) == len(prompts.fingerprint("")) and int(each, 16) >= 0 for each in known)


def test_the_config_file_has_the_facts_of_a_checkout_that_is_not_installed(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", missing)
    monkeypatch.setattr(base, "git_state", lambda: GitState("12ab", True))
    loaded: Any = SimpleNamespace(name="t", revision=None, note="", parameters=1, model=SimpleNamespace(device=torch.device("cpu")))
    conditions = Conditions.of_target(loaded, RunConfig(dtype="fp32", backend="eager"))
    facts = tuned_on(conditions, "0", Suite("s", "", (), "1"), 7)
    assert (facts.notes["recorded_tokens"], facts.notes["git_sha"], facts.notes["git_dirty"]) == (7, "12ab", True)
    assert (facts.dtype, facts.device, facts.notes["prompts_sha256"]) == ("fp32", "cpu", "1")


def test_prompts_are_first_turns_as_many_of_each_category(tmp_path):
    found = prompts.load(write_suite(tmp_path / "suite.jsonl"), None, 3, quiet()).questions
    assert [(question.category, question.turns) for question in found] == [("letters", ("Say a b c.",)), ("numbers", ("1 2 3 4 5",))]


def test_prompts_can_be_held_out_records_of_a_corpus(tmp_path):
    def row(i):
        messages = [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": "a"}]
        return json.dumps({"id": i, "category": "qa", "source": "own", "messages": messages})

    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("\n".join(map(row, range(2000))))
    found = prompts.load(None, corpus, 4, quiet())
    assert [len(found.questions), {question.category for question in found.questions}] == [4, {"qa"}]


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["vanilla"], "vanilla drafts nothing, so that there is nothing to tune; choose from pld, "),
        (["recycling"], "recycling learns from its own verified trees, .* so that there is nothing to tune; choose from pld, "),
        (["s4c:nodes=8"], "tune takes methods, not variants such as 's4c:nodes=8'; pass --method s4c"),
        (["eagel"], "did you mean 'eagle'"),
    ],
)
def test_methods_that_cannot_be_tuned_are_refused_before_anything_is_loaded(names, complaint):
    with pytest.raises(UserError, match=complaint):
        call(tune, *(f"--method={name}" for name in names))


@pytest.fixture
def only_explicit_collections():
    """Switch automatic garbage collection off."""
    gc.disable()
    yield
    gc.enable()


def test_the_command_writes_a_config_whose_prediction_holds(tmp_path, capsys, monkeypatch, only_explicit_collections, wide_terminal):
    folder, out = write_target(tmp_path / "target", context=4096), tmp_path / "tuned.toml"
    suite = write_suite(tmp_path / "suite.jsonl")
    load, loaded = targets.load, []
    weights: list[weakref.ref] = []

    def watched(*given, **named):
        loaded.append(not any(each() is not None for each in weights))
        found = load(*given, **named)
        weights.append(weakref.ref(found.model.get_input_embeddings().weight))  # which a target shares
        return found

    monkeypatch.setattr(targets, "load", watched)
    call(tune, *options(folder, suite, out))
    config = Tuned.read(out)
    assert list(config.methods) == ["pld"], "the target has weights for no other"
    assert 1 <= config.methods["pld"]["nodes"] <= 63
    assert (config.tuned_on.notes["prompts"], config.tuned_on.notes["candidates"]) == (4, CANDIDATES)
    config.check(target=str(folder), dtype="fp64", device="cpu", backend="eager")
    assert loaded == [True, True], "the first target is gone when the check loads it again"
    shown = capsys.readouterr().out
    chosen = next(line for line in shown.splitlines() if "(chosen)" in line)
    predicted, _, measured = chosen.split(f"nodes={config.methods['pld']['nodes']} (chosen)")[1].split()[:3]
    assert predicted == measured, "the same steps"
    assert float(predicted) > 1
    assert f"specbench run --config {out}" in shown


def test_a_prompt_longer_than_the_context_is_refused(tmp_path):
    folder = write_target(tmp_path / "target", context=64)
    suite = write_suite(tmp_path / "suite.jsonl", [("a", "c", ["word " * 4])])
    with pytest.raises(UserError, match="exceed the context of"):
        call(tune, "--method=pld", *options(folder, suite, tmp_path / "out.toml"))
