"""Tree policies against plain-Python references that look at every guess."""

import itertools
import math

import pytest
import torch
from helpers.small_models import paths_of, told

from methods.core.errors import UserError
from methods.core.policies import GrownTree, StaticTree, best_choices, check_tree, static_tree

V = 9
ROOT = 3


def logits_after(path):
    """Return a drafter's logits after a path of guesses, the same in every call."""
    rng = torch.Generator().manual_seed(hash(path) % 2**31)
    return torch.randn(V, generator=rng, dtype=torch.float64) * 2


class Paths:
    """A drafter's side of ``grow``: it follows the guesses by the rows it is given, and its state is the paths."""

    def __init__(self, after):
        self.after = after

    def start(self):
        return self.after(())[None]

    def __call__(self, tokens_W, rows_W, level, paths):
        paths = [(*paths[row], token) for row, token in zip(rows_W.tolist(), tokens_W.tolist(), strict=True)]
        assert all(len(path) == level for path in paths)
        return torch.stack([self.after(path) for path in paths]), paths


def grown(policy, after):
    steps = Paths(after)
    return policy.grow(torch.tensor(ROOT), steps.start(), [()], steps)


def reference_grown(nodes, depth, width, after):
    """Score every guess of every expanded node by its cumulative log q and return the best."""
    scores: dict[tuple[int, ...], float] = {}
    beam: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    for _ in range(depth):
        level: dict[tuple[int, ...], float] = {}
        for path, score in beam:
            logq_V = torch.log_softmax(after(path), dim=-1).tolist()
            for token in sorted(range(V), key=lambda token: -logq_V[token])[:width]:
                level[(*path, token)] = score + logq_V[token]
        scores |= level
        beam = sorted(level.items(), key=lambda item: -item[1])[:width]
    return set(sorted(scores, key=lambda path: -scores[path])[:nodes])


@pytest.mark.parametrize(("nodes", "depth", "width"), [(1, 1, 1), (4, 1, 6), (5, 5, 1), (12, 4, 4), (20, 3, 3), (30, 5, 2), (59, 5, 8)])
def test_a_grown_tree_is_the_references(nodes, depth, width):
    for salt in range(6):

        def after(path, salt=salt):
            return logits_after((salt, *path))

        tree = grown(GrownTree(nodes, depth, width), after)
        assert set(paths_of(tree)[1:]) == reference_grown(nodes, depth, width, after)
        assert tree.size == GrownTree(nodes, depth, width).size == 1 + len(set(paths_of(tree)[1:]))
        assert tree.tokens_N[0] == ROOT
        assert tree.shape.depths_N.tolist() == sorted(tree.shape.depths_N.tolist())


@pytest.mark.parametrize("nodes", range(1, 15))
def test_certain_guesses_never_lose_their_parents(nodes):
    """A guess of log q = 0 ties with its parent, and must not be kept without it."""

    def certain(path):
        logits_V = -torch.arange(float(V))
        logits_V[len(path)] = 500.0
        return logits_V

    paths = paths_of(grown(GrownTree(nodes, 4, 2), certain))[1:]
    assert set(paths) >= {tuple(range(d)) for d in range(1, min(nodes, 4) + 1)}
    assert len(set(paths)) == nodes
    assert all(path[-1] in certain(path[:-1]).topk(2).indices for path in paths)


def test_distributions_that_do_not_depend_on_the_guess_may_come_as_one_row():
    """Medusa's heads give one row for the whole level."""
    rows = torch.randn(4, V, generator=torch.Generator().manual_seed(0))
    lone = GrownTree(12, 4, 4).grow(torch.tensor(ROOT), rows[:1], None, lambda tokens, parents, level, _: (rows[level : level + 1], None))
    full = GrownTree(12, 4, 4).grow(
        torch.tensor(ROOT), rows[:1], None, lambda tokens, parents, level, _: (rows[level].expand(len(tokens), -1), None)
    )
    assert told(lone) == told(full)


CHOICES = [
    [(0,)],
    [(0,), (1,), (2,)],
    [(0,), (0, 0), (0, 0, 0)],
    [(1,), (0,), (1, 0), (0, 2), (0, 0), (1, 0, 3), (1, 0, 0), (0, 2, 1), (0, 2, 1, 0)],
]


@pytest.mark.parametrize("choices", CHOICES)
def test_a_static_tree_takes_the_ranks_it_names(choices):
    tree = grown(StaticTree(choices), logits_after)
    expected = set()
    for choice in choices:
        path: tuple[int, ...] = ()
        for rank in choice:
            path += (int(logits_after(path).argsort(descending=True)[rank]),)
        expected.add(path)
    assert set(paths_of(tree)[1:]) == expected
    assert tree.size == StaticTree(choices).size == len(choices) + 1


@pytest.mark.parametrize("choices", [[(0,), (0,)], [(0,), (1, 0)]])
def test_a_static_tree_needs_every_parent_once(choices):
    with pytest.raises(ValueError, match="parent of every node"):
        StaticTree(choices)


def ranks_of(policy):
    """Return a static tree's choices, read from logits that fall with the token, where the guess of rank k is token k."""
    falling = -torch.arange(float(V))
    return set(paths_of(grown(policy, lambda path: falling))[1:])


@pytest.mark.parametrize("accuracy", [((0.5, 0.3, 0.1), (0.6, 0.2), (0.9,)), ((0.2, 0.6), (0.1, 0.5, 0.05), (0.3, 0.3))])
@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 5])
def test_the_best_static_tree_has_the_greatest_expected_acceptance(nodes, accuracy):
    def worth(choice):
        return math.prod(accuracy[depth][rank] for depth, rank in enumerate(choice))

    possible = [c for d in range(1, 4) for c in itertools.product(*(range(len(row)) for row in accuracy[:d]))]
    closed = (set(c) for c in itertools.combinations(possible, nodes) if all(not x[:-1] or x[:-1] in c for x in c))
    best = max(sum(map(worth, choices)) for choices in closed)
    chosen = ranks_of(static_tree(best_choices(accuracy, nodes)))
    assert len(chosen) == nodes
    assert sum(map(worth, chosen)) == pytest.approx(best)


def test_the_best_static_tree_may_run_out_of_guesses():
    assert ranks_of(static_tree(best_choices(((0.5, 0.2), (0.4,)), 50))) == {(0,), (1,), (0, 0), (1, 0)}


@pytest.mark.parametrize(
    ("nodes", "depth", "width", "what"), [(0, 4, 4, "nodes is 0"), (12, 0, 4, "depth is 0"), (128, 4, 4, "nodes is 128")]
)
def test_sizes_out_of_range_are_named(nodes, depth, width, what):
    with pytest.raises(UserError, match=what):
        check_tree(nodes, depth, width)
