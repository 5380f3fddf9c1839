"""Acceptance rules: which path of a draft tree the target agrees with, and the token that follows it.

p is the target's distribution and q the drafter's, as in Leviathan et al. (2023). Lossless means: the output has the
law of the target's own decoding, whatever the drafter guessed. Rules run on the device with fixed shapes; the host reads
what came of a round once, by ``Accepted.read``.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from methods.core.tree import DraftTree


@dataclass(frozen=True)
class Sampling:
    """How the target's distribution becomes tokens, and when to stop. Temperature 0 is greedy."""

    max_new_tokens: int
    temperature: float = 0.0
    stop_ids: frozenset[int] = frozenset()
    seed: int = 0


class Noise(NamedTuple):
    """A round's random numbers, drawn before its rule runs."""

    exponential_NV: Tensor
    uniform_N: Tensor


def noise_for(tree: DraftTree, vocabulary: int, sampling: Sampling, rng: torch.Generator) -> Noise | None:
    """None for greedy decoding, which needs none."""
    if sampling.temperature == 0.0:
        return None
    return Noise(exponential(tree.size, vocabulary, rng), torch.rand(tree.size, generator=rng, device=rng.device))


def exponential(rows: int, vocabulary: int, rng: torch.Generator) -> Tensor:
    """Exp(1), rows x V: the largest of p / Exp(1) is a draw from p. Never 0, since 0 / 0 would win for a token of probability 0."""
    noise_NV = torch.empty(rows, vocabulary, device=rng.device).exponential_(generator=rng)
    return noise_NV.clamp_(min=torch.finfo(noise_NV.dtype).tiny)


class Told(NamedTuple):
    """What the host learns of a round."""

    tokens: list[int]  # the accepted drafts, then the bonus
    nodes: int  # of the tree, root included, padding not
    depth: int  # of the tree


class Accepted(NamedTuple):
    """A path of P places, the first ``length`` of which hold; the rest is filler."""

    path_P: Tensor  # nodes, root first
    length: Tensor  # no axes
    emitted_P: Tensor  # what the round adds: the tokens of the path after the root, then the target's own next one
    report: Tensor  # for the host: length, nodes, depth, whether target and drafter were NaN, emitted_P

    def last(self, rows_ND: Tensor) -> Tensor:
        """Of rows over the tree's nodes the one at the end of the path, 1D."""
        return rows_ND[self.path_P[self.length[None] - 1]]

    def read(self) -> Told:
        """The one host read of a round. Raises FloatingPointError for NaN logits."""
        length, nodes, depth, target_nan, drafter_nan, *emitted = self.report.tolist()
        for nan, whose in ((target_nan, "target"), (drafter_nan, "drafter")):
            if nan:
                raise FloatingPointError(f"the {whose}'s logits are NaN")
        return Told(emitted[:length], nodes, depth)


class AcceptanceRule(Protocol):
    def __call__(self, tree: DraftTree, logits_NV: Tensor, temperature: float, noise: Noise | None) -> Accepted:
        """``noise`` is None at temperature 0 and nowhere else."""
        ...


def probabilities(logits_NV: Tensor, temperature: float) -> Tensor:
    """p at every node, in fp32 or wider. A temperature too small for the type to divide by is greedy but for exact ties."""
    wide_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    below_NV = wide_NV - wide_NV.amax(dim=-1, keepdim=True)  # so that a small temperature cannot make infinity of the best
    return torch.softmax(below_NV / max(temperature, torch.finfo(wide_NV.dtype).tiny), dim=-1)


def choose(logits_NV: Tensor, temperature: float, noise: Noise | None) -> Tensor:
    """The target's own next token after each node, N."""
    if noise is None:
        return logits_NV.argmax(dim=-1)
    return (probabilities(logits_NV, temperature) / noise.exponential_NV).argmax(dim=-1)


