"""An estimate of a training's memory, disk space and time, from the target's config.json and the drafter's code.

Nothing is loaded.
"""

import math
import os
from collections.abc import Callable
from typing import Any

import torch
from rich.table import Table
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from methods.core.kv_cache import head_dim
from methods.core.target import refuse
from specbench import targets
from specbench.targets import checkpoint, hub
from specbench.train.architecture import lookahead_of, resolve_drafter, with_defaults
from specbench.train.counting import FP32_BYTES, DeviceRates, DrafterCost, count_cost, measure_device
from specbench.train.data import generate
from specbench.train.drafter import target_dtype
from specbench.train.drafter_data import HELD_OUT_BATCHES, HELD_OUT_PER_CATEGORY, MAX_PROMPT, check_context
from specbench.train.features import STORED_DTYPE
from specbench.train.recipe import Job, Recipe
from specbench.util.terminal import Console

EXPORTED_BYTES = 2  # of a weight in the drafter's file


class TrainingEstimate:
    """The estimated bytes and seconds of one process. ``FIGURES`` has the formula of each."""

    def __init__(self, config: PreTrainedConfig, drafter: DrafterCost, recipe: Recipe, processes: int, dtype: torch.dtype):
        with torch.device("meta"):
            model: Any = AutoModelForCausalLM.from_config(config)
        self.parameters = sum(p.numel() for p in model.parameters())
        self._layer_parameters = sum(p.numel() for p in model.base_model.get_submodule("layers").parameters())
        self._config, self._drafter, self._recipe, self._dtype_bytes = config, drafter, recipe, dtype.itemsize
        self._steps, self._feature_width = sum(recipe.steps(processes)), config.hidden_size * (1 + drafter.reads)
        self._micro_batch_tokens = recipe.seq * recipe.rows

    def target_bytes(self) -> int:
        """Return the memory of the target's weights."""
        return self.parameters * self._dtype_bytes

    def drafter_bytes(self) -> int:
        """Return the memory of the drafter's weights and their gradients."""
        return 2 * FP32_BYTES * self._drafter.parameters

    def optimizer_bytes(self) -> int:
        """Return the memory of the optimizers' state."""
        return self._drafter.optimizer_bytes

    def activation_bytes(self) -> int:
        """Return the memory of what autograd saves of a micro-batch."""
        return self._drafter.saved_bytes

    def feature_bytes(self) -> int:
        """Return the memory of the target's features, of a micro-batch and of the held-out batches."""
        return self._feature_width * FP32_BYTES * self._micro_batch_tokens * (1 + HELD_OUT_BATCHES)

    def forward_bytes(self) -> int:
        """Return the memory of the target's forward pass."""
        return self._micro_batch_tokens * (4 * self._config.hidden_size + 3 * self._config.intermediate_size) * self._dtype_bytes

    def answer_bytes(self) -> int:
        """Return the memory of the KV cache while the target generates answers."""
        config, longest = self._config, MAX_PROMPT + self._recipe.max_new_tokens
        per_token = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim(config) * self._dtype_bytes
        return per_token * longest * generate.BATCH

    def memory_bytes(self) -> int:
        """Return the memory of the training; answers are generated before it."""
        drafter = self.drafter_bytes() + self.optimizer_bytes() + self.activation_bytes()
        return self.target_bytes() + drafter + self.feature_bytes() + self.forward_bytes()

    def text_bytes(self) -> int:
        """Return the disk space of the texts."""
        return self._recipe.tokens * ((2 if self._config.vocab_size <= 2**16 else 4) + 1)

    def cache_bytes(self) -> int:
        """Return the disk space of cached features."""
        return self._recipe.tokens * self._feature_width * STORED_DTYPE.itemsize

    def checkpoint_bytes(self) -> int:
        """Return the disk space of checkpoints while one is being saved."""
        return 2 * (FP32_BYTES * self._drafter.parameters + self._drafter.optimizer_bytes)

    def export_bytes(self) -> int:
        """Return the disk space of the trained drafter."""
        return EXPORTED_BYTES * self._drafter.parameters

    def target_read_s(self, rates: DeviceRates) -> float:
        """Return the time in which the target reads the text."""
        tokens = self._steps * self._recipe.accumulate * self._micro_batch_tokens
        return 2 * self._layer_parameters * tokens / rates.flops

    def drafter_learn_s(self, rates: DeviceRates) -> float:
        """Return the time in which the drafter learns."""
        per_step = self._drafter.flops * self._recipe.accumulate + self._drafter.step_flops
        return per_step * self._steps / rates.flops

    def answer_s(self, rates: DeviceRates) -> float:
        """Return the time in which the target generates answers, for each category of the data."""
        prompts = (HELD_OUT_PER_CATEGORY, self._recipe.regenerate)
        batches = sum(math.ceil(count / generate.BATCH) for count in prompts)
        return batches * self._recipe.max_new_tokens * self.target_bytes() / rates.bytes


