"""The shared trainer: any drafter with a module, on a frozen target, from the same data and the same token budget.

Two phases: first the corpus as it is, then text the target itself generated.
"""

import importlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, fields, replace
from types import ModuleType
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from methods.core import weights
from methods.core.errors import UserError, unknown
from methods.core.training import Batch
from methods.registry import METHODS, parse_option
from specbench import targets
from specbench.targets import placement
from specbench.targets.shapes import SHAPES
from specbench.train import loop
from specbench.train.acceptance import line, rank_accuracy
from specbench.train.batches import Lessons
from specbench.train.data import corpus, material
from specbench.train.distributed import World, joined
from specbench.train.recipe import Job
from specbench.train.tensorboard import Board
from specbench.util import files

EVALUATIONS = 12

KINDS = sorted({row.weights for row in METHODS.values() if row.weights and not row.model})


def train(job: Job, console: Console) -> None:
    """Train the weights of a job and write them; the same command resumes. In every process of a world alike.

    Raises UserError for targets it cannot make training text for: cost-matched ones (train on the small one inside) and
    those without a chat template.
    """
    code, architecture = drafter_of(job)
    with joined(job.device) as (world, device):
        console = console if world.leads else Console(quiet=True)
        board = Board(job.log_dir if world.leads else None)
        loaded = _target(job, device, world)
        material.check_context(job.recipe, loaded.model.config.max_position_embeddings)
        files.writable(job.out)
        try:
            _train(job, code, architecture, loaded, world, board, console)
        except torch.OutOfMemoryError:
            raise UserError(
                f"training {job.kind} on {job.target} does not fit the memory of {device}; lower --rows or --seq, or keep the target's "
                "features on disk, --cache-features (--estimate tells what takes how much)"
            ) from None
        board.close()


def drafter_of(job: Job) -> tuple[ModuleType, Any]:
    """The code and the architecture of the weights to train. Raises UserError for what cannot be trained."""
    if job.kind not in KINDS:
        raise unknown("trainable method", job.kind, [*KINDS, "target"])
    if job.target in SHAPES:
        raise UserError(
            f"{job.target} is a cost-matched target, whose drafters are those of {targets.SHIPPED}; pass --target {targets.SHIPPED}"
        )
    code = importlib.import_module(next(row.module for row in METHODS.values() if row.weights == job.kind))
    return code, _architecture(code.Architecture(), job.kind, job.options)


def target_dtype(device: str) -> str:
    """Of the frozen target: fp32 on a CPU, whose small targets cost little, and half the bytes on a GPU."""
    return "fp32" if device == "cpu" else targets.default_dtype(device)


def _target(job: Job, device: str, world: World) -> targets.Loaded:
    if job.device_map and world.size > 1:
        raise UserError("--device-map spreads the target over the GPUs of one process; start one, or leave --device-map out")
    loaded = targets.load(
        job.target,
        device=device,
        dtype=target_dtype(device),
        attention="sdpa",
        revision=job.revision,
        template=job.template,
        system_prompt=job.system_prompt,
        thinking=job.thinking,
        device_map=job.device_map,
    )
    if job.device_map:
        placement.hook(loaded.model)
    return loaded


def _train(job: Job, code: ModuleType, architecture: Any, loaded: targets.Loaded, world: World, board: Board, console: Console) -> None:
    recipe, model = job.recipe, loaded.model
    data = {"target": loaded.weights_sha256, "corpus": corpus.sha256(job.source)}
    folder = job.work / f"texts-{loop.identity({**data, 'template': loaded.chat.sha256})}"
    windows = material.read(job, loaded, folder, world, console)
    torch.manual_seed(0)
    module = code.Module(model.config, architecture).to(model.device)
    if hasattr(module, "choose_vocabulary"):
        module.choose_vocabulary(material.answer_counts(windows, model.config.vocab_size))
    module.start_from(model.get_output_embeddings(), model.base_model.get_parameter("norm.weight"))
    held_out = material.held_out(loaded, windows["held_out"], recipe.rows, module.reads)
    phases = material.phases(job, loaded, windows, module.reads, folder, world, console)
    lessons = Lessons(model, phases, parts=recipe.parts(world.size), rows=recipe.rows, at_most=recipe.positions)
    steps = sum(phase.steps for phase in phases)

    def evaluate(step: int) -> str:
        accuracy = rank_accuracy(module, held_out, recipe.positions)
        board.write(step, {f"held-out acceptance/level {level}": ranks[0] for level, ranks in enumerate(accuracy, start=1)})
        return line(accuracy)

    loop.fit(
        module,
        loop.optimizers(module, recipe.lr),
        _losses(module, lessons, recipe.parts(world.size), world, model.device),
        steps=steps,
        tokens_per_step=recipe.step_tokens(world.size),
        state_file=job.work / f"{job.kind}-{loop.identity({**data, **asdict(architecture), **recipe.facts(world.size)})}.pt",
        evaluate=evaluate,
        evaluate_every=max(1, steps // EVALUATIONS),
        schedule=recipe.schedule,
        console=console,
        world=world,
        log=board.write,
    )
    if world.leads:
        facts = {"target_sha256": data["target"], "tokens": recipe.tokens, "lr": recipe.lr, "options": asdict(architecture)}
        facts |= {"corpus_sha256": data["corpus"], "template_sha256": loaded.chat.sha256, "recipe": recipe.facts(world.size)}
        weights.save(job.out, job.kind, module, architecture, rank_accuracy(module, held_out, recipe.positions), facts)
        console.print(f"wrote {job.out}", soft_wrap=True)


class _Loss(nn.Module):
    """A drafter's loss as the call that a parallel module watches."""

    def __init__(self, module: Any):
        super().__init__()
        self.module = module

    def forward(self, batch: Batch) -> Tensor:
        loss: Tensor = self.module.loss(batch, batch.chosen_P)
        return loss


def _losses(module: nn.Module, lessons: Lessons, parts: int, world: World, device: torch.device) -> Callable[[int], Iterator[Tensor]]:
    """This process' parts of a step: every ``world.size``-th of them."""
    parallel, mine = world.parallel(_Loss(module)), range(world.rank, parts, world.size)

    def losses_at(step: int) -> Iterator[Tensor]:
        totals_K = lessons.totals(step)
        for part in mine:
            batch = lessons.batch(step, part, totals_K)
            with world.apart(parallel, part != mine[-1]):
                with torch.autocast(device.type, torch.bfloat16):
                    loss = parallel(batch)
                yield loss

    return losses_at


def _architecture(default: Any, kind: str, options: dict[str, str]) -> Any:
    known = {each.name: each.type for each in fields(default)}
    for key in options:
        if key not in known:
            raise unknown(f"training option of {kind}", key, known) if known else UserError(f"{kind} has no training options, got {key!r}")
    return replace(default, **{key: parse_option(kind, key, text, known[key]) for key, text in options.items()})
