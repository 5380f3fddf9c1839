"""Greedy output is the target's own, token for token, whatever a drafter guesses."""

import itertools

import pytest
from helpers.small_models import FAMILIES, OTHER_PROMPT, PROMPT, Oracle, build, greedy_text, narrow, run, small_target

from methods.registry import METHODS

ATTENTION = ("sdpa", "eager")


@pytest.mark.parametrize(("family", "attention"), [*((family, "sdpa") for family in FAMILIES), ("qwen3", "eager")])
@pytest.mark.parametrize("name", METHODS)
def test_every_method_writes_the_targets_own_text(name, family, attention):
    target = small_target(family, attention)
    drafter, accept = build(name, target, **(narrow(name) if family == "smollm2" else {}))
    for prompt, new in ((PROMPT, 24), (OTHER_PROMPT, 12)):  # the second shows whatever the first left behind
        result = run(target, drafter, prompt, new, accept)
        assert result.tokens == greedy_text(family, attention, tuple(prompt))[len(prompt) :][:new]
        assert len(result.tokens) == 1 + sum(step.emitted for step in result.steps)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("family", FAMILIES)
def test_bent_paths_of_several_drafts_are_committed(family, attention):
    rights = (3, 0, 5, 1)
    target, text = small_target(family, attention), greedy_text(family, attention)
    result = run(target, Oracle(text, rights), PROMPT, 40)
    assert result.tokens == text[len(PROMPT) : len(PROMPT) + 40]
    expected = [right + 1 for right, _ in zip(itertools.cycle(rights), result.steps, strict=False)]
    assert [step.emitted for step in result.steps[:-1]] == expected[:-1]


PREFIX_AND_TREE = [("layer", "continuous"), ("layer", "fresh"), ("none", "continuous")]
SWITCHES = [
    (heads, *both, recycle) for heads in ("recurrent", "hydra", "independent") for both in PREFIX_AND_TREE for recycle in ("off", "on")
]


@pytest.mark.parametrize(("heads", "prefix", "tree", "recycle"), SWITCHES)
def test_every_switch_of_s4c_is_lossless(heads, prefix, tree, recycle):
    target = small_target()
    drafter, accept = build("s4c", target, nodes=12, depth=4, width=4, heads=heads, prefix=prefix, tree=tree, recycle=recycle)
    result = run(target, drafter, PROMPT, 24, accept)
    assert result.tokens == greedy_text()[len(PROMPT) :][:24]
    assert max(step.tree_size for step in result.steps) == 13
