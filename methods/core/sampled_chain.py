"""Chains drawn from a drafter's own distribution q, for acceptance rules that judge drafts by their q.

q is the drafter's distribution at the temperature of the turn over its K likeliest tokens, restricted
further as the target's p is. Since the drafts are drawn from that same q, cutting it costs acceptance,
never exactness (Leviathan et al., 2023).

Shape letters: those of ``methods.core.policies``; K counts the tokens kept of q.
"""

from typing import NamedTuple, Protocol, Self, TypeVar, runtime_checkable

import torch
from torch import Tensor

from methods.core.acceptance import Sampling, exponential, probabilities, truncated
from methods.core.policies import Expand, GrownTree, StaticTree
from methods.core.target import Target
from methods.core.tree import DraftTree, SparseRows, shape_of

KEPT = 64  # tokens of q
# Mixed into the seed of the drafts. The target uses the seed itself, and acceptance is lossless only
# if both have independent random numbers.
OWN_STREAM = 0x5EED_D4AF

S = TypeVar("S")


@runtime_checkable
class DrawsChains(Protocol):
    """A drafter that drafts trees of its likeliest guesses, and can draw chains in their place."""

    def draw_chains(self) -> None:
        """From the next turn on, draft chains drawn from q at temperatures above 0.

        Raises UserError where the drafter's options ask for drafts that are not drawn.
        """
        ...


class Law(NamedTuple):
    """The part of ``Sampling`` that q depends on."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0


class Draws(NamedTuple):
    """Random numbers and rules that the drafts of one step are drawn with.

    The numbers are drawn before a step's captured function runs, because that may be run twice.
    """

    exponential_NK: Tensor  # one row for each draft
    law: Law


class SampledChain:
    """A policy that drafts one token after the other, each drawn from q; at temperature 0, each the likeliest.

    It has a random stream of its own. ``columns`` is the width of the drafter's logits.
    """

    def __init__(self, depth: int, columns: int, device: torch.device, tokens_U: Tensor | None = None):
        self.depth, self.size, self._tokens_U = depth, 1 + depth, tokens_U
        self._kept, self._parents = min(KEPT, columns), tuple(range(-1, depth))
        self._rng, self._law = torch.Generator(device), Law(0.0)

    @classmethod
    def within(cls, policy: GrownTree | StaticTree, target: Target, tokens_U: Tensor | None) -> Self:
        """Return the longest chain that is no deeper than a policy's trees, and no larger."""
        columns = target.config.vocab_size if tokens_U is None else len(tokens_U)
        return cls(min(policy.depth, policy.size - 1), columns, target.device, tokens_U)

    def begin(self, sampling: Sampling) -> None:
        """Start a new turn: restart the random stream at the turn's seed."""
        self._rng.manual_seed(sampling.seed ^ OWN_STREAM)
        self._law = Law(sampling.temperature, sampling.top_k, sampling.top_p)

    def draws(self) -> Draws | None:
        """Return what the next step's drafts are drawn with; None at temperature 0."""
        return Draws(exponential(self.depth, self._kept, self._rng), self._law) if self._law.temperature > 0 else None

    def grow(self, root: Tensor, logits_WV: Tensor, state: S, expand: Expand[S], draws: Draws | None) -> DraftTree:
        """Build a chain on ``root``; see ``TreePolicy.grow``. The last draft is not expanded."""
        tokens, best, rows = [root[None]], [], []
        only = root.new_zeros(1)
        for level in range(1, self.depth + 1):
            if draws is None:
                value, token = logits_WV.max(dim=-1)
                token = token if self._tokens_U is None else self._tokens_U[token]
            else:
                token, value, row = self._drawn(logits_WV, draws.exponential_NK[level - 1], draws.law)
                rows.append(row)
            tokens.append(token)
            best.append(value)
            if level < self.depth:
                logits_WV, state = expand(token, only, level, state)

        q = SparseRows(*map(_below_the_root, zip(*rows, strict=True))) if rows else None
        return DraftTree(torch.cat(tokens), shape_of(self._parents, root.device), q, torch.cat(best).isnan().any())

    def _drawn(self, logits_1V: Tensor, exponential_K: Tensor, law: Law) -> tuple[Tensor, Tensor, SparseRows]:
        """Return a token drawn from q, the greatest logit (both with one axis of length 1), and q as one row."""
        top = logits_1V.topk(len(exponential_K))
        tokens_1K = top.indices if self._tokens_U is None else self._tokens_U[top.indices]
        q_1K = probabilities(truncated(top.values, *law), law.temperature)
        place = (q_1K / exponential_K).argmax(dim=-1)
        return tokens_1K[0, place], top.values[0, :1], SparseRows(q_1K, tokens_1K)


def _below_the_root(rows_1K: tuple[Tensor, ...]) -> Tensor:
    """Return these rows after a row of zeros for the root, which is not drawn."""
    return torch.cat([torch.zeros_like(rows_1K[0]), *rows_1K])
