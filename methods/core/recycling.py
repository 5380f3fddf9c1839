"""The target's own next-token guesses at nodes it has scored, kept as draft candidates for later rounds.

After Token Recycling (Luo et al., 2024): a table token -> its k likeliest successors, learned from every verification
forward, rejected nodes included. Costs no model call.
"""

from torch import Tensor

from methods.core.tree import DraftTree

SUCCESSORS = 2  # kept of each token
EXTRA_NODES = 4  # candidates added to a tree


class SuccessorTable:
    def __init__(self) -> None:
        self._after: dict[int, list[int]] = {}

    def clear(self) -> None:
        self._after.clear()

    def learn(self, tokens: list[int], logits_NV: Tensor) -> None:
        """Remember the target's top successors of every scored token; the newest sighting wins."""
        for token, successors in zip(tokens, logits_NV.topk(SUCCESSORS).indices.tolist(), strict=True):
            self._after[token] = successors

    def extend(self, tree: DraftTree) -> DraftTree:
        """The tree with up to ``EXTRA_NODES`` remembered successors its nodes did not draft, shallow ones first."""
        tokens, parents = list(tree.tokens), list(tree.parents)
        drafted = {(parent, token) for parent, token in zip(parents, tokens, strict=True)}
        by_depth = sorted(range(len(tokens)), key=lambda node: tree.shape.depths[node])
        for node in by_depth:
            for token in self._after.get(tokens[node], []):
                if len(tokens) == len(tree) + EXTRA_NODES:
                    return DraftTree(tokens, tuple(parents))
                if (node, token) not in drafted:
                    tokens.append(token)
                    parents.append(node)
        return DraftTree(tokens, tuple(parents))
