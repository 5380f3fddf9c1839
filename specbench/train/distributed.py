"""The processes that train together: those that accelerate launch or torchrun started, or this one alone."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from methods.core.errors import UserError

TIMEOUT = timedelta(days=1)  # one process may generate text for hours while the others wait

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes of a training, seen from the one of this ``rank``; the process of rank 0 is the leader."""

    rank: int = 0
    size: int = 1

    @property
    def is_leader(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until every process gets here."""
        if self.size > 1:
            distributed.barrier()

    def leader_first(self, make: Callable[[], T]) -> T:
        """Return ``make()``, called in the leader first, so that the others find the files it wrote."""
        if not self.is_leader:
            self.wait()
            return make()
        made = make()
        self.wait()
        return made

    def synchronized(self, look: Callable[[], T]) -> T:
        """Return ``look()``, called while no process changes anything, so that the result is the same in all."""
        self.wait()
        seen = look()
        self.wait()
        return seen

    def sum(self, value: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.size > 1:
            distributed.all_reduce(value)
        return value

    def parallel(self, module: nn.Module) -> nn.Module:
        """Wrap a module so that each backward pass averages its gradients over the processes.

        All processes start from the leader's weights.
        """
        if self.size == 1:
            return module
        device = next(module.parameters()).device
        return DistributedDataParallel(module, device_ids=None if device.type == "cpu" else [device.index])

    def accumulating(self, module: nn.Module, enabled: bool) -> AbstractContextManager[None]:
        """Return a context in which, if ``enabled``, a parallel module's gradients accumulate without being exchanged."""
        return module.no_sync() if enabled and isinstance(module, DistributedDataParallel) else nullcontext()


SINGLE_PROCESS = World()


@contextmanager
def join_world(device: str) -> Iterator[tuple[World, str]]:
    """Yield the processes that the launcher's environment describes, and this process' device.

    With several processes, ``cuda`` gives each its own GPU. Raises UserError for one GPU shared by
    several processes.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        _check_launcher()
        yield SINGLE_PROCESS, device
        return

    if device.startswith("cuda:"):
        raise UserError(f"--device {device} is one GPU for {size} processes; pass --device cuda, which gives each its own")
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    distributed.init_process_group("gloo" if device == "cpu" else "nccl", timeout=TIMEOUT)
    try:
        yield World(distributed.get_rank(), size), device
    finally:
        distributed.destroy_process_group()


def _check_launcher() -> None:
    """Raise UserError where accelerate launch was to start several processes but started one.

    Without --multi_gpu or MPI it silently starts a single process on a CPU.
    """
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        raise UserError("accelerate launch was asked for several processes and started one; add --multi_gpu, on a CPU too, or use torchrun")
