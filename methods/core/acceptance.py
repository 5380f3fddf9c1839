"""Acceptance rules: which path of a draft tree the target agrees with, and the token after it.

p is the target's distribution and q the drafter's, as in Leviathan et al. (2023). A lossless rule
leaves the distribution of the output equal to the target's own, whatever the drafter guessed.
Rules run on the device with fixed shapes. The host reads the result once per step, by
``Accepted.read``.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from methods.core.errors import UserError
from methods.core.tree import DraftTree


@dataclass(frozen=True)
class Sampling:
    """The sampling settings of a turn: how tokens are chosen, and when to stop.

    Temperature 0 is greedy decoding. ``top_k`` and ``top_p`` restrict the distribution as
    ``truncated`` does; drafts are accepted against the restricted distribution. Raises UserError for
    a value out of range.
    """

    max_new_tokens: int
    temperature: float = 0.0
    stop_ids: frozenset[int] = frozenset()
    seed: int = 0
    top_k: int = 0  # 0: all tokens
    top_p: float = 1.0  # 1: all tokens

    def __post_init__(self) -> None:
        if self.top_k < 0:
            raise UserError(f"top_k is {self.top_k}; choose 0 for all tokens, or how many to sample from")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p is {self.top_p}; choose a share above 0 and up to 1, which keeps all tokens")


class Noise(NamedTuple):
    """The random numbers of one step, drawn before its acceptance rule runs."""

    exponential_NV: Tensor
    uniform_N: Tensor


def noise_for(tree: DraftTree, vocabulary: int, sampling: Sampling, rng: torch.Generator) -> Noise | None:
    """Draw the random numbers a tree needs; None for greedy decoding."""
    if sampling.temperature == 0.0:
        return None
    return Noise(exponential(tree.size, vocabulary, rng), torch.rand(tree.size, generator=rng, device=rng.device))


def exponential(rows: int, vocabulary: int, rng: torch.Generator) -> Tensor:
    """Draw rows x V numbers from Exp(1); the argmax of p / Exp(1) is a sample from p.

    No number is 0: 0 / 0 would make a token of probability 0 the argmax.
    """
    noise_NV = torch.empty(rows, vocabulary, device=rng.device).exponential_(generator=rng)
    return noise_NV.clamp_(min=torch.finfo(noise_NV.dtype).tiny)


class HostResult(NamedTuple):
    """The result of a step, as the host reads it."""

    tokens: list[int]  # the accepted drafts, then the bonus
    tree_size: int  # nodes of the drafted tree with the root, without padding
    depth: int  # of the tree


class Accepted(NamedTuple):
    """A path of P nodes on the device; its first ``length`` nodes are accepted, the rest is filler."""

    path_P: Tensor  # node numbers, root first
    length: Tensor  # no axes
    emitted_P: Tensor  # the path's tokens after the root, then the bonus; filler repeats the bonus
    report: Tensor  # for the host: length, tree size, depth, target NaN, drafter NaN, emitted_P

    def last(self, rows_ND: Tensor) -> Tensor:
        """Return the row of the last accepted node, 1D, from rows over the tree's nodes."""
        return rows_ND[self.path_P[self.length[None] - 1]]

    def read(self) -> HostResult:
        """Copy the result to the host: the one synchronisation of a step.

        Raises FloatingPointError where the target's or the drafter's logits are NaN.
        """
        length, tree_size, depth, target_nan, drafter_nan, *emitted = self.report.tolist()
        for nan, whose in ((target_nan, "target"), (drafter_nan, "drafter")):
            if nan:
                raise FloatingPointError(f"the {whose}'s logits are NaN")
        return HostResult(emitted[:length], tree_size, depth)


class AcceptanceRule(Protocol):
    """A function that decides which path of a tree is accepted."""

    def __call__(self, tree: DraftTree, logits_NV: Tensor, temperature: float, noise: Noise | None) -> Accepted:
        """Return the accepted path; ``noise`` is None at temperature 0 and only there.

        Logits are -inf for tokens that are not sampled (``truncated``).
        """
        ...


