"""Measures a device at its best, and what trees and rounds take on it: medians over many repeats, after a warm-up."""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import torch

from methods.core.acceptance import AcceptanceRule, Sampling
from methods.core.clock import clock_for
from methods.core.decode import Drafter, StepTrace, decode
from methods.core.target import Target
from methods.core.tree import DraftTree
from specbench.studies.roofline.cost import Device

COPIED = 512 * 2**20  # bytes: beyond any last-level cache that a core of a common machine can reach
SIDE = {"cpu": 2048, "cuda": 8192}  # of the multiplied matrices
BEST_OF = 7
WARMUP = 3  # calls of each size: compilers and captures run in the first, allocators settle in the next
IN_A_ROW = 4  # calls of one size, the first of which finds the caches full of another and does not count
PASSES = (3, 25)  # over all sizes, at least and at most
BUDGET_S = 30.0  # for the passes beyond the least
SETTLING = 4  # rounds at the start of a text that are left out


def device_numbers(device: torch.device, dtype: torch.dtype) -> Device:
    """The best of a few large copies (bytes read and written) and of a few large matrix products."""
    return Device(_bandwidth(device), _rate(device, dtype))


def laps(call: Callable[[], object], repeats: int, device: torch.device) -> list[float]:
    """Seconds of each of ``repeats`` calls in a row; on CUDA between events that are read once, after the last."""
    clock = clock_for(device)
    clock.mark()
    for _ in range(repeats):
        call()
        clock.mark()
    return clock.laps()


@torch.inference_mode()
def curve(target: Target, sizes: Sequence[int], past: int) -> dict[int, float]:
    """T(n), seconds by n: the target scores a tree of n nodes after ``past`` committed tokens; 1 is a plain step.

    Sizes take turns, so that drift of the machine hits them alike. The trees are binary; the cost does not depend on that.
    """
    target.prefill(filler(past, target.config.vocab_size))
    trees = {nodes: binary_tree(nodes, target.device) for nodes in sizes}
    for tree in trees.values():
        laps(partial(target.score, tree, past), WARMUP, target.device)
    found: dict[int, list[float]] = {nodes: [] for nodes in sizes}
    fewest, passes, spent = *PASSES, 0.0
    for done in range(passes):
        if done >= fewest and spent > BUDGET_S:
            break
        for nodes, tree in trees.items():
            each = laps(partial(target.score, tree, past), IN_A_ROW, target.device)
            found[nodes] += each[1:]
            spent += sum(each)
    return {nodes: median(seconds) for nodes, seconds in found.items()}


def rounds(target: Target, drafter: Drafter, accept: AcceptanceRule, prompt: list[int], new_tokens: int) -> list[StepTrace]:
    """The rounds of one greedy answer without its first few: what drafting, verifying and committing take in the steady state."""
    result = decode(target, drafter, accept, prompt, Sampling(new_tokens), clock_for(target.device))
    return result.steps[SETTLING:]


def filler(tokens: int, vocab: int) -> list[int]:
    """A prompt of that length for timings that no token's value can change."""
    return [(7 * i + 3) % vocab for i in range(tokens)]


def binary_tree(nodes: int, device: torch.device) -> DraftTree:
    return DraftTree.of(list(range(nodes)), (-1, *((i - 1) // 2 for i in range(1, nodes))), device)


def _bandwidth(device: torch.device) -> float:
    # Of zeros no page may be there yet: reading them would read one page of the system's, from cache.
    source = torch.ones(COPIED, dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)
    copy.copy_(source)
    return 2 * COPIED / min(laps(lambda: copy.copy_(source), BEST_OF, device))


def _rate(device: torch.device, dtype: torch.dtype) -> float:
    side = SIDE[device.type]
    rng = torch.Generator(device).manual_seed(0)
    # Of constants a GPU flips so few bits that it clocks higher than on any model.
    a, b = (torch.randn(side, side, dtype=dtype, device=device, generator=rng) for _ in range(2))
    product = torch.empty_like(a)
    torch.mm(a, b, out=product)
    return 2 * side**3 / min(laps(lambda: torch.mm(a, b, out=product), BEST_OF, device))