# Part of the table -> rows of name, figure and the formula that is shown.
FIGURES: dict[str, list[tuple[str, Callable[..., float], str]]] = {
    "memory": [
        ("target", TrainingEstimate.target_bytes, "the target's parameters x the bytes of its dtype"),
        ("drafter and gradients", TrainingEstimate.drafter_bytes, "the drafter's parameters x 4, and as much for gradients"),
        (
            "optimiser",
            TrainingEstimate.optimizer_bytes,
            "4 bytes for each number of a matrix between hidden states (Muon), 8 for any other (AdamW)",
        ),
        ("activations", TrainingEstimate.activation_bytes, "what autograd saves of one micro-batch, counted on tensors without data"),
        (
            "features",
            TrainingEstimate.feature_bytes,
            "width x (1 + layers read) x 4 x tokens of a micro-batch, and of 8 held-out micro-batches",
        ),
        (
            "target's forward pass",
            TrainingEstimate.forward_bytes,
            "one layer of the target: tokens of a micro-batch x (4 widths + 3 of its MLP) x the bytes of its dtype",
        ),
        (
            "total",
            TrainingEstimate.memory_bytes,
            "the sum, without the answers' keys and values: answers are generated before, in smaller batches where 64 do not fit",
        ),
        (
            "target's answers",
            TrainingEstimate.answer_bytes,
            "keys and values of 64 answers: 2 x layers x key heads x head width x (longest prompt + answer) x 64 x bytes of the dtype",
        ),
    ],
    "disk": [
        (
            "text",
            TrainingEstimate.text_bytes,
            "at most tokens of the budget x (2 or 4 bytes and 1): text that is read more than once is stored once",
        ),
        (
            "features",
            TrainingEstimate.cache_bytes,
            "at most tokens of the budget x width x (1 + layers read) x 2, with --cache-features; repeated text is stored once",
        ),
        (
            "checkpoint",
            TrainingEstimate.checkpoint_bytes,
            "2 x (drafter's parameters x 4 + the optimiser's): the last one is kept until the next is complete",
        ),
        ("drafter", TrainingEstimate.export_bytes, "the drafter's parameters x 2"),
    ],
    "time": [
        (
            "target reads",
            TrainingEstimate.target_read_s,
            "2 x parameters of the target's layers x tokens a process reads / FLOPs a second",
        ),
        (
            "drafter learns",
            TrainingEstimate.drafter_learn_s,
            "(FLOPs of a micro-batch's loss x micro-batches + Muon's 5 x (4 m m n + 2 m m m) a step and matrix m x n) / FLOPs a second",
        ),
        (
            "target answers",
            TrainingEstimate.answer_s,
            "batches of 64 prompts x longest answer x the target's bytes / bytes a second, for each category of the data, in one process",
        ),
    ],
}


def print_estimate(job: Job, console: Console) -> None:
    """Print the estimate for each process of a job. Raises UserError for a job that cannot be trained."""
    code, architecture = resolve_drafter(job)
    config = load_target_config(job.target, job.revision)
    architecture = with_defaults(architecture, job.options, config.vocab_size)
    check_context(job.recipe, config, lookahead_of(code, architecture, config))
    processes, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    drafter = count_cost(code.Module, architecture, config, job.recipe)
    estimate = TrainingEstimate(config, drafter, job.recipe, processes, targets.DTYPES[target_dtype(job.device)])
    if rank != 0:
        return

    rates = None if job.device.startswith("cuda") and not torch.cuda.is_available() else measure_device(job.device)
    console.print(
        f"{job.target}: {estimate.parameters:,} parameters, {job.kind}: {drafter.parameters:,}; of {processes} process(es), each:"
    )
    console.print(_table(estimate, rates))
    console.print(
        f"measured here, on {job.device}: {rates.flops / 1e12:,.2f} TFLOP/s, {rates.bytes / 1e9:,.1f} GB/s; training reaches less"
        if rates
        else f"no {job.device} device is here to measure, so no times are estimated"
    )


def load_target_config(name: str, revision: str | None) -> PreTrainedConfig:
    """Load a target's config from its folder, or from the hub without its weights. Raises UserError where it is broken."""
    folder = targets.shipped_folder() if name == targets.SHIPPED else hub.fetch_texts(name, revision)
    with checkpoint.readable(f"the config.json of target {name}", "pass a folder or a hub id that has one"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(folder, attn_implementation="sdpa", trust_remote_code=False)
    refuse(config)
    return config


def _table(estimate: TrainingEstimate, rates: DeviceRates | None) -> Table:
    table = Table("", "", "formula", title="Estimate")
    for part, rows in FIGURES.items():
        for name, figure, formula in rows:
            if part != "time":
                table.add_row(f"{part}: {name}", _format_bytes(figure(estimate)), formula)
            elif rates is not None:
                table.add_row(f"{part}: {name}", _format_duration(figure(estimate, rates)), formula)
        table.add_section()
    return table


def _format_bytes(count: float) -> str:
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def _format_duration(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:,.1f} min"
