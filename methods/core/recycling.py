"""The target's own guesses at nodes it has scored, kept as draft candidates for later steps.

After Token Recycling (Luo et al., 2024): a table maps a token to its K likeliest successors. It
learns from every verification forward, rejected nodes included, and costs no model call.
"""

import torch
from torch import Tensor

from methods.core.tree import PADDING, DraftTree, grown_shape

EXTRA_NODES = 4  # candidates added to a tree


class SuccessorTable:
    """The K likeliest successors of each token of the vocabulary, likeliest first.

    An entry is ``PADDING`` where nothing is known.
    """

    def __init__(self, vocabulary: int, successors: int, device: torch.device):
        self._after_VK = torch.full((vocabulary + 1, successors), PADDING, device=device)  # the last row, index -1, is padding's

    def clear(self) -> None:
        """Forget everything."""
        self._after_VK.fill_(PADDING)

    def after(self, tokens_N: Tensor) -> Tensor:
        """Return the known successors of each token, NK; those of padding are padding."""
        return self._after_VK[tokens_N]

    def learn(self, tokens_N: Tensor, logits_NV: Tensor) -> None:
        """Remember the target's top successors of every scored token, overwriting older ones.

        Running it again on the same input leaves the same table, so that it can be captured.
        """
        later_NN = torch.ones(len(tokens_N), len(tokens_N), dtype=torch.bool, device=tokens_N.device).triu(1)
        again_N = ((tokens_N[:, None] == tokens_N) & later_NN).any(dim=1)
        # Indexed writes have no defined order, so every occurrence of a token writes its last node's row.
        newest_N = ((tokens_N[:, None] == tokens_N) & ~again_N).long().argmax(dim=1)
        best_NK = logits_NV.topk(self._after_VK.shape[1]).indices[newest_N]
        self._after_VK[tokens_N] = torch.where(tokens_N[:, None] < 0, PADDING, best_NK)

    def extend(self, tree: DraftTree) -> DraftTree:
        """Return the tree with ``EXTRA_NODES`` more nodes.

        They are known successors that the tree's nodes did not draft, those of shallow nodes first,
        then padding.
        """
        tokens_N, (parents_N, _, _, depth) = tree.tokens_N, tree.shape
        nodes_N = torch.arange(tree.size, device=tokens_N.device)
        guess_NK = self.after(tokens_N)
        guess_C, node_C = guess_NK.flatten(), nodes_N.repeat_interleave(guess_NK.shape[1])  # C candidates

        drafted_C = ((parents_N == node_C[:, None]) & (tokens_N == guess_C[:, None]) & (nodes_N > 0)).any(dim=1)
        usable_C = (guess_C >= 0) & ~drafted_C
        chosen = torch.where(usable_C, -torch.arange(len(node_C), device=tokens_N.device), -len(node_C)).topk(EXTRA_NODES).indices

        tokens_M = torch.cat([tokens_N, torch.where(usable_C[chosen], guess_C[chosen], PADDING)])
        return DraftTree(tokens_M, grown_shape(torch.cat([parents_N, node_C[chosen]]), depth + 1), faulty=tree.faulty)
