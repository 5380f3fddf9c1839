"""What a training will take, before anything is loaded: from the target's config.json and the drafter's own code."""

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from methods.core.errors import UserError
from methods.core.kv_cache import head_dim
from methods.core.target import refuse
from specbench import targets
from specbench.targets import checkpoint, hub
from specbench.train.counting import WEIGHT, Drafter, Rates, count, measure
from specbench.train.data import generate
from specbench.train.data.material import HELD_OUT_BATCHES, HELD_OUT_PER_CATEGORY, MAX_PROMPT, check_context
from specbench.train.drafter import drafter_of, target_dtype
from specbench.train.features import STORED
from specbench.train.recipe import Job, Recipe

EXPORTED = 2  # bytes of a weight on disk


class Estimate:
    """Of one process; the docstring of each figure is its formula."""

    def __init__(self, config: PreTrainedConfig, drafter: Drafter, recipe: Recipe, processes: int, dtype: torch.dtype):
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
        self.parameters = sum(p.numel() for p in model.parameters())
        self.read = sum(p.numel() for p in model.base_model.get_submodule("layers").parameters())
        self._config, self._drafter, self._recipe, self._bytes = config, drafter, recipe, dtype.itemsize
        self._steps, self._feature = sum(recipe.steps(processes)), config.hidden_size * (1 + drafter.reads)
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
        """the sum, without the answers' keys and values: those come before, and fewer at once where 64 do not fit"""
        training = self.weights() + self.optimizer() + self.activations() + self.features() + self.forward()
        return self.target() + training

    def text(self) -> int:
        """at most tokens of the budget x (2 or 4 bytes and 1): text that is read more than once is kept once"""
        return self._recipe.tokens * ((2 if self._config.vocab_size <= 2**16 else 4) + 1)

    def cache(self) -> int:
        """at most tokens of the budget x width x (1 + layers read) x 2: of text read more than once, once; with --cache-features"""
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
    config = _config(job.target, job.revision)
    check_context(job.recipe, config.max_position_embeddings)
    processes, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    drafter = count(code.Module, architecture, config, job.recipe)
    found = Estimate(config, drafter, job.recipe, processes, targets.DTYPES[target_dtype(job.device)])
    if rank == 0:
        rates = None if job.device.startswith("cuda") and not torch.cuda.is_available() else measure(job.device)
        console.print(
            f"{job.target}: {found.parameters:,} parameters, {job.kind}: {drafter.parameters:,}; of {processes} process(es), each:"
        )
        console.print(_table(found, rates))
        console.print(
            f"measured here, on {job.device}: {rates.flops / 1e12:,.2f} TFLOP/s, {rates.bytes / 1e9:,.1f} GB/s; training reaches a part"
            if rates
            else f"no {job.device} device is here to measure, so no times are told"
        )
    return found


def _config(name: str, revision: str | None) -> PreTrainedConfig:
    """Of a folder or, alone of all files, from the hub."""
    where = targets.shipped_folder() if name == targets.SHIPPED else hub.texts(name, revision)
    try:
        config: PreTrainedConfig = AutoConfig.from_pretrained(where, attn_implementation="sdpa", trust_remote_code=False)
    except checkpoint.BROKEN as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the config.json of target {name} cannot be read ({reason}); pass a folder or a hub id that has one") from None
    refuse(config)
    return config


def _table(found: Estimate, rates: Rates | None) -> Table:
    table = Table("", "", "formula", title="Estimate")
    parts: dict[str, list[tuple[str, Callable[..., float]]]] = {
        "memory": [
            ("target", found.target),
            ("drafter and gradients", found.weights),
            ("optimiser", found.optimizer),
            ("activations", found.activations),
            ("features", found.features),
            ("target's forward pass", found.forward),
            ("all of it", found.memory),
            ("answers being written", found.answers),
        ],
        "disk": [("text", found.text), ("features", found.cache), ("checkpoint", found.checkpoint), ("drafter", found.export)],
        "time": [("target reads", found.reading), ("drafter learns", found.learning), ("target answers", found.writing)],
    }
    for part, rows in parts.items():
        for name, figure in rows:
            if part == "time" and rates is None:
                continue
            amount = _duration(figure(rates)) if part == "time" else _size(figure())
            table.add_row(f"{part}: {name}", amount, figure.__doc__)
        table.add_section()
    return table


def _size(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:,.1f} min"
