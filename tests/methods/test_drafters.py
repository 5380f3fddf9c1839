"""A drafter that has gone through many steps drafts like a fresh one begun on the same text."""

from typing import Any

import pytest
import torch
from helpers.small_models import (
    CPU,
    OTHER_PROMPT,
    PROMPT,
    Beside,
    Oracle,
    begun,
    build,
    greedy_text,
    narrow,
    paths_of,
    plant,
    run,
    small_target,
    told,
)

from methods.core import attention, kv_cache
from methods.core.kv_cache import KVCache
from methods.core.recycling import SuccessorTable
from methods.core.tree import PADDING
from methods.prompt_lookup import Config, PromptLookup
from methods.registry import METHODS
from specbench.engines.own import OwnEngine

RIGHTS = (2, 0, 4, 1, 3)
VARIANTS = [
    *((name, {}) for name in METHODS if name not in ("vanilla", "recycling")),
    ("hydra", {"prefix": "none"}),
    ("eagle3", {"vocabulary": 40, "nodes": 12, "depth": 4, "width": 4}),
    *((name, narrow(name)) for name in ("medusa", "hydra", "eagle", "eagle2", "eagle3", "s4c")),
    *(("s4c", {"heads": heads, "prefix": "layer"}) for heads in ("hydra", "independent")),
    *(("s4c", {"heads": heads, "prefix": "none"}) for heads in ("recurrent", "hydra", "independent")),
    ("s4c", {"tree": "fresh"}),
]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_a_used_drafter_drafts_like_a_fresh_one(name, options, family):
    def compare(tokens, tree):
        target = small_target(family)
        drafter, _ = build(name, target, **options)
        assert told(tree) == told(begun(drafter, target, tokens).draft(tokens))

    text, target = greedy_text(family), small_target(family)
    lived, _ = build(name, target, **options)
    result = run(target, Beside(Oracle(text, RIGHTS), [lived], compare), PROMPT, 26)
    assert result.tokens == text[len(PROMPT) : len(PROMPT) + 26]
    assert len(result.steps) > len(RIGHTS)


@pytest.mark.parametrize(("name", "options"), [*VARIANTS, ("s4c", {"recycle": "on"}), ("recycling", {})])
def test_a_conversation_leaves_no_state_for_the_next(name, options):
    text, target = greedy_text(prompt=tuple(OTHER_PROMPT)), small_target()
    lived, fresh = (build(name, target, **options)[0] for _ in range(2))
    run(target, Beside(Oracle(greedy_text(), RIGHTS), [lived], lambda tokens, tree: None), PROMPT, 40)
    trees: dict[object, list] = {}
    for drafter in (lived, fresh):
        seen = trees[drafter] = []
        run(target, Beside(Oracle(text, RIGHTS), [drafter], lambda tokens, tree, seen=seen: seen.append(told(tree))), OTHER_PROMPT, 20)
    assert trees[lived] == trees[fresh]
    assert len(trees[fresh]) >= 5


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("name", ["eagle", "eagle3", "s4c"])
def test_chains_are_drawn_at_temperatures_above_0_only(name, temperature):
    """At 0 the trees are those of any other rule. Above, a used drafter draws the chain that a fresh one would with the same numbers."""
    target, options = small_target(), {"acceptance": "speculative_sampling", **narrow(name)}
    lived, plain = build(name, target, **options)[0], build(name, target, **narrow(name))[0]
    known, chains = set(lived._chain._tokens_U.tolist()), set[tuple[int, ...]]()

    def compare(tokens, tree, plain_tree):
        assert plain_tree.q is None
        assert plain_tree.size == plain.sizes[0]
        if temperature == 0:
            assert told(tree) == told(plain_tree)
            return
        assert told(tree)[1] == list(range(-1, lived.sizes[1] - 1))
        assert set(told(tree)[0][1:]) <= known
        fresh = begun(build(name, target, **options)[0], target, tokens)
        fresh._chain = lived._chain
        chain, lived._chain.draws = lived._chain.draws, lambda: drawn[-1]
        assert told(fresh.draft(tokens)) == told(tree)
        lived._chain.draws = chain
        chains.add(tuple(told(tree)[0]))

    drawn, draws = [], lived._chain.draws

    def noted():
        drawn.append(draws())
        return drawn[-1]

    lived._chain.draws = noted
    run(target, Beside(Oracle(greedy_text(), RIGHTS), [lived, plain], compare), PROMPT, 26, temperature=temperature, seed=3)
    assert temperature == 0 or len(chains) > 4


def test_s4cs_continuous_tree_equals_its_fresh_tree():
    """Reading the whole text again in each step changes only the cost."""
    target = small_target()
    drafters = [build("s4c", target, tree=tree)[0] for tree in ("continuous", "fresh")]
    reads: tuple[list[int], list[int]] = ([], [])

    def compare(tokens, continuous, fresh):
        assert told(continuous) == told(fresh)

    for drafter, read in zip(drafters, reads, strict=True):
        watch(drafter.stream, read)
    run(target, Beside(Oracle(greedy_text(), RIGHTS), drafters, compare), PROMPT, 40)
    assert reads[0][:5] == [11, 1, 3, 1, 5]  # the prompt but for its last token, then what each step committed
    assert reads[1][:4] == [12, 15, 16, 21]


@pytest.mark.parametrize("name", ["eagle2", "eagle3", "s4c"])
def test_a_step_reads_only_what_the_previous_step_committed(name):
    target = small_target()
    drafter, _ = build(name, target)
    read: list[int] = []

    def note(tokens, tree):
        assert int(drafter.stream.cache.length) == len(tokens) - 1

    watch(drafter.stream, read)
    run(target, Beside(Oracle(greedy_text(), RIGHTS), [drafter], note), PROMPT, 40)
    assert read[:7] == [len(PROMPT) - 1, 1, *(right + 1 for right in RIGHTS)]  # the prompt was read with the prefill


