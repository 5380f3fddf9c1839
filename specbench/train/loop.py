"""The one training loop: the target and every drafter run through it."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from methods.core.errors import UserError
from specbench.train.distributed import ALONE, World
from specbench.util import files

CHECKPOINT_EVERY_S = 120.0
SAVING_SHARE = 20.0  # a checkpoint may take a twentieth of the time
SCHEDULES = ("wsd", "cosine")  # warm-up, stable, decay; or warm-up and a cosine
VOCABULARY = ("embed_tokens.weight", "lm_head.weight", "out.weight")


def optimizers(module: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for matrices between hidden states, AdamW for everything else: vocabulary matrices, norms, biases."""
    inner: list[nn.Parameter] = []
    outer: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        (inner if parameter.ndim == 2 and not name.endswith(VOCABULARY) else outer).append(parameter)
    muon = torch.optim.Muon(inner, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(outer, lr=lr, betas=(0.9, 0.95), weight_decay=0.0)]


def identity(facts: dict[str, Any]) -> str:
    """A short name for what some work depends on, so that nothing is resumed from or reused for anything else."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def rate(step: int, steps: int, schedule: str = "wsd", warmup: float = 0.02, decay: float = 0.4) -> float:
    """The factor on every learning rate at a step: after warm-up either a plateau and linear decay to a tenth, or a cosine to 0."""
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
    world: World = ALONE,
    log: Callable[[int, dict[str, float]], None] = lambda step, values: None,
) -> None:
    """Minimise the sum of ``losses_at(step)`` for ``steps`` steps; resumes from ``state_file`` exactly.

    Each loss is backpropagated before the next is asked for; in a world of several processes they are this one's, and their
    gradients are summed by then (``World.parallel``). They must be a pure function of the step, data order included: that is
    what makes a resumed run equal an undisturbed one. ``evaluate(step)`` returns the line that is printed every
    ``evaluate_every`` steps and at the end; ``log`` is told each step's numbers. Both are the leader's alone.
    """
    base = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    start = _restore(module, optimizers, state_file)
    world.wait()  # the leader writes that file again
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("starting", total=steps, completed=start)
        pause, saved = CHECKPOINT_EVERY_S, time.monotonic()
        began = saved
        for step in range(start, steps):
            factor = rate(step, steps, schedule)
            for optimizer, rates in zip(optimizers, base, strict=True):
                for group, lr in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = lr * factor
            value = _advance(module, optimizers, losses_at, step, clip, world)
            speed = (step + 1 - start) * tokens_per_step / (time.monotonic() - began)
            progress.update(bar, advance=1, description=f"loss {value:.3f}  {speed:,.0f} tokens/s")
            if not world.leads:
                continue
            log(step + 1, {"loss": value, "rate": factor, "tokens per second": speed})
            if (step + 1) % evaluate_every == 0 or step + 1 == steps:
                progress.console.print(f"step {step + 1}/{steps}  loss {value:.4f}  {speed:,.0f} tokens/s  {evaluate(step + 1)}")
            if (now := time.monotonic()) - saved > pause or step + 1 == steps:
                save_state(module, optimizers, step + 1, state_file)
                saved = time.monotonic()
                pause = max(CHECKPOINT_EVERY_S, SAVING_SHARE * (saved - now))
    world.wait()


def _advance(
    module: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    losses_at: Callable[[int], Iterable[Tensor]],
    step: int,
    clip: float,
    world: World,
) -> float:
    """One step; its loss."""
    torch.manual_seed(step)  # whatever noise the loss draws belongs to the step, not to the process
    total = torch.zeros((), device=next(module.parameters()).device)
    for loss in losses_at(step):
        (loss * world.size).backward()  # what a parallel module exchanges is averaged
        total += loss.detach()
    if not math.isfinite(value := world.sum(total).item()):
        raise UserError(f"the loss is {value} at step {step}; lower --lr, then train from the beginning")
    nn.utils.clip_grad_norm_(module.parameters(), clip)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return value


def save_state(module: nn.Module, optimizers: list[torch.optim.Optimizer], step: int, path: Path) -> None:
    state = {"step": step, "module": module.state_dict(), "optimizers": [o.state_dict() for o in optimizers]}
    with files.whole(path) as partial:
        torch.save(state, partial)


def _restore(module: nn.Module, optimizers: list[torch.optim.Optimizer], path: Path) -> int:
    if not path.is_file():
        return 0
    state = torch.load(path, map_location="cpu", weights_only=True)  # load_state_dict moves it to where the parameters are
    module.load_state_dict(state["module"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return int(state["step"])