def match(tree: DraftTree, logits_NV: Tensor, temperature: float, noise: Noise | None) -> Accepted:
    """Follow the child that carries the token the target chose, as long as there is one.

    Lossless for any drafter at any temperature. For drafts that are not random, speculative sampling comes to the same:
    a child is taken with the target's probability of its token.
    """
    chosen_N = choose(logits_NV, temperature, noise)
    agreed_N = tree.tokens_N == chosen_N[tree.shape.parents_N]
    if tree.q_NV is not None:  # of equal siblings the first alone: to choose by what follows them would be to draw twice
        alike_NN = (tree.tokens_N == tree.tokens_N[:, None]) & (tree.shape.parents_N == tree.shape.parents_N[:, None])
        agreed_N &= ~alike_NN.tril(-1).any(dim=1)
    last = _deepest(tree, agreed_N)
    return path_to(tree, logits_NV, last, chosen_N[last])


def speculative_sampling(tree: DraftTree, logits_NV: Tensor, temperature: float, noise: Noise | None) -> Accepted:
    """Try each child with probability min(1, p/q), else go on with the residual max(0, p - q). Lossless.

    Leviathan et al. (2023), section 2.3, with siblings tried in turn as in SpecInfer (Miao et al., 2024): child after
    child, p becomes the residual. Drafts without ``q_NV`` are not random: there the rule is ``match``.
    """
    if noise is None or tree.q_NV is None:
        return match(tree, logits_NV, temperature, noise)
    p_NV = probabilities(logits_NV, temperature)
    p_V, current = p_NV[0], tree.tokens_N.new_zeros(1)
    for child in range(1, tree.size):  # children stand behind their parents, siblings in the order they are tried
        x, q_V = tree.tokens_N[child : child + 1], tree.q_NV[child]
        tried = tree.shape.parents_N[child] == current
        taken = tried & (noise.uniform_N[child] * q_V[x] < p_V[x])
        residual_V = (p_V - q_V).clamp(min=0)
        p_V = torch.where(taken, p_NV[child], torch.where(tried, residual_V / residual_V.sum(), p_V))
        current = torch.where(taken, child, current)
    return path_to(tree, logits_NV, current, (p_V / noise.exponential_NV[0]).argmax(keepdim=True))


def typical(tree: DraftTree, logits_NV: Tensor, temperature: float, noise: Noise | None) -> Accepted:
    """Medusa's typical acceptance (Cai et al., 2024, section 2.3.1): take the longest path of plausible tokens. Lossy.

    Plausible: p above min(0.09, 0.3 * exp(-entropy)), the published code's constants.
    """
    if noise is None:
        return match(tree, logits_NV, temperature, noise)
    p_NV = probabilities(logits_NV, temperature)
    threshold_N = (0.3 * torch.exp(-torch.special.entr(p_NV).sum(dim=-1))).clamp(max=0.09)
    parents_N = tree.shape.parents_N
    plausible_N = (p_NV[parents_N, tree.tokens_N.clamp(min=0)] > threshold_N[parents_N]) & (tree.tokens_N >= 0)
    last = _deepest(tree, plausible_N)
    return path_to(tree, logits_NV, last, choose(logits_NV, temperature, noise)[last])


# An index without axes would be read by the host to be used: ``last`` and ``bonus`` have one axis of one place.
def _deepest(tree: DraftTree, agreed_N: Tensor) -> Tensor:
    """The deepest node that is agreed to with all its ancestors, the root always being; the first of several."""
    depths_N, drafted_N = tree.shape.depths_N, tree.tokens_N >= 0
    refused_N = (depths_N > 0) & ~agreed_N | ~drafted_N
    alive_N = ~(tree.shape.sees_NN & refused_N).any(dim=1)
    return torch.where(alive_N, depths_N, -1).argmax(keepdim=True)


def path_to(tree: DraftTree, logits_NV: Tensor, last: Tensor, bonus: Tensor) -> Accepted:
    """The path that ends at ``last`` and what is to be told of it."""
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
    apply: AcceptanceRule
    lossless: bool


RULES = {
    "match": Rule(match, lossless=True),
    "speculative_sampling": Rule(speculative_sampling, lossless=True),
    "typical": Rule(typical, lossless=False),
}
