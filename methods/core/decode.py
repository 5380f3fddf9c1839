"""The one decoding loop. Every method is a Drafter and an acceptance rule run by it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from methods.core.acceptance import AcceptanceRule, Accepted, Sampling, match, noise_for
from methods.core.clock import Clock
from methods.core.target import MAX_NODES, ContextOverflow, Scores, Target
from methods.core.tree import DraftTree


class Drafter(Protocol):
    """Guesses what comes next. Its state is private; ``begin`` forgets all of it."""

    @property
    def sizes(self) -> Sequence[int]:
        """Of the trees it can draft, root and padding included."""
        ...

    @property
    def reads(self) -> tuple[int, ...]:
        """The target's layers whose input it wants in ``Scores.deep_ND``; most want none."""
        ...

    def begin(self, prompt: list[int], first: Accepted, scores: Scores, sampling: Sampling) -> None:
        """A new conversation; ``scores`` are those of the prompt's prefill, ``first`` the token that came of them.

        ``sampling`` says how the target will choose: a drafter whose guesses are random draws them from its seed.
        """
        ...

    def draft(self, tokens: list[int]) -> DraftTree:
        """A tree whose root is ``tokens[-1]``; ``tokens`` is everything committed, prompt included."""
        ...

    def observe(self, tree: DraftTree, accepted: Accepted, scores: Scores) -> None:
        """The target accepted a path of the last tree; ``scores`` covers all its nodes."""
        ...


@dataclass(frozen=True)
class StepTrace:
    """One round: draft, verify, commit. Times in seconds."""

    nodes: int  # tree nodes the target scored, root included
    depth: int  # of the draft tree; 0 for vanilla
    accepted: int  # drafts the target agreed with
    emitted: int  # tokens the round added: accepted + 1, clipped at a stop id or the limit
    draft_s: float
    verify_s: float
    commit_s: float


@dataclass(frozen=True)
class DecodeResult:
    """``len(tokens) == 1 + sum of emitted``: the first token belongs to the prefill."""

    tokens: list[int]
    stop: str  # "stop_id" or "length"
    prefill_s: float
    steps: list[StepTrace]


@torch.inference_mode()
def decode(target: Target, drafter: Drafter, accept: AcceptanceRule, prompt: list[int], sampling: Sampling, clock: Clock) -> DecodeResult:
    """Continue ``prompt`` until a stop id, ``max_new_tokens``, or the end of the target's context.

    The host reads the device once a round. Raises ContextOverflow before any work when the prompt leaves no room,
    FloatingPointError when logits turn NaN.
    """
    limit = room(prompt, sampling, target.context)
    rng = torch.Generator(target.device).manual_seed(sampling.seed)

    clock.mark()
    scores = target.prefill(prompt, drafter.reads)
    first = _judged(match, DraftTree.chain(prompt[-1:], target.device), scores.logits_NV, sampling, rng)
    drafter.begin(prompt, first, scores, sampling)
    new = first.read().tokens
    tokens, counts = [*prompt, *new], []
    clock.mark()
    while not (stop := stop_reason(new, limit, sampling.stop_ids)):
        tree = drafter.draft(tokens)
        clock.mark()
        scores = target.score(tree, len(tokens) - 1, drafter.reads)
        accepted = _judged(accept, tree, scores.logits_NV, sampling, rng)
        clock.mark()
        target.commit(accepted)
        drafter.observe(tree, accepted, scores)
        told = accepted.read()
        emitted = clip(told.tokens, limit - len(new), sampling.stop_ids)
        tokens += emitted
        new += emitted
        counts.append((told.nodes, told.depth, len(told.tokens) - 1, len(emitted)))
        clock.mark()
    prefill_s, *laps = clock.laps()
    rounds = zip(counts, laps[0::3], laps[1::3], laps[2::3], strict=True)
    return DecodeResult(new, stop, prefill_s, [StepTrace(*count, *times) for count, *times in rounds])


@torch.inference_mode()
def warm(target: Target, drafter: Drafter, accept: AcceptanceRule, sampling: Sampling) -> None:
    """Compile or capture all that a turn can come to need: each size of tree, at every length of text."""
    rng = torch.Generator(target.device).manual_seed(0)
    target.warm(drafter.sizes, drafter.reads)
    for length in target.lengths(MAX_NODES):
        prompt = [0] * length
        scores = target.prefill(prompt, drafter.reads)
        first = _judged(match, DraftTree.chain(prompt[-1:], target.device), scores.logits_NV, sampling, rng)
        drafter.begin(prompt, first, scores, sampling)
        tokens = [*prompt, *first.read().tokens]
        for _ in range(2):  # the first round reads what the prompt left, all others what a round did
            tree = drafter.draft(tokens)
            scores = target.score(tree, len(tokens) - 1, drafter.reads)
            accepted = _judged(accept, tree, scores.logits_NV, sampling, rng)
            target.commit(accepted)
            drafter.observe(tree, accepted, scores)
            tokens += accepted.read().tokens
    for size in drafter.sizes[1:]:
        tree = DraftTree.chain([0] * size, target.device)  # a drafter of several sizes drafts chains
        _judged(accept, tree, target.score(tree, 0, drafter.reads).logits_NV, sampling, rng)


def _judged(rule: AcceptanceRule, tree: DraftTree, logits_NV: Tensor, sampling: Sampling, rng: torch.Generator) -> Accepted:
    return rule(tree, logits_NV, sampling.temperature, noise_for(tree, logits_NV.shape[1], sampling, rng))


def room(prompt: list[int], sampling: Sampling, context: int) -> int:
    """The most tokens an answer can have. Raises ContextOverflow where not one fits."""
    limit = min(sampling.max_new_tokens, context - len(prompt))
    if limit < 1:
        raise ContextOverflow(f"prompt of {len(prompt)} tokens does not fit the target's context of {context}; shorten it")
    return limit


def stop_reason(new: list[int], limit: int, stop_ids: frozenset[int]) -> str:
    if new[-1] in stop_ids:
        return "stop_id"
    return "length" if len(new) >= limit else ""


def clip(emitted: list[int], room: int, stop_ids: frozenset[int]) -> list[int]:
    """What of a round's tokens counts: nothing after a stop id, and no more than there is room for."""
    end = next((i + 1 for i, token in enumerate(emitted) if token in stop_ids), len(emitted))
    return emitted[: min(end, room)]
