"""The trainer that all drafters share: on a frozen target, from the same data and the same token budget.

A training has two phases: first the corpus as it is, then text that the target itself generated.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from methods.core import weights
from methods.core.errors import UserError
from methods.core.training import Batch, DrafterModule
from specbench import targets
from specbench.targets import placement
from specbench.train import drafter_data, loop
from specbench.train.architecture import lookahead_of, resolve_drafter, with_defaults
from specbench.train.data import corpus
from specbench.train.distributed import World, join_world
from specbench.train.drafter_data import TrainingBatches, check_context
from specbench.train.recipe import Job
from specbench.util import files
from specbench.util.terminal import Console

EVALUATIONS = 12  # in a training
RANKS = 8  # of a drafter's guesses at each level: as many as static trees may use
POSITIONS = 512  # of a batch on which acceptance is measured, at most


def train(job: Job, console: Console) -> None:
    """Train a drafter and write its weights; the same command resumes. Every process of a world calls this alike.

    Raises UserError for targets without training text: cost-matched ones (train on the small one inside)
    and those without a chat template.
    """
    code, architecture = resolve_drafter(job)
    with join_world(job.device) as (world, device):
        console = console if world.is_leader else Console(quiet=True)
        log = TensorBoardLog(job.log_dir if world.is_leader else None)
        loaded = _load_target(job, device, world)
        architecture = with_defaults(architecture, job.options, loaded.model.config.vocab_size)
        check_context(job.recipe, loaded.model.config, lookahead_of(code, architecture, loaded.model.config))
        files.make_folder(job.out.parent)
        files.check_writable(job.out, inputs=(job.source, job.target))

        try:
            _train(job, code, architecture, loaded, world, log, console)
        except torch.OutOfMemoryError:
            raise UserError(
                f"training {job.kind} on {job.target} does not fit the memory of {device}; lower --rows or --seq, or keep the target's "
                "features on disk, --cache-features (--estimate tells what takes how much)"
            ) from None
        log.close()


def target_dtype(device: str) -> str:
    """Return the frozen target's dtype: fp32 on a CPU, where targets are small, and half precision on a GPU."""
    return "fp32" if device == "cpu" else targets.default_dtype(device)


def _load_target(job: Job, device: str, world: World) -> targets.Loaded:
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
        stops=job.stop,
    )
    if job.device_map:
        placement.add_hooks(loaded.model)
    return loaded


