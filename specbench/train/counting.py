"""What a drafter weighs, keeps and computes in training, and how fast a device is.

The drafter's loss is run once on tensors that have shapes and no data: that tells of any kind, and loads nothing.
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

WEIGHT = 4  # bytes of a drafter's weight and of every number kept about it: training is in fp32
NEWTON_SCHULZ = 5  # iterations of Muon's, each of three products
SIZES = {"cpu": (1024, 2**26), "cuda": (8192, 2**30)}  # of the matrix multiplied and the bytes copied to measure a device


@dataclass(frozen=True)
class Rates:
    """Of a device, by a short matrix product in bf16 and a short copy: FLOPs and bytes a second. What training reaches is less."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Drafter:
    """Counted, not loaded."""

    parameters: int
    reads: int  # layers of the target whose input it learns from
    optimizer: int  # bytes of its state
    step_flops: int  # of an optimiser's step
    kept: int  # bytes autograd keeps of a part until its backward pass, weights and inputs left out
    flops: int  # of a part, backward pass included; attention's own products left out


def count(module_type: Any, architecture: Any, config: PreTrainedConfig, recipe: Recipe) -> Drafter:
    """A drafter's sizes and work, on tensors without data."""
    with FakeTensorMode(), torch.device("cpu"):
        module = module_type(config, architecture)
        batch, flat_P = _part(module.reads, config, recipe)
        given = [*module.parameters(), *module.buffers(), *batch.embed.parameters(), *batch.lm_head.parameters()]
        kept = _Kept([*given, flat_P, batch.tokens_BT, batch.answer_BT, batch.features_BTD])
        with FlopCounterMode(display=False) as flops:
            with saved_tensors_hooks(kept.pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
                loss = module.loss(batch, flat_P)
            loss.backward()
        muon, adam = ([p for group in each.param_groups for p in group["params"]] for each in loop.optimizers(module, 1.0))
        state = WEIGHT * (sum(p.numel() for p in muon) + 2 * sum(p.numel() for p in adam))
        parameters, products = sum(p.numel() for p in module.parameters()), sum(map(_products, muon))
        return Drafter(parameters, len(module.reads), state, NEWTON_SCHULZ * products, kept.bytes, flops.get_total_flops())


def _part(reads: tuple[int, ...], config: PreTrainedConfig, recipe: Recipe) -> tuple[Batch, Tensor]:
    """A batch and the places learnt from."""
    vocab, width, shape = config.vocab_size, config.hidden_size, (recipe.rows, recipe.seq)
    embed, lm_head = nn.Embedding(vocab, width).requires_grad_(False), nn.Linear(width, vocab, bias=False).requires_grad_(False)
    tokens_BT, features_BTD = torch.zeros(shape, dtype=torch.long), torch.zeros(*shape, width)
    deep_BTD = torch.zeros(*shape, width * len(reads)) if reads else None
    batch = Batch(tokens_BT, features_BTD, tokens_BT.bool(), embed, lm_head, deep_BTD)
    return batch, torch.zeros(recipe.positions, dtype=torch.long)


class _Kept:
    """Counts the memory of what autograd saves, each piece of it once and none of what is ``given``."""

    def __init__(self, given: list[Tensor]):
        self._seen = {tensor.untyped_storage()._cdata for tensor in given}
        self._held: list[Tensor] = []  # a piece given back could come again under the same name
        self.bytes = 0

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._held.append(tensor)
            self.bytes += storage.nbytes()
        return tensor


def _products(matrix: Tensor) -> int:
    short, long = sorted(matrix.shape)
    return 4 * short * short * long + 2 * short**3


def measure(device: str) -> Rates:
    """A device's rates, the best of three tries."""
    side, size = SIZES["cpu" if device == "cpu" else "cuda"]
    matrix = torch.ones(side, side, dtype=torch.bfloat16, device=device)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    return Rates(2 * side**3 / _seconds(lambda: matrix @ matrix, device), 2 * size / _seconds(source.clone, device))


def _seconds(work: Callable[[], object], device: str) -> float:
    times = []
    for _ in range(4):
        began = time.perf_counter()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return min(times[1:])
