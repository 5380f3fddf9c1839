"""Measurement of a device's best rates, and of the times of trees and steps on it: medians over many repeats, after a warm-up."""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median

import torch

from methods.core.acceptance import Sampling
from methods.core.clock import clock_for
from methods.core.decode import StepTrace
from methods.core.target import Target
from methods.core.tree import DraftTree
from specbench.engines.own import OwnEngine
from specbench.studies.base import decoded
from specbench.studies.roofline.cost import Device

COPIED = 512 * 2**20  # bytes: larger than any last-level cache that a core of a common machine can reach
SIDE = {"cpu": 2048, "cuda": 8192}  # rows and columns of the multiplied matrices
BEST_OF = 7
WARMUP = 3  # calls of each tree size: compilers and captures run in the first, allocators settle in the next
IN_A_ROW = 4  # calls of one tree size; the first finds the caches full of another size and is not counted
PASSES = (3, 25)  # least and most passes over all tree sizes
BUDGET_S = 30.0  # seconds after which no further pass begins
SETTLING = 4  # steps at the start of an answer that are left out


def device_numbers(device: torch.device, dtype: torch.dtype) -> Device:
    """Return the best rates of a few large copies (bytes read and written) and a few large matrix products."""
    return Device(_bandwidth(device), _rate(device, dtype))


def laps(call: Callable[[], object], repeats: int, device: torch.device) -> list[float]:
    """Return the seconds of each of ``repeats`` calls in a row; on CUDA from events that are read after the last."""
    clock = clock_for(device)
    clock.mark()
    for _ in range(repeats):
        call()
        clock.mark()
    return clock.laps()


@torch.inference_mode()
def curve(target: Target, tree_sizes: Sequence[int], past: int) -> dict[int, float]:
    """Return T(n): the seconds of scoring a tree of size n after ``past`` committed tokens.

    T(1) is a plain step. Sizes take turns, so that drift of the machine affects them alike. The trees
    are binary; the time does not depend on their shape.
    """
    target.prefill(filler(past, target.config.vocab_size))
    trees = {size: binary_tree(size, target.device) for size in tree_sizes}
    for tree in trees.values():
        laps(partial(target.score, tree, past), WARMUP, target.device)

    times: dict[int, list[float]] = {size: [] for size in tree_sizes}
    fewest, passes, spent = *PASSES, 0.0
    for done in range(passes):
        if done >= fewest and spent > BUDGET_S:
            break
        for size, tree in trees.items():
            seconds = laps(partial(target.score, tree, past), IN_A_ROW, target.device)
            times[size] += seconds[1:]
            spent += sum(seconds)
    return {size: median(seconds) for size, seconds in times.items()}


def steps(engine: OwnEngine, prompt: list[int], new_tokens: int) -> list[StepTrace]:
    """Return the steps of one greedy answer without the first few, so that their times are of the steady state."""
    return decoded(engine, prompt, Sampling(new_tokens)).steps[SETTLING:]


def filler(tokens: int, vocab: int) -> list[int]:
    """Return a prompt of that length, for times that do not depend on the values of tokens."""
    return [(7 * i + 3) % vocab for i in range(tokens)]


def binary_tree(tree_size: int, device: torch.device) -> DraftTree:
    """Return a binary draft tree of size ``tree_size``."""
    return DraftTree.of(list(range(tree_size)), (-1, *((i - 1) // 2 for i in range(1, tree_size))), device)


def _bandwidth(device: torch.device) -> float:
    # Not zeros: their pages may not exist yet, and reading them would read one page of the system's, from cache.
    source = torch.ones(COPIED, dtype=torch.uint8, device=device)
    copy = torch.empty_like(source)
    copy.copy_(source)
    return 2 * COPIED / min(laps(lambda: copy.copy_(source), BEST_OF, device))


def _rate(device: torch.device, dtype: torch.dtype) -> float:
    side = SIDE[device.type]
    rng = torch.Generator(device).manual_seed(0)
    # Not constants: on them a GPU flips so few bits that it clocks higher than on any model.
    a, b = (torch.randn(side, side, dtype=dtype, device=device, generator=rng) for _ in range(2))
    product = torch.empty_like(a)
    torch.mm(a, b, out=product)
    return 2 * side**3 / min(laps(lambda: torch.mm(a, b, out=product), BEST_OF, device))
