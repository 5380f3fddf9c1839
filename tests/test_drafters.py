"""A drafter that has lived through many rounds drafts like a fresh one begun on the same text."""

import pytest
import torch
from small_models import OTHER_PROMPT, PROMPT, Beside, Oracle, build, greedy_text, paths_of, run, small_target

from methods.core.recycling import SuccessorTable
from methods.core.tree import DraftTree
from methods.prompt_lookup import Config, PromptLookup
from methods.registry import METHODS

RIGHTS = (2, 0, 4, 1, 3)
VARIANTS = [
    *((name, {}) for name in METHODS if name != "vanilla"),
    *(("s4c", {"heads": heads, "prefix": "layer"}) for heads in ("hydra", "independent")),
    *(("s4c", {"heads": heads, "prefix": "none"}) for heads in ("recurrent", "hydra", "independent")),
    ("s4c", {"tree": "fresh"}),
]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_a_lived_drafter_drafts_like_a_fresh_one(name, options, family):
    def compare(tokens, tree):
        target = small_target(family)
        drafter, _ = build(name, target, **options)
        drafter.begin(tokens[:-1], target.prefill(tokens[:-1]))
        fresh = drafter.draft(tokens)
        assert (tree.tokens, tree.parents) == (fresh.tokens, fresh.parents)

    text, target = greedy_text(family), small_target(family)
    lived, _ = build(name, target, **options)
    result = run(target, Beside(Oracle(text, RIGHTS), [lived], compare), PROMPT, 40)
    assert result.tokens == text[len(PROMPT) : len(PROMPT) + 40]
    assert len(result.steps) >= 12


@pytest.mark.parametrize(("name", "options"), [*VARIANTS, ("s4c", {"recycle": "on"})])
def test_nothing_of_a_conversation_is_left_in_the_next(name, options):
    text, target = greedy_text(prompt=tuple(OTHER_PROMPT)), small_target()
    lived, fresh = (build(name, target, **options)[0] for _ in range(2))
    run(target, Beside(Oracle(greedy_text(), RIGHTS), [lived], lambda tokens, tree: None), PROMPT, 40)
    trees = {}
    for drafter in (lived, fresh):
        seen = trees[drafter] = []
        run(target, Beside(Oracle(text, RIGHTS), [drafter], lambda tokens, tree, seen=seen: seen.append(tree)), OTHER_PROMPT, 20)
    assert trees[lived] == trees[fresh]
    assert len(trees[fresh]) >= 5


def test_s4cs_continuous_tree_is_the_fresh_one():
    """Rereading the whole text each round changes the cost alone."""
    target = small_target()
    drafters = [build("s4c", target, tree=tree)[0] for tree in ("continuous", "fresh")]
    read = []

    def compare(tokens, continuous, fresh):
        assert (continuous.tokens, continuous.parents) == (fresh.tokens, fresh.parents)
        read.append([len(drafter.stream.unread_ND) for drafter in drafters])

    run(target, Beside(Oracle(greedy_text(), RIGHTS), drafters, compare), PROMPT, 40)
    assert read[:4] == [[1, 1], [3, 15], [1, 16], [5, 21]]


@pytest.mark.parametrize("name", ["eagle2", "s4c"])
def test_a_round_reads_only_what_the_one_before_committed(name):
    target = small_target()
    drafter, _ = build(name, target)
    read = []

    def note(tokens, tree):
        read.append(len(drafter.stream.unread_ND))
        assert drafter.stream.cache.length == len(tokens) - 1

    run(target, Beside(Oracle(greedy_text(), RIGHTS), [drafter], note), PROMPT, 40)
    assert read[:6] == [1, *(right + 1 for right in RIGHTS)]  # the prompt was read with the prefill


def looked_up(text, nodes=4, max_ngram=3):
    drafter = PromptLookup(Config(nodes, max_ngram))
    drafter.begin(text[:-1], None)
    return drafter.draft(text).tokens[1:]


def reference_lookup(text, nodes, max_ngram):
    """The longest n-gram first, its first place, what followed there."""
    for n in range(min(max_ngram, len(text)), 0, -1):
        ends = [end for end in range(n, len(text)) if text[end - n : end] == text[-n:]]
        if ends:
            return text[ends[0] : ends[0] + nodes]
    return []


def test_prompt_lookup_is_the_references():
    rng = torch.Generator().manual_seed(0)
    drafted = 0
    for length in range(1, 40):
        for letters in (2, 4, 9):
            text = torch.randint(0, letters, (length,), generator=rng).tolist()
            assert looked_up(text) == reference_lookup(text, 4, 3)
            drafted += bool(looked_up(text))
    assert drafted > 60


def test_prompt_lookup_copies_what_followed_the_longest_match_where_it_first_stood():
    assert looked_up([1, 2, 3, 9, 8, 7, 6, 5, 1, 2, 3]) == [9, 8, 7, 6]
    assert looked_up([5, 1, 5, 2, 5]) == [1, 5, 2, 5]
    assert looked_up([1, 2, 3]) == []


def test_the_successor_table_offers_what_the_target_ranked_high():
    table, logits_NV = SuccessorTable(), torch.zeros(2, 9)
    logits_NV[0, 4], logits_NV[0, 6] = 3.0, 2.0
    logits_NV[1, 8], logits_NV[1, 1] = 3.0, 2.0
    table.learn([1, 4], logits_NV)
    tree = table.extend(DraftTree([1, 6, 2], (-1, 0, 0)))
    assert (tree.tokens, tree.parents) == ([1, 6, 2, 4], (-1, 0, 0, 0))
    logits_NV[0, 5] = 9.0
    table.learn([1], logits_NV[:1])
    assert set(paths_of(table.extend(DraftTree([1], (-1,))))) >= {(5,), (4,)}
    table.clear()
    assert len(table.extend(tree)) == len(tree)


def test_recycling_stays_within_its_extra_nodes_and_siblings_differ():
    target, trees = small_target(), []
    drafter, _ = build("s4c", target, nodes=12, depth=4, width=4, recycle="on")
    run(target, Beside(Oracle(greedy_text(), RIGHTS), [drafter], lambda tokens, tree: trees.append(tree)), PROMPT, 40)
    assert max(map(len, trees)) == 13
    assert all(len(set(paths_of(tree))) == len(tree) for tree in trees)
