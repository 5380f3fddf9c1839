"""The training loop of the target and of every drafter, with its optimizers, schedule and checkpoints."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from methods.core.errors import UserError
from specbench.train.distributed import SINGLE_PROCESS, World
from specbench.util import files
from specbench.util.terminal import Console

CHECKPOINT_EVERY_S = 120.0
SAVE_TIME_FACTOR = 20.0  # training time between checkpoints, in multiples of the time to save one
SCHEDULES = ("wsd", "cosine")  # warm-up, stable, decay; or warm-up and cosine decay
VOCABULARY = ("embed_tokens.weight", "lm_head.weight", "out.weight")


def optimizers(module: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Return Muon for matrices between hidden states, and AdamW for vocabulary matrices, norms and biases."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        (matrices if parameter.ndim == 2 and not name.endswith(VOCABULARY) else others).append(parameter)
    muon = torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)]


def settings_hash(facts: dict[str, Any]) -> str:
    """Return a short hash of everything that some work depends on, to name the files that it can be resumed from."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def rate_factor(step: int, steps: int, schedule: str = "wsd", warmup: float = 0.02, decay: float = 0.4) -> float:
    """Return the factor on every learning rate at a step.

    After linear warm-up it is constant and then decays linearly to a tenth ("wsd"), or follows a cosine
    to 0 ("cosine").
    """
    rise = min(1.0, (step + 1) / max(1.0, warmup * steps))
    if schedule == "cosine":
        return rise * (0.5 + 0.5 * math.cos(math.pi * step / steps))
    fall = min(1.0, (steps - step) / max(1.0, decay * steps))
    return rise * (0.1 + 0.9 * fall)


def fit(
    module: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    losses_at: Callable[[int], Iterable[Tensor]],
    *,
    steps: int,
    tokens_per_step: int,
    state_file: Path,
    evaluate: Callable[[int], str],
    evaluate_every: int,
    schedule: str = "wsd",
    clip: float = 1.0,
    console: Console,
    world: World = SINGLE_PROCESS,
    log: Callable[[int, dict[str, float]], None] = lambda step, values: None,
) -> None:
    """Minimise the sum of ``losses_at(step)`` for ``steps`` steps, resuming from ``state_file`` exactly.

    ``losses_at`` yields the losses of this process' micro-batches. Each is backpropagated before the next
    is computed, and gradients are summed over the processes (``World.parallel``). The losses must be a
    pure function of the step, data order included, so that a resumed run equals an uninterrupted one.
    ``evaluate(step)`` returns the line that is printed every ``evaluate_every`` steps and at the end;
    ``log`` receives the numbers of each step. Only the leader calls these two.
    """
    base_rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    start = restore_state(module, optimizers, state_file)
    world.wait()  # until all have read the file, since the leader overwrites it

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("starting", total=steps, completed=start)
        checkpoint_after, last_saved = CHECKPOINT_EVERY_S, time.monotonic()
        began = last_saved

        for step in range(start, steps):
            factor = rate_factor(step, steps, schedule)
            for optimizer, rates in zip(optimizers, base_rates, strict=True):
                for group, lr in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = lr * factor
            value = train_step(module, optimizers, losses_at, step, clip, world)
            speed = (step + 1 - start) * tokens_per_step / (time.monotonic() - began)
            progress.update(bar, advance=1, description=f"loss {value:.3f}  {speed:,.0f} tokens/s")

            if not world.is_leader:
                continue
            log(step + 1, {"loss": value, "rate": factor, "tokens per second": speed})
            if (step + 1) % evaluate_every == 0 or step + 1 == steps:
                progress.console.print(f"step {step + 1}/{steps}  loss {value:.4f}  {speed:,.0f} tokens/s  {evaluate(step + 1)}")
            if (now := time.monotonic()) - last_saved > checkpoint_after or step + 1 == steps:
                save_state(module, optimizers, step + 1, state_file)
                last_saved = time.monotonic()
                checkpoint_after = max(CHECKPOINT_EVERY_S, SAVE_TIME_FACTOR * (last_saved - now))
    world.wait()


def train_step(
    module: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    losses_at: Callable[[int], Iterable[Tensor]],
    step: int,
    clip: float,
    world: World,
) -> float:
    """Take one optimizer step and return its loss. Raises UserError for a loss that is not finite."""
    torch.manual_seed(step)  # random numbers in the loss depend on the step, not on the process
    total = torch.zeros((), device=next(module.parameters()).device)
    for loss in losses_at(step):
        (loss * world.size).backward()  # a parallel module averages over the processes
        total += loss.detach()
    if not math.isfinite(value := world.sum(total).item()):
        raise UserError(f"the loss is {value} at step {step}; lower --lr, then train from the beginning")

    nn.utils.clip_grad_norm_(module.parameters(), clip)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return value


def save_state(module: nn.Module, optimizers: list[torch.optim.Optimizer], step: int, path: Path) -> None:
    """Write a checkpoint after ``step`` steps."""
    state = {"step": step, "module": module.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
    with files.atomic_write(path) as partial:
        torch.save(state, partial)


def restore_state(module: nn.Module, optimizers: list[torch.optim.Optimizer], path: Path) -> int:
    """Restore a checkpoint and return its number of steps; 0 without one."""
    if not path.is_file():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)  # load_state_dict moves it to the parameters' device
    module.load_state_dict(state["module"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])