def probabilities(logits_NV: Tensor, temperature: float) -> Tensor:
    """Return p at every node, in fp32 or wider.

    A temperature too small for the dtype to divide by gives the greedy choice, up to exact ties.
    """
    wide_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    below_NV = wide_NV - wide_NV.amax(dim=-1, keepdim=True)  # <= 0, so dividing cannot overflow to inf
    return torch.softmax(below_NV / max(temperature, torch.finfo(wide_NV.dtype).tiny), dim=-1)


def truncated(logits_NV: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Return the logits with -inf for tokens that are not sampled, as transformers' warpers do.

    The temperature comes first, then the ``top_k`` likeliest tokens (0: all; ties with the last of
    them stay), then, of what is left and renormalised, the fewest likeliest tokens whose probability
    reaches ``top_p`` (1: all).
    """
    if 0 < top_k < logits_NV.shape[-1]:
        least_N1 = logits_NV.topk(top_k).values[..., -1:]
        logits_NV = logits_NV.masked_fill(logits_NV < least_N1, -torch.inf)
    if top_p < 1:
        ascending_NV, tokens_NV = logits_NV.sort(dim=-1)
        dropped_NV = probabilities(ascending_NV, temperature).cumsum(dim=-1) <= 1 - top_p
        dropped_NV[..., -1] = False
        logits_NV = logits_NV.masked_fill(dropped_NV.scatter(-1, tokens_NV, dropped_NV), -torch.inf)
    return logits_NV


def choose(logits_NV: Tensor, temperature: float, noise: Noise | None) -> Tensor:
    """Return the target's own next token after each node, N."""
    if noise is None:
        return logits_NV.argmax(dim=-1)
    return (probabilities(logits_NV, temperature) / noise.exponential_NV).argmax(dim=-1)


def match(tree: DraftTree, logits_NV: Tensor, temperature: float, noise: Noise | None) -> Accepted:
    """Follow the child that carries the token the target chose, as long as there is one.

    Lossless for any drafter at any temperature. For drafts that are not random it is equivalent to
    speculative sampling: a child is accepted with the target's probability of its token.
    """
    chosen_N = choose(logits_NV, temperature, noise)
    agreed_N = tree.tokens_N == chosen_N[tree.shape.parents_N]
    if tree.q is not None:
        # Random siblings may carry equal tokens. Only the first counts: picking the sibling with the
        # better continuation would sample twice.
        alike_NN = (tree.tokens_N == tree.tokens_N[:, None]) & (tree.shape.parents_N == tree.shape.parents_N[:, None])
        agreed_N &= ~alike_NN.tril(-1).any(dim=1)
    last = _deepest(tree, agreed_N)
    return path_to(tree, logits_NV, last, chosen_N[last])


def speculative_sampling(tree: DraftTree, logits_NV: Tensor, temperature: float, noise: Noise | None) -> Accepted:
    """Accept each child with probability min(1, p/q); after a rejection p becomes max(0, p - q). Lossless.

    Leviathan et al. (2023), section 2.3, with siblings tried in turn as in SpecInfer (Miao et al.,
    2024). Drafts without ``q`` are not random; the rule is then ``match``. A rejection changes p at the
    few tokens of q, in place; p is not normalised again, but compared with q times its sum.
    """
    if noise is None or tree.q is None:
        return match(tree, logits_NV, temperature, noise)

    p_NV, (q_NK, tokens_NK) = probabilities(logits_NV, temperature), tree.q
    q_N = (q_NK * (tokens_NK == tree.tokens_N[:, None])).sum(dim=-1)
    least_N = torch.where(tree.tokens_N < 0, torch.inf, noise.uniform_N * q_N)  # p above which a child is accepted

    current = tree.tokens_N.new_zeros(1)
    for child in range(1, tree.size):  # parents stand before children, siblings in trial order
        parent, x, tokens_K = tree.shape.parents_N[child : child + 1], tree.tokens_N[child : child + 1], tokens_NK[child]
        p_1V = p_NV[parent]
        p_sum = p_1V.sum()
        taken = (parent == current) & (least_N[child] * p_sum < p_1V[0, x])
        p_NV[parent, tokens_K] = (p_1V[0, tokens_K] - q_NK[child] * p_sum).clamp(min=0)  # read again only after a rejection
        current = torch.where(taken, child, current)

    return path_to(tree, logits_NV, current, (p_NV[current] / noise.exponential_NV[0]).argmax(dim=-1))


def typical(tree: DraftTree, logits_NV: Tensor, temperature: float, noise: Noise | None) -> Accepted:
    """Accept the longest path of plausible tokens: Medusa's typical acceptance. Lossy.

    Cai et al. (2024), section 2.3.1. A token is plausible if p is above
    min(0.09, 0.3 * exp(-entropy)), with the constants of the published code. Greedy decoding uses
    ``match``.
    """
    if noise is None:
        return match(tree, logits_NV, temperature, noise)
    p_NV = probabilities(logits_NV, temperature)
    threshold_N = (0.3 * torch.exp(-torch.special.entr(p_NV).sum(dim=-1))).clamp(max=0.09)
    parents_N = tree.shape.parents_N
    plausible_N = (p_NV[parents_N, tree.tokens_N.clamp(min=0)] > threshold_N[parents_N]) & (tree.tokens_N >= 0)
    last = _deepest(tree, plausible_N)
    return path_to(tree, logits_NV, last, choose(logits_NV, temperature, noise)[last])


# ``last`` and ``bonus`` have one axis of length 1: the host would have to read an index without
# axes before it could use it.
def _deepest(tree: DraftTree, agreed_N: Tensor) -> Tensor:
    """Return the first of the deepest nodes that are agreed with all their ancestors.

    The root always counts as agreed, padding never does.
    """
    depths_N, drafted_N = tree.shape.depths_N, tree.tokens_N >= 0
    refused_N = (depths_N > 0) & ~agreed_N | ~drafted_N
    alive_N = ~(tree.shape.sees_NN & refused_N).any(dim=1)
    return torch.where(alive_N, depths_N, -1).argmax(keepdim=True)


def path_to(tree: DraftTree, logits_NV: Tensor, last: Tensor, bonus: Tensor) -> Accepted:
    """Return the path that ends at node ``last``, followed by the token ``bonus``."""
    tokens_N, (_, depths_N, sees_NN, depth) = tree.tokens_N, tree.shape
    nodes_N, drafted_N = torch.arange(tree.size, device=tokens_N.device), tokens_N >= 0

    path_P = torch.where(sees_NN[last][0], nodes_N, tree.size - 1).sort().values[: depth + 1]
    length = depths_N[last][0] + 1
    emitted_P = torch.where(nodes_N[: len(path_P)] < length - 1, torch.cat([tokens_N[path_P[1:]], bonus]), bonus)

    target_nan = logits_NV.amax().isnan()  # NaN wins every max
    drafter_nan = torch.zeros_like(target_nan) if tree.faulty is None else tree.faulty
    facts = torch.stack([length, drafted_N.sum(), (depths_N * drafted_N).max(), target_nan.long(), drafter_nan.long()])
    return Accepted(path_P, length, emitted_P, torch.cat([facts, emitted_P]))


@dataclass(frozen=True)
class Rule:
    """An acceptance rule of the table, whether it is lossless, and whether it judges random drafts by their q."""

    apply: AcceptanceRule
    lossless: bool = True
    judges_q: bool = False


RULES = {
    "match": Rule(match),
    "speculative_sampling": Rule(speculative_sampling, judges_q=True),
    "typical": Rule(typical, lossless=False),
}
