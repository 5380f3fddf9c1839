"""The decode loop on a language where token x is followed by x + 1, with a scripted drafter and a clock moved by hand."""

import itertools
from typing import cast

import pytest
import torch
from helpers.small_models import CPU, PROMPT, Oracle, greedy_text, path_of, run, small_model, taken

from methods.core.acceptance import Sampling, match
from methods.core.clock import HostClock
from methods.core.decode import DecodeResult, decode
from methods.core.target import ContextOverflow, Scores, Target
from methods.core.tree import DraftTree

V = 1000
PREFILL_S, BEGIN_S, DRAFT_S, SCORE_S, ACCEPT_S, COMMIT_S, OBSERVE_S = 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0


class HandClock:
    def __init__(self):
        self.now, self.marks = 0.0, []

    def mark(self):
        self.marks.append(self.now)

    def laps(self):
        marks, self.marks = self.marks, []
        return [b - a for a, b in itertools.pairwise(marks)]


class CountingTarget:
    """A target that continues token x with x + 1, advances the clock and records its calls."""

    device = CPU

    def __init__(self, clock, context=500):
        self.clock, self.context, self.calls = clock, context, []

    def prefill(self, prompt, reads):
        self.clock.now += PREFILL_S
        self.calls.append("prefill")
        return self.scores(prompt[-1:])

    def score(self, tree, past, reads):
        self.clock.now += SCORE_S
        self.calls.append(("score", past))
        return self.scores(tree.tokens_N.tolist())

    def commit(self, accepted):
        self.clock.now += COMMIT_S
        self.calls.append(("commit", tuple(path_of(accepted))))

    def scores(self, tokens):
        logits_NV = torch.zeros(len(tokens), V)
        logits_NV[range(len(tokens)), [token + 1 for token in tokens]] = 1.0
        return Scores(logits_NV, torch.zeros(len(tokens), 1))


class Scripted:
    """A drafter of chains of ``length`` whose first ``right`` tokens are right; the script has (right, length) of each step."""

    reads = ()
    sizes = ()

    def __init__(self, clock, script):
        self.clock, self.script, self.seen = clock, list(script), []

    def begin(self, prompt, first, scores, sampling):
        self.clock.now += BEGIN_S
        self.seen.append(("begin", tuple(prompt), first.read().tokens))

    def draft(self, tokens):
        self.clock.now += DRAFT_S
        right, length = self.script.pop(0)
        following = [tokens[-1] + 1 + i for i in range(right)] + [0] * (length - right)
        return DraftTree.chain([tokens[-1], *following], CPU)

    def observe(self, tree, accepted, scores):
        self.clock.now += OBSERVE_S
        self.seen.append(("observe", tree.size, tuple(path_of(accepted)), len(scores.logits_NV)))

    def wipe(self):
        pass


def counted(script, prompt=(7,), context=500, **sampling) -> tuple[DecodeResult, Scripted, CountingTarget]:
    clock = HandClock()
    target, drafter = CountingTarget(clock, context), Scripted(clock, script)

    def accept(tree, logits_NV, temperature, noise):
        clock.now += ACCEPT_S
        return match(tree, logits_NV, temperature, noise)

    return decode(cast(Target, target), drafter, accept, list(prompt), Sampling(**sampling), clock), drafter, target


def test_every_counter_and_every_lap_is_exact():
    result, drafter, target = counted([(2, 3), (0, 1), (0, 0), (4, 4)], max_new_tokens=11)
    assert result.tokens == list(range(8, 19))
    assert result.stop == "length"
    assert [(s.tree_size, s.depth, s.accepted, s.emitted) for s in result.steps] == [(4, 3, 2, 3), (2, 1, 0, 1), (1, 0, 0, 1), (5, 4, 4, 5)]
    assert result.prefill_s == PREFILL_S + BEGIN_S
    for step in result.steps:
        assert (step.draft_s, step.verify_s, step.commit_s) == (DRAFT_S, SCORE_S + ACCEPT_S, COMMIT_S + OBSERVE_S)
        assert step.total_s == step.draft_s + step.verify_s + step.commit_s
    paths = [(0, 1, 2), (0,), (0,), (0, 1, 2, 3, 4)]
    assert drafter.seen == [("begin", (7,), [8]), *(("observe", n, path, n) for n, path in zip((4, 2, 1, 5), paths, strict=True))]
    steps = zip((1, 4, 5, 6), paths, strict=True)
    assert target.calls == ["prefill", *(call for past, path in steps for call in (("score", past), ("commit", path)))]


