"""What a training will take, before anything is loaded: from the target's config.json and the drafter's own code.

The drafter's loss is run once on tensors that have shapes and no data, which tells what it keeps and computes whatever its kind.
"""

import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from methods.core.errors import UserError
from methods.core.kv_cache import head_dim
from methods.core.training import Batch
from specbench import targets
from specbench.train import generate, loop
from specbench.train.drafter import drafter_of, target_dtype
from specbench.train.features import STORED
from specbench.train.material import HELD_OUT_BATCHES, HELD_OUT_PER_CATEGORY, MAX_PROMPT
from specbench.train.recipe import Job, Recipe

WEIGHT = 4  # bytes of a drafter's weight and of every number kept about it: training is in fp32
EXPORTED = 2  # of a weight on disk
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
    optimizer: int  # bytes of its state
    step_flops: int  # of an optimiser's step
    kept: int  # bytes autograd keeps of a part until its backward pass, weights and inputs left out
    flops: int  # of a part, backward pass included; attention's own products left out


class Estimate:
    """Of one process; the docstring of each figure is its formula."""

    def __init__(self, config: PreTrainedConfig, drafter: Drafter, reads: int, recipe: Recipe, processes: int, dtype: torch.dtype):
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
        self.parameters = sum(p.numel() for p in model.parameters())
        self.read = sum(p.numel() for p in model.base_model.get_submodule("layers").parameters())
        self._config, self._drafter, self._recipe, self._bytes = config, drafter, recipe, dtype.itemsize
        self._steps, self._feature = sum(recipe.steps(processes)), config.hidden_size * (1 + reads)
        self._part = recipe.seq * recipe.rows

    def target(self) -> int:
        """the target's parameters x the bytes of its dtype"""
        return self.parameters * self._bytes

    def weights(self) -> int:
        """the drafter's parameters x 4, and as much for gradients"""
        return 2 * WEIGHT * self._drafter.parameters

    def optimizer(self) -> int:
        """4 bytes for each number of a matrix between hidden states (Muon), 8 for any other (AdamW)"""
        return self._drafter.optimizer

    def activations(self) -> int:
        """what autograd keeps of one part, counted on tensors without data"""
        return self._drafter.kept

    def features(self) -> int:
        """width x (1 + layers read) x 4 x tokens of a part, and of 8 held-out parts"""
        return self._feature * WEIGHT * self._part * (1 + HELD_OUT_BATCHES)

    def forward(self) -> int:
        """of one layer of the target: tokens of a part x (4 widths + 3 of its MLP) x the bytes of its dtype"""
        return self._part * (4 * self._config.hidden_size + 3 * self._config.intermediate_size) * self._bytes

    def answers(self) -> int:
        """keys and values of 64 answers: 2 x layers x key heads x head width x (longest prompt + answer) x 64 x bytes of the dtype"""
        config, longest = self._config, MAX_PROMPT + self._recipe.max_new_tokens
        a_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim(config) * self._bytes
        return a_token * longest * generate.BATCH

    def memory(self) -> int:
        """target + the larger of the answers' keys and values and all that training holds"""
        training = self.weights() + self.optimizer() + self.activations() + self.features() + self.forward()
        return self.target() + max(training, self.answers())

    def text(self) -> int:
        """tokens of the budget x (2 or 4 bytes and 1), if no text is read twice"""
        return self._recipe.tokens * ((2 if self._config.vocab_size <= 2**16 else 4) + 1)

    def cache(self) -> int:
        """tokens of the budget x width x (1 + layers read) x 2, if no text is read twice; with --cache-features"""
        return self._recipe.tokens * self._feature * STORED.itemsize

    def checkpoint(self) -> int:
        """2 x (drafter's parameters x 4 + the optimiser's): the last one is there until the next is whole"""
        return 2 * (WEIGHT * self._drafter.parameters + self._drafter.optimizer)

    def export(self) -> int:
        """the drafter's parameters x 2"""
        return EXPORTED * self._drafter.parameters

    def reading(self, rates: Rates) -> float:
        """2 x parameters of the target's layers x tokens a process reads / FLOPs a second"""
        return 2 * self.read * self._steps * self._recipe.accumulate * self._part / rates.flops

    def learning(self, rates: Rates) -> float:
        """(FLOPs of a part's loss x parts + Muon's 5 x (4 m m n + 2 m m m) a step and matrix m x n) / FLOPs a second"""
        each = self._drafter.flops * self._recipe.accumulate + self._drafter.step_flops
        return each * self._steps / rates.flops

    def writing(self, rates: Rates) -> float:
        """batches of 64 prompts x longest answer x the target's bytes / bytes a second, for each category of the data, in one process"""
        prompts = (HELD_OUT_PER_CATEGORY, self._recipe.regenerate)
        batches = sum(math.ceil(count / generate.BATCH) for count in prompts)
        return batches * self._recipe.max_new_tokens * self.target() / rates.bytes