def _train(
    job: Job, code: ModuleType, architecture: Any, loaded: targets.Loaded, world: World, log: "TensorBoardLog", console: Console
) -> None:
    recipe, model = job.recipe, loaded.model
    settings = recipe.determining_settings(world.size)
    data = {"target": loaded.weights_sha256, "corpus": corpus.sha256(job.source)}
    folder = job.work / f"texts-{loop.settings_hash({**data, 'template': loaded.chat.sha256})}"
    windows = drafter_data.load_windows(job, loaded, folder, world, console)

    torch.manual_seed(0)
    module = code.Module(model.config, architecture).to(model.device)
    if architecture.vocabulary:
        module.choose_vocabulary(drafter_data.count_answer_tokens(windows, model.config.vocab_size))
    module.start_from(model.get_output_embeddings(), model.base_model.get_parameter("norm.weight"))

    coverage: dict[str, float] = {}
    if world.is_leader and module.tokens_U is not None:
        coverage = drafter_data.held_out_coverage(job, loaded, folder, module.tokens_U)
        console.print(f"draft vocabulary of {architecture.vocabulary:,} tokens: {drafter_data.coverage_text(coverage)} of held-out answers")

    held_out = drafter_data.held_out_batches(loaded, windows["held_out"], recipe.rows, module.reads)
    phases = drafter_data.training_phases(job, loaded, windows, module.reads, folder, world, console)
    micro_batches = recipe.micro_batches(world.size)
    batches = TrainingBatches(model, phases, micro_batches=micro_batches, recipe=recipe, lookahead=module.lookahead)
    steps = sum(phase.steps for phase in phases)

    def evaluate(step: int) -> str:
        accuracy = rank_accuracy(module, held_out, recipe.positions)
        log.write(step, {f"held-out acceptance/level {level}": ranks[0] for level, ranks in enumerate(accuracy, start=1)})
        return _acceptance_line(accuracy)

    loop.fit(
        module,
        loop.optimizers(module, recipe.lr),
        _losses(module, batches, micro_batches, world, model.device),
        steps=steps,
        tokens_per_step=recipe.step_tokens(world.size),
        state_file=job.work / f"{job.kind}-{loop.settings_hash({**data, **asdict(architecture), **settings})}.pt",
        evaluate=evaluate,
        evaluate_every=max(1, steps // EVALUATIONS),
        schedule=recipe.schedule,
        console=console,
        world=world,
        log=log.write,
    )
    if world.is_leader:
        facts = {"target_sha256": data["target"], "tokens": recipe.tokens, "lr": recipe.lr, "options": asdict(architecture)}
        facts |= {"corpus_sha256": data["corpus"], "template_sha256": loaded.chat.sha256, "recipe": settings, "coverage": coverage}
        with files.atomic_write(job.out) as partial:
            weights.save(partial, job.kind, module, architecture, rank_accuracy(module, held_out, recipe.positions), facts)
        console.print(f"wrote {job.out}", soft_wrap=True)


@torch.no_grad()
def rank_accuracy(module: DrafterModule, batches: list[Batch], at_most: int = POSITIONS) -> weights.RankAccuracy:
    """Measure how often the guess of each rank at each level is the target's choice, given all earlier tokens.

    A choice outside the draft vocabulary is a miss.
    """
    most, tokens_U, levels = module.lookahead - 1, module.tokens_U, 0
    hits, seen = torch.zeros(most, RANKS, dtype=torch.float64), torch.zeros(most, 1, dtype=torch.float64)
    module.eval()

    for batch in batches:
        torch.manual_seed(0)
        flat_P = batch.positions(at_most, module.lookahead)
        low_precision = next(batch.lm_head.parameters()).dtype != torch.float32
        with torch.autocast(flat_P.device.type, torch.bfloat16, enabled=low_precision):
            for i, level in enumerate(module.levels(batch, flat_P, most)):
                counts_P = batch.counts_at(flat_P + i + 1)
                best_PK = level.logits_PU.topk(RANKS).indices
                guess_PK = best_PK if tokens_U is None else tokens_U[best_PK]
                right_PK = (guess_PK == batch.likeliest_at(flat_P + i + 1)[:, None])[counts_P]
                hits[i] += right_PK.double().sum(dim=0).cpu()
                seen[i] += len(right_PK)
                levels = max(levels, i + 1)

    module.train()
    return tuple(tuple(round(p, 5) for p in row) for row in (hits / seen.clamp(min=1))[:levels].tolist())


def _acceptance_line(accuracy: weights.RankAccuracy) -> str:
    """Return the progress line of an evaluation: rank-1 acceptance by level, and the MAT of a chain of these."""
    first = [row[0] for row in accuracy]
    chain_mat = 1 + sum(np.cumprod(first))
    return "held-out acceptance by level " + " ".join(f"{p:.3f}" for p in first) + f"  chain MAT {chain_mat:.2f}"


class _LossModule(nn.Module):
    """A drafter's loss as a module's forward pass, which DistributedDataParallel needs."""

    def __init__(self, module: Any):
        super().__init__()
        self.module = module

    def forward(self, batch: Batch) -> Tensor:
        loss: Tensor = self.module.loss(batch, batch.chosen_P)
        return loss


def _losses(
    module: nn.Module, batches: TrainingBatches, micro_batches: int, world: World, device: torch.device
) -> Callable[[int], Iterator[Tensor]]:
    """Return a function of the step that yields the losses of this process' micro-batches: every ``world.size``-th one."""
    parallel, mine = world.parallel(_LossModule(module)), range(world.rank, micro_batches, world.size)

    def losses_at(step: int) -> Iterator[Tensor]:
        totals_K = batches.totals(step)
        for index in mine:
            batch = batches.batch(step, index, totals_K)
            with world.accumulating(parallel, index != mine[-1]):
                with torch.autocast(device.type, torch.bfloat16):
                    loss = parallel(batch)
                yield loss

    return losses_at


class TensorBoardLog:
    """The numbers of a training, written for TensorBoard into ``folder``, or not at all.

    The optional package ``tensorboard`` is imported only here.
    """

    def __init__(self, folder: Path | None):
        self._writer = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UserError("--log-dir needs the package tensorboard; install it with: pip install 'specbench[train]'") from None
        self._writer = SummaryWriter(str(files.make_folder(folder)))

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write the values of a step, by name."""
        if self._writer:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write everything that is buffered."""
        if self._writer:
            self._writer.close()
