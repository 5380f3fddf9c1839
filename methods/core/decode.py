"""The one decoding loop. Every method is a Drafter and an acceptance rule run by it.

A step drafts a tree, has the target score it, and commits the accepted path.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from methods.core.acceptance import AcceptanceRule, Accepted, HostResult, Sampling, match, noise_for, truncated
from methods.core.clock import Clock, HostClock
from methods.core.target import ContextOverflow, Scores, Target
from methods.core.tree import MAX_TREE_SIZE, DraftTree


class Drafter(Protocol):
    """An object that guesses the next tokens. Its state is private; ``begin`` resets it."""

    @property
    def sizes(self) -> Sequence[int]:
        """The sizes of the trees it can draft, root and padding included."""
        ...

    @property
    def reads(self) -> tuple[int, ...]:
        """The target layers whose input it needs in ``Scores.deep_ND``; empty for most drafters."""
        ...

    def begin(self, prompt: list[int], first: Accepted, scores: Scores, sampling: Sampling) -> None:
        """Start a new turn.

        ``scores`` are those of the prompt's prefill and ``first`` is the token chosen from them.
        ``sampling`` says how the target chooses; drafters with random guesses use its seed.
        """
        ...

    def draft(self, tokens: list[int]) -> DraftTree:
        """Return a tree whose root is ``tokens[-1]``; ``tokens`` are all committed, prompt included."""
        ...

    def observe(self, tree: DraftTree, accepted: Accepted, scores: Scores) -> None:
        """Learn which path of the last tree was accepted; ``scores`` covers all nodes of the tree."""
        ...

    def wipe(self) -> None:
        """Clear what a failed turn may have left and ``begin`` does not reset, such as NaN in a cache."""
        ...


@dataclass(frozen=True)
class StepTrace:
    """The counts and times of one step. Times are in seconds."""

    tree_size: int  # nodes of the drafted tree with the root, without padding
    depth: int  # of the draft tree; 0 for vanilla
    accepted: int  # drafts the target agreed with
    emitted: int  # tokens the step added: accepted + 1, clipped at a stop id or the limit
    draft_s: float
    verify_s: float
    commit_s: float

    @property
    def total_s(self) -> float:
        """The seconds of the whole step."""
        return self.draft_s + self.verify_s + self.commit_s


@dataclass(frozen=True)
class DecodeResult:
    """One answer and the trace of its steps.

    ``len(tokens) == 1 + sum of emitted``: the first token belongs to the prefill.
    """

    tokens: list[int]
    stop: str  # "stop_id" or "length"
    prefill_s: float
    steps: list[StepTrace]


@torch.inference_mode()
def decode(target: Target, drafter: Drafter, accept: AcceptanceRule, prompt: list[int], sampling: Sampling, clock: Clock) -> DecodeResult:
    """Continue ``prompt`` until a stop id, ``max_new_tokens``, or the end of the target's context.

    The host reads from the device once per step. Raises ContextOverflow before any work when the
    prompt leaves no room for a token, FloatingPointError when logits are NaN.
    """
    limit = room(prompt, sampling, target.context)
    rng = torch.Generator(target.device).manual_seed(sampling.seed)

    clock.mark()
    new = _begin(target, drafter, prompt, sampling, rng)
    tokens, counts = [*prompt, *new], []
    clock.mark()

    while not (stop := stop_reason(new, limit, sampling.stop_ids)):
        result = _step(target, drafter, accept, tokens, sampling, rng, clock)
        emitted = clip(result.tokens, limit - len(new), sampling.stop_ids)
        tokens += emitted
        new += emitted
        counts.append((result.tree_size, result.depth, len(result.tokens) - 1, len(emitted)))
        clock.mark()

    prefill_s, *laps = clock.laps()
    steps = zip(counts, laps[0::3], laps[1::3], laps[2::3], strict=True)
    return DecodeResult(new, stop, prefill_s, [StepTrace(*count, *times) for count, *times in steps])


@torch.inference_mode()
def warm_up(target: Target, drafter: Drafter, accept: AcceptanceRule, sampling: Sampling) -> None:
    """Compile or capture all that a turn can need: each tree size, at every length of text."""
    rng = torch.Generator(target.device).manual_seed(0)
    target.warm_up(drafter.sizes, drafter.reads)

    for length in target.lengths(MAX_TREE_SIZE):
        prompt = [0] * length
        tokens = [*prompt, *_begin(target, drafter, prompt, sampling, rng)]
        for _ in range(2):  # the first step reads what the prefill left, the second what a step left
            tokens += _step(target, drafter, accept, tokens, sampling, rng, HostClock()).tokens

    for size in drafter.sizes[1:]:
        tree = DraftTree.chain([0] * size, target.device)  # a drafter of several sizes drafts chains
        _judge(accept, tree, target.score(tree, 0, drafter.reads).logits_NV, sampling, rng)


def _begin(target: Target, drafter: Drafter, prompt: list[int], sampling: Sampling, rng: torch.Generator) -> list[int]:
    """Prefill the prompt and return the first new token."""
    scores = target.prefill(prompt, drafter.reads)
    first = _judge(match, DraftTree.chain(prompt[-1:], target.device), scores.logits_NV, sampling, rng)
    drafter.begin(prompt, first, scores, sampling)
    return first.read().tokens


def _step(
    target: Target, drafter: Drafter, accept: AcceptanceRule, tokens: list[int], sampling: Sampling, rng: torch.Generator, clock: Clock
) -> HostResult:
    """Draft, verify and commit once; marks the clock after drafting and after verifying."""
    tree = drafter.draft(tokens)
    clock.mark()

    scores = target.score(tree, len(tokens) - 1, drafter.reads)
    accepted = _judge(accept, tree, scores.logits_NV, sampling, rng)
    clock.mark()

    target.commit(accepted)
    drafter.observe(tree, accepted, scores)
    return accepted.read()


def _judge(rule: AcceptanceRule, tree: DraftTree, logits_NV: Tensor, sampling: Sampling, rng: torch.Generator) -> Accepted:
    if sampling.temperature > 0:
        logits_NV = truncated(logits_NV, sampling.temperature, sampling.top_k, sampling.top_p)
    return rule(tree, logits_NV, sampling.temperature, noise_for(tree, logits_NV.shape[1], sampling, rng))


def room(prompt: list[int], sampling: Sampling, context: int) -> int:
    """Return the most tokens an answer can have. Raises ContextOverflow where not one fits."""
    limit = min(sampling.max_new_tokens, context - len(prompt))
    if limit < 1:
        raise ContextOverflow(f"prompt of {len(prompt)} tokens does not fit the target's context of {context}; shorten it")
    return limit


def stop_reason(new: list[int], limit: int, stop_ids: frozenset[int]) -> str:
    """Return why decoding ends after the tokens ``new``: "stop_id", "length", or "" to go on."""
    if new[-1] in stop_ids:
        return "stop_id"
    return "length" if len(new) >= limit else ""


def clip(emitted: list[int], room: int, stop_ids: frozenset[int]) -> list[int]:
    """Cut a step's tokens after the first stop id and to at most ``room`` tokens."""
    end = next((i + 1 for i, token in enumerate(emitted) if token in stop_ids), len(emitted))
    return emitted[: min(end, room)]
