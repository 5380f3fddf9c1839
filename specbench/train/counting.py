"""Counts of a drafter's memory and work in training, and measurement of a device's speed.

The drafter's loss is run once on fake tensors, which have shapes but no data. That works for every kind of drafter and
loads nothing.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedConfig

from methods.core.training import Batch
from specbench.train import loop
from specbench.train.recipe import Recipe

FP32_BYTES = 4  # training is in fp32: weights, gradients and optimizer state
NEWTON_SCHULZ = 5  # Muon's iterations, each of three matrix products
SIZES = {"cpu": (1024, 2**26), "cuda": (8192, 2**30)}  # side of the matrix and bytes of the copy that measure a device


@dataclass(frozen=True)
class DeviceRates:
    """A device's speed in a short bf16 matrix product and a short copy. Training reaches less."""

    flops: float  # a second
    bytes: float  # a second


@dataclass(frozen=True)
class DrafterCost:
    """A drafter's size, memory and work in training."""

    parameters: int
    reads: int  # number of the target's layers whose input it learns from
    optimizer_bytes: int  # of the optimizers' state
    step_flops: int  # of an optimizer step, without the losses
    saved_bytes: int  # what autograd saves of a micro-batch for its backward pass, without weights and inputs
    flops: int  # of a micro-batch's loss, backward pass included, without the products inside attention


def count_cost(module_type: Any, architecture: Any, config: PreTrainedConfig, recipe: Recipe) -> DrafterCost:
    """Count a drafter's cost on fake tensors."""
    with FakeTensorMode(), torch.device("cpu"):
        module = module_type(config, architecture)
        batch, flat_P = empty_batch(module.reads, config, recipe)
        given = [*module.parameters(), *module.buffers(), *batch.embed.parameters(), *batch.lm_head.parameters()]
        saved = SavedTensorCounter([*given, flat_P, batch.tokens_BT, batch.answer_BT, batch.features_BTD])

        with FlopCounterMode(display=False) as flops:
            with saved_tensors_hooks(saved.pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
                loss = module.loss(batch, flat_P)
            loss.backward()

        muon, adam = ([p for group in optimizer.param_groups for p in group["params"]] for optimizer in loop.optimizers(module, 1.0))
        return DrafterCost(
            parameters=sum(p.numel() for p in module.parameters()),
            reads=len(module.reads),
            optimizer_bytes=FP32_BYTES * (sum(p.numel() for p in muon) + 2 * sum(p.numel() for p in adam)),
            step_flops=NEWTON_SCHULZ * sum(map(_iteration_flops, muon)),
            saved_bytes=saved.bytes,
            flops=flops.get_total_flops(),
        )


def empty_batch(reads: tuple[int, ...], config: PreTrainedConfig, recipe: Recipe) -> tuple[Batch, Tensor]:
    """Return a micro-batch of zeros, and positions to learn from."""
    vocab, width, shape = config.vocab_size, config.hidden_size, (recipe.rows, recipe.seq)
    embed, lm_head = nn.Embedding(vocab, width).requires_grad_(False), nn.Linear(width, vocab, bias=False).requires_grad_(False)
    tokens_BT, features_BTD = torch.zeros(shape, dtype=torch.long), torch.zeros(*shape, width)
    deep_BTD = torch.zeros(*shape, width * len(reads)) if reads else None
    batch = Batch(tokens_BT, features_BTD, tokens_BT.bool(), embed, lm_head, deep_BTD)
    return batch, torch.zeros(recipe.positions, dtype=torch.long)


class SavedTensorCounter:
    """A counter of the memory that autograd saves: each storage once, without the storages of ``given`` tensors."""

    def __init__(self, given: list[Tensor]):
        self._seen = {tensor.untyped_storage()._cdata for tensor in given}
        self._held: list[Tensor] = []  # a freed storage's address could be reused by another
        self.bytes = 0

    def pack(self, tensor: Tensor) -> Tensor:
        """Count a tensor that autograd saves, and return it; a hook for ``saved_tensors_hooks``."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._held.append(tensor)
            self.bytes += storage.nbytes()
        return tensor


def _iteration_flops(matrix: Tensor) -> int:
    """Return the FLOPs of the three products of a Newton-Schulz iteration."""
    short, long = sorted(matrix.shape)
    return 4 * short * short * long + 2 * short**3


def measure_device(device: str) -> DeviceRates:
    """Measure a device's rates; the best of three tries."""
    side, size = SIZES["cpu" if device == "cpu" else "cuda"]
    matrix = torch.ones(side, side, dtype=torch.bfloat16, device=device)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    return DeviceRates(2 * side**3 / _seconds(lambda: matrix @ matrix, device), 2 * size / _seconds(source.clone, device))


def _seconds(work: Callable[[], object], device: str) -> float:
    """Return the shortest time of three calls, after one to warm up."""
    times = []
    for _ in range(4):
        began = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[1:])
