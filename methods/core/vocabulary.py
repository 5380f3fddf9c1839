"""Draft vocabularies: the tokens that a drafter guesses among, where these are not all of the target's.

A guess costs one read of the output matrix, which in a small model of a large vocabulary is a fifth
of all weights. Among its most frequent tokens alone the matrix is a sixth as high, and the others,
never guessed, cost acceptance (EAGLE-3; FR-Spec, Zhao et al., 2025).

Shape letters: those of ``methods.core.tree``, and U draft vocabulary, P positions.
"""

import torch
from torch import Tensor, nn

from methods.core.errors import UserError
from methods.core.policies import MAX_WIDTH


def check_vocabulary(size: int) -> None:
    """Raise UserError for a draft vocabulary too small to draft a tree from; 0 stands for all tokens."""
    if size < MAX_WIDTH and size != 0:
        raise UserError(f"vocabulary is {size}; choose 0 for all of the target's tokens, or at least {MAX_WIDTH}")


def most_frequent(counts_V: Tensor, size: int) -> Tensor:
    """Return the ``size`` tokens of the greatest counts, ascending; of equally frequent ones the first."""
    return counts_V.argsort(descending=True, stable=True)[:size].sort().values


def rows_of(head: nn.Module, tokens_U: Tensor) -> nn.Linear:
    """Return an output layer over these tokens alone, a copy of their rows of ``head``, not trained."""
    weight, bias = head.get_parameter("weight"), getattr(head, "bias", None)
    with torch.device("meta"):  # leaves out the initialisation
        rows = nn.Linear(weight.shape[1], len(tokens_U), bias=bias is not None)
    rows.weight = nn.Parameter(weight.detach()[tokens_U], requires_grad=False)
    if bias is not None:
        rows.bias = nn.Parameter(bias.detach()[tokens_U], requires_grad=False)
    return rows


def columns_of(tokens_P: Tensor, tokens_U: Tensor) -> tuple[Tensor, Tensor]:
    """Return the columns of a drafter's logits that stand for these tokens, and whether there is one.

    The column of a token outside the draft vocabulary is an arbitrary one. ``tokens_U`` is ascending.
    """
    columns_P = torch.searchsorted(tokens_U, tokens_P).clamp(max=len(tokens_U) - 1)
    return columns_P, tokens_U[columns_P] == tokens_P