def test_the_last_step_is_clipped_to_what_was_asked_for():
    result, _, _ = counted([(4, 4), (4, 4)], max_new_tokens=8)
    assert result.tokens == list(range(8, 16))
    assert [(s.accepted, s.emitted) for s in result.steps] == [(4, 5), (4, 2)]


def test_one_token_needs_no_step():
    result, _, target = counted([], max_new_tokens=1)
    assert (result.tokens, result.stop, result.steps, target.calls) == ([8], "length", [], ["prefill"])


@pytest.mark.parametrize(("stop", "emitted"), [(8, []), (9, [1]), (11, [3]), (13, [5])])
def test_a_stop_id_is_kept_and_nothing_follows_it(stop, emitted):
    """The stop id is the first token, the first draft, one in the middle of an accepted path, or the bonus."""
    result, _, _ = counted([(4, 4)], max_new_tokens=40, stop_ids=frozenset([stop, 900]))
    assert result.tokens == list(range(8, stop + 1))
    assert result.stop == "stop_id"
    assert [step.emitted for step in result.steps] == emitted


def test_a_stop_id_at_the_very_limit_counts_as_a_stop():
    result, _, _ = counted([(4, 4)], max_new_tokens=4, stop_ids=frozenset([11]))
    assert (result.tokens, result.stop) == ([8, 9, 10, 11], "stop_id")


def test_the_end_of_the_context_is_a_length_stop():
    result, _, _ = counted([(3, 3)] * 9, prompt=range(20), context=30, max_new_tokens=100)
    assert (len(result.tokens), result.stop) == (10, "length")


@pytest.mark.parametrize("length", [30, 31])
def test_a_prompt_that_leaves_no_room_is_refused_before_any_work(length):
    clock = HandClock()
    target = CountingTarget(clock, context=30)
    with pytest.raises(ContextOverflow, match=f"{length} tokens .* context of 30"):
        decode(cast(Target, target), Scripted(clock, []), match, list(range(length)), Sampling(4), clock)
    assert target.calls == []
    assert clock.marks == []


@pytest.mark.parametrize("when", ["prefill", "score"])
def test_nan_logits_end_the_turn_with_an_error(when, monkeypatch):
    clock = HandClock()
    target = CountingTarget(clock)
    real = getattr(target, when)
    monkeypatch.setattr(target, when, lambda *asked: Scores(real(*asked).logits_NV * float("nan"), torch.zeros(1, 1)))
    with pytest.raises(FloatingPointError):
        decode(cast(Target, target), Scripted(clock, [(1, 1)] * 3), match, [7], Sampling(4), clock)


def test_a_seed_fixes_the_draws():
    target = Target(small_model(), capacity=64)
    drafter = Oracle(greedy_text(), (2,))
    texts = [run(target, drafter, PROMPT, 20, temperature=1.0, seed=seed).tokens for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_real_target_decodes_up_to_its_last_position():
    """Trees reach beyond the context there: the cache must have room for them, but kept tokens must end at the context's end."""
    target = Target(small_model(), capacity=30)
    result = run(target, Oracle(greedy_text(), (4,)), PROMPT, 60)
    assert (result.tokens, result.stop) == (greedy_text()[12:30], "length")


def test_the_host_clock_forgets_its_marks():
    clock = HostClock()
    for _ in range(3):
        clock.mark()
    assert len(clock.laps()) == 2
    assert clock.laps() == []


def test_a_path_that_is_not_accepted_by_anyone_is_still_consistent():
    """A rule that accepts nothing makes every drafter write vanilla's text."""

    def nothing(tree, logits_NV, temperature, noise):
        return taken(tree, logits_NV, 0, int(logits_NV[0].argmax()))

    target = Target(small_model(), capacity=64)
    assert run(target, Oracle(greedy_text(), (3,)), PROMPT, 20, nothing).tokens == greedy_text()[12:32]