def estimate(job: Job, console: Console) -> Estimate:
    """Print what a job will take of each process; loads nothing. Raises UserError for what could not be trained."""
    code, architecture = drafter_of(job)
    targets.check_device(job.device)
    config = _config(job.target)
    processes, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    drafter, reads = count(code.Module, architecture, config, job.recipe)
    found = Estimate(config, drafter, reads, job.recipe, processes, targets.DTYPES[target_dtype(job.device)])
    if rank == 0:
        rates = measure(job.device)
        console.print(f"{job.target}: {found.parameters:,} parameters, {job.kind}: {drafter.parameters:,}; {processes} processes, in each:")
        console.print(_table(found, rates))
        console.print(
            f"measured here, on {job.device}: {rates.flops / 1e12:,.2f} TFLOP/s, {rates.bytes / 1e9:,.1f} GB/s; training reaches a part"
        )
    return found


def count(module_type: Any, architecture: Any, config: PreTrainedConfig, recipe: Recipe) -> tuple[Drafter, int]:
    """A drafter's sizes and work, and how many of the target's layers it reads, on tensors without data."""
    with FakeTensorMode(), torch.device("cpu"):
        module = module_type(config, architecture)
        vocab, width = config.vocab_size, config.hidden_size
        embed, lm_head = nn.Embedding(vocab, width), nn.Linear(width, vocab, bias=False).requires_grad_(False)
        embed.requires_grad_(False)
        tokens_BT = torch.zeros(recipe.rows, recipe.seq, dtype=torch.long)
        features_BTD = torch.zeros(recipe.rows, recipe.seq, width)
        deep_BTD = torch.zeros(recipe.rows, recipe.seq, width * len(module.reads)) if module.reads else None
        batch = Batch(tokens_BT, features_BTD, tokens_BT.bool(), embed, lm_head, deep_BTD)
        flat_P = torch.zeros(recipe.positions, dtype=torch.long)
        given = [*module.parameters(), *module.buffers(), *embed.parameters(), *lm_head.parameters(), tokens_BT, features_BTD]
        kept = _Kept([*given, batch.answer_BT, flat_P, *([] if deep_BTD is None else [deep_BTD])])
        with FlopCounterMode(display=False) as flops:
            with saved_tensors_hooks(kept.pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
                loss = module.loss(batch, flat_P)
            loss.backward()
        muon, adam = (_numbers(each) for each in loop.optimizers(module, 1.0))
        parameters = sum(p.numel() for p in module.parameters())
        steps = sum(NEWTON_SCHULZ * _products(p) for group in loop.optimizers(module, 1.0)[0].param_groups for p in group["params"])
        return Drafter(parameters, WEIGHT * (muon + 2 * adam), steps, kept.bytes, flops.get_total_flops()), len(module.reads)


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


def _numbers(optimizer: torch.optim.Optimizer) -> int:
    return sum(p.numel() for group in optimizer.param_groups for p in group["params"])


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


def _config(name: str) -> PreTrainedConfig:
    where = targets.shipped_folder() if name == targets.SHIPPED else name
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(where)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the config.json of target {name} cannot be read ({reason}); pass a folder or an id that has one") from None
    return config


def _table(found: Estimate, rates: Rates) -> Table:
    table = Table("", "", "formula", title="Estimate")
    parts: dict[str, list[tuple[str, Callable[..., float]]]] = {
        "memory": [
            ("target", found.target),
            ("drafter and gradients", found.weights),
            ("optimiser", found.optimizer),
            ("activations", found.activations),
            ("features", found.features),
            ("target's forward pass", found.forward),
            ("answers being written", found.answers),
            ("memory, all", found.memory),
        ],
        "disk": [("text", found.text), ("features", found.cache), ("checkpoint", found.checkpoint), ("drafter", found.export)],
        "time": [("target reads", found.reading), ("drafter learns", found.learning), ("target answers", found.writing)],
    }
    for part, rows in parts.items():
        for name, figure in rows:
            amount = _duration(figure(rates)) if part == "time" else f"{figure() / 2**30:,.2f} GiB"
            table.add_row(f"{part}: {name}", amount, figure.__doc__)
        table.add_section()
    return table


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:,.1f} min"
