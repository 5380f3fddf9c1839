"""Acceptance rules: which path of a draft tree the target agrees with, and the token that follows it.

p is the target's distribution and q the drafter's, as in Leviathan et al. (2023). Lossless means: the output has the
law of the target's own decoding, whatever the drafter guessed.
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


class Accepted(NamedTuple):
    path: list[int]  # nodes from the root down, root included
    bonus: int  # the target's own token after the last of them


class AcceptanceRule(Protocol):
    def __call__(self, tree: DraftTree, logits_NV: Tensor, sampling: Sampling, rng: torch.Generator) -> Accepted: ...


def probabilities(logits_NV: Tensor, temperature: float) -> Tensor:
    """p at every node, in fp32 or wider. A temperature too small for the type to divide by is greedy but for exact ties."""
    wide_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    below_NV = wide_NV - wide_NV.amax(dim=-1, keepdim=True)  # so that a small temperature cannot make infinity of the best
    return torch.softmax(below_NV / max(temperature, torch.finfo(wide_NV.dtype).tiny), dim=-1)


def choose(logits_NV: Tensor, sampling: Sampling, rng: torch.Generator) -> list[int]:
    """The target's own next token after each node. Raises FloatingPointError on NaN logits."""
    best = logits_NV.max(dim=-1)
    if any(value != value for value in best.values.tolist()):  # NaN wins every max
        raise FloatingPointError("the target's logits are NaN")
    if sampling.temperature == 0.0:
        return best.indices.tolist()
    return torch.multinomial(probabilities(logits_NV, sampling.temperature), 1, generator=rng)[:, 0].tolist()


def match(tree: DraftTree, logits_NV: Tensor, sampling: Sampling, rng: torch.Generator) -> Accepted:
    """Walk down while some child is the token the target chose. Lossless for any drafter at any temperature."""
    chosen, children, path = choose(logits_NV, sampling, rng), tree.shape.children, [0]
    while True:
        wanted = chosen[path[-1]]
        agreeing = next((child for child in children[path[-1]] if tree.tokens[child] == wanted), None)
        if agreeing is None:
            return Accepted(path, wanted)
        path.append(agreeing)


def speculative_sampling(tree: DraftTree, logits_NV: Tensor, sampling: Sampling, rng: torch.Generator) -> Accepted:
    """Try each child with probability min(1, p/q), else go on with the residual max(0, p - q). Lossless.

    Leviathan et al. (2023), section 2.3, with siblings tried in turn as in SpecInfer (Miao et al., 2024): child after
    child, p becomes the residual. Drafts without ``q_NV`` were not drawn at random: q is 1 at the drafted token.
    """
    if sampling.temperature == 0.0:
        return match(tree, logits_NV, sampling, rng)
    choose(logits_NV, Sampling(1), rng)  # refuses NaN logits before the device has to
    p_NV, path, children = probabilities(logits_NV, sampling.temperature), [0], tree.shape.children
    p_V = p_NV[0]
    while True:
        for child in children[path[-1]]:
            x = tree.tokens[child]
            q_V = _point_mass(p_V, x) if tree.q_NV is None else tree.q_NV[child]
            if torch.rand((), generator=rng, device=p_V.device) * q_V[x] < p_V[x]:
                path.append(child)
                p_V = p_NV[child]
                break
            residual_V = (p_V - q_V).clamp(min=0)
            p_V = residual_V / residual_V.sum()
        else:
            return Accepted(path, int(torch.multinomial(p_V, 1, generator=rng)))


def typical(tree: DraftTree, logits_NV: Tensor, sampling: Sampling, rng: torch.Generator) -> Accepted:
    """Medusa's typical acceptance (Cai et al., 2024, section 2.3.1): take the longest path of plausible tokens. Lossy.

    Plausible: p above min(0.09, 0.3 * exp(-entropy)), the published code's constants.
    """
    if sampling.temperature == 0.0:
        return match(tree, logits_NV, sampling, rng)
    chosen = choose(logits_NV, sampling, rng)
    p_NV = probabilities(logits_NV, sampling.temperature)
    threshold_N = (0.3 * torch.exp(-torch.special.entr(p_NV).sum(dim=-1))).clamp(max=0.09)
    tokens = torch.tensor(tree.tokens[1:], device=p_NV.device)
    parents = torch.tensor(tree.parents[1:], device=p_NV.device, dtype=torch.long)
    plausible = (p_NV[parents, tokens] > threshold_N[parents]).tolist()
    paths = [[0]]
    for node, (parent, ok) in enumerate(zip(tree.parents[1:], plausible, strict=True), start=1):
        paths.append([*paths[parent], node] if ok and paths[parent] else [])
    path = max(paths, key=len)
    return Accepted(path, chosen[path[-1]])


def _point_mass(p_V: Tensor, token: int) -> Tensor:
    q_V = torch.zeros_like(p_V)
    q_V[token] = 1.0
    return q_V


@dataclass(frozen=True)
class Rule:
    apply: AcceptanceRule
    lossless: bool


RULES = {
    "match": Rule(match, lossless=True),
    "speculative_sampling": Rule(speculative_sampling, lossless=True),
    "typical": Rule(typical, lossless=False),
}