def watch(stream, read):
    """Record how many of the target's features each reading takes."""
    real_read, real_reread = stream.read, stream.reread

    def reading(accepted, features_ND, span):
        read.append(int(accepted.length))
        return real_read(accepted, features_ND, span)

    def rereading(tokens, features_TD):
        read.append(len(features_TD))
        return real_reread(tokens, features_TD)

    stream.read, stream.reread = reading, rereading


def looked_up(text, nodes=4, max_ngram=3):
    drafter = PromptLookup(Config(nodes, max_ngram), CPU)
    unread: Any = None
    drafter.begin(text[:-1], unread, unread, unread)
    tree = drafter.draft(text)
    assert tree.size in drafter.sizes
    return told(tree)[0][1:]


def reference_lookup(text, nodes, max_ngram):
    """Return what followed the first occurrence of the longest n-gram."""
    for n in range(min(max_ngram, len(text)), 0, -1):
        ends = [end for end in range(n, len(text)) if text[end - n : end] == text[-n:]]
        if ends:
            return text[ends[0] : ends[0] + nodes]
    return []


def test_prompt_lookup_equals_the_reference():
    rng = torch.Generator().manual_seed(0)
    drafted = 0
    for length in range(1, 40):
        for letters in (2, 4, 9):
            text = torch.randint(0, letters, (length,), generator=rng).tolist()
            assert looked_up(text) == reference_lookup(text, 4, 3)
            drafted += bool(looked_up(text))
    assert drafted > 60


def test_prompt_lookup_copies_what_followed_the_first_longest_match():
    assert looked_up([1, 2, 3, 9, 8, 7, 6, 5, 1, 2, 3]) == [9, 8, 7, 6]
    assert looked_up([5, 1, 5, 2, 5]) == [1, 5, 2, 5]
    assert looked_up([1, 2, 3]) == []


def test_the_successor_table_extends_trees_by_the_targets_top_tokens():
    table, logits_NV = SuccessorTable(9, 2, CPU), torch.zeros(2, 9)
    logits_NV[0, 4], logits_NV[0, 6] = 3.0, 2.0
    logits_NV[1, 8], logits_NV[1, 1] = 3.0, 2.0
    table.learn(torch.tensor([1, 4]), logits_NV)
    tree = table.extend(plant([1, 6, 2], (-1, 0, 0)))
    assert told(tree) == ([1, 6, 2, 4], [-1, 0, 0, 0])
    logits_NV[0, 5] = 9.0
    table.learn(torch.tensor([1]), logits_NV[:1])
    assert set(paths_of(table.extend(plant([1, 3], (-1, 0))))) == {(), (3,), (5,), (4,)}
    table.clear()
    assert told(table.extend(tree)) == told(tree)


def test_the_successor_table_keeps_the_newest_entry_and_ignores_padding():
    table, logits_NV = SuccessorTable(9, 2, CPU), torch.zeros(4, 9)
    for node, (best, second) in enumerate([(2, 3), (4, 5), (6, 7), (1, 0)]):
        logits_NV[node, best], logits_NV[node, second] = 3.0, 2.0
    table.learn(torch.tensor([8, 0, 8, PADDING]), logits_NV)
    assert set(paths_of(table.extend(plant([8, 3], (-1, 0))))) == {(), (3,), (6,), (7,)}
    assert set(paths_of(table.extend(plant([0, 3], (-1, 0))))) == {(), (3,), (4,), (5,)}  # padding, read as token 0, taught nothing
    assert table.after(torch.tensor([PADDING, 3, 0])).tolist() == [[PADDING] * 2, [PADDING] * 2, [4, 5]]  # nor is taught anything


def test_recycling_adds_its_extra_nodes_without_duplicate_siblings():
    target, trees = small_target(), []
    drafter, _ = build("s4c", target, nodes=12, depth=4, width=4, recycle="on")
    run(target, Beside(Oracle(greedy_text(), RIGHTS), [drafter], lambda tokens, tree: trees.append(tree)), PROMPT, 40)
    assert {tree.size for tree in trees} == set(drafter.sizes) == {13}
    assert max(len(paths_of(tree)) for tree in trees) == 13
    assert all(len(set(paths_of(tree))) == len(paths_of(tree)) for tree in trees)


@pytest.mark.parametrize("name", METHODS)
def test_a_turn_after_one_that_left_nan_in_the_caches_is_lossless(name, monkeypatch):
    for module in (attention, kv_cache):
        monkeypatch.setattr(module, "length_is_at_hand", lambda device: False)  # as on CUDA, where rows that are masked are read
    target = small_target()
    arm = OwnEngine(name, target, *build(name, target))
    run(target, arm.drafter, OTHER_PROMPT, 12)
    caches = caches_of(arm)
    assert len(caches) == 1 + (METHODS[name].model or name in ("eagle", "eagle2", "eagle3", "hydra", "s4c"))
    for buffer in (buffer for cache in caches for buffer in cache.buffers):
        buffer.fill_(torch.nan)
    arm.recover()
    assert run(target, arm.drafter, PROMPT, 20).tokens == greedy_text()[len(PROMPT) :][:20]


def caches_of(arm):
    """Return all caches of an arm, found by walking its attributes."""
    found, seen, left = [], set(), [arm.target, arm.drafter]
    while left:
        each = left.pop()
        if id(each) in seen or isinstance(each, torch.nn.Module):
            continue
        seen.add(id(each))
        if isinstance(each, KVCache):
            found.append(each)
        else:
            left += [value for value in getattr(each, "__dict__", {}).values() if getattr(value, "__module__", "").startswith("methods")]
    return found
