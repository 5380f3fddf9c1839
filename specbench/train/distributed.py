"""The processes that train together: those a launcher started (accelerate launch, torchrun), or this one alone."""

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

PATIENCE = timedelta(days=1)  # one process may write text for hours while the others wait

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def wait(self) -> None:
        if self.size > 1:
            distributed.barrier()

    def in_turn(self, make: Callable[[], T]) -> T:
        """The leader's first, then everyone else's: what it leaves on the disk they share, the others find."""
        if not self.leads:
            self.wait()
            return make()
        made = make()
        self.wait()
        return made

    def agree(self, look: Callable[[], T]) -> T:
        """What every process sees alike: nobody changes anything while all look."""
        self.wait()
        seen = look()
        self.wait()
        return seen

    def sum(self, value: Tensor) -> Tensor:
        """Of all processes' values, in place."""
        if self.size > 1:
            distributed.all_reduce(value)
        return value

    def parallel(self, module: nn.Module) -> nn.Module:
        """A module whose gradients every backward pass averages over the processes, all of which start from the leader's weights."""
        if self.size == 1:
            return module
        device = next(module.parameters()).device
        return DistributedDataParallel(module, device_ids=None if device.type == "cpu" else [device.index])

    def apart(self, module: nn.Module, apart: bool) -> AbstractContextManager[None]:
        """While ``apart``, gradients of a parallel module are added up in each process and not exchanged."""
        return module.no_sync() if apart and isinstance(module, DistributedDataParallel) else nullcontext()


ALONE = World()


@contextmanager
def joined(device: str) -> Iterator[tuple[World, str]]:
    """The world as the launcher's environment tells it, and this process' device: of several, each gets a GPU of its own."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        _refuse_a_launch_of_one()
        yield ALONE, device
        return
    if device.startswith("cuda:"):
        raise UserError(f"--device {device} is one GPU for {size} processes; pass --device cuda, which gives each its own")
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    distributed.init_process_group("gloo" if device == "cpu" else "nccl", timeout=PATIENCE)
    try:
        yield World(distributed.get_rank(), size), device
    finally:
        distributed.destroy_process_group()


def _refuse_a_launch_of_one() -> None:
    """Without --multi_gpu, or MPI, accelerate launch starts one process on a CPU however many it was asked for, and says nothing."""
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_PORT" in os.environ and "WORLD_SIZE" not in os.environ:
        raise UserError("accelerate launch was asked for several processes and started one; add --multi_gpu, on a CPU too, or use torchrun")
