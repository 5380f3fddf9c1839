"""The frozen target's features of training text: computed as they are asked for, or once and kept on disk."""

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from methods.core.errors import UserError
from specbench.train.data.texts import Windows
from specbench.train.distributed import World
from specbench.util import files

STORED = torch.bfloat16
SAID_EVERY = 100  # parts between two lines of progress


class Features(NamedTuple):
    last_BTD: Tensor  # after the last norm
    deep_BTD: Tensor | None  # what entered the layers asked for, side by side, lowest first; None where none was


def compute(model: PreTrainedModel, reads: tuple[int, ...], tokens_BT: Tensor) -> Features:
    """In fp32, from one forward pass under bf16 autocast."""
    entered: dict[int, Tensor] = {}

    def keep(layer: int) -> Callable[[nn.Module, Any], None]:
        return lambda _, inputs: entered.__setitem__(layer, inputs[0].to(tokens_BT.device).float())

    layers: Any = model.base_model.get_submodule("layers")
    with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16), ExitStack() as hooks:
        for i in sorted(reads):
            hooks.enter_context(layers[i].register_forward_pre_hook(keep(i)))
        last_BTD = model.base_model(input_ids=tokens_BT, use_cache=False).last_hidden_state.float()
    return Features(last_BTD, torch.cat(list(entered.values()), dim=-1) if reads else None)


class Cache:
    """Features of the first ``count`` windows of a text, in bf16 in a file of fixed size beside one that tells what is done."""

    def __init__(self, path: Path, windows: Windows, count: int, config: PreTrainedConfig, reads: tuple[int, ...]):
        self.path, self.windows, self.count, self.reads = path, windows, min(count, len(windows)), reads
        self._width = config.hidden_size
        self._shape = (self.count, windows.seq, self._width * (1 + len(reads)))

    @property
    def bytes(self) -> int:
        """Windows x tokens x (1 + layers read) x width x 2."""
        return int(np.prod(self._shape)) * STORED.itemsize

    @property
    def lacks(self) -> int:
        """Bytes of disk still to be taken."""
        return max(0, self.bytes - (self.path.stat().st_size if self.path.is_file() else 0))

    def allocate(self) -> None:
        """Take the disk now, so that nothing runs out of it later."""
        with files.writable(self.path).open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, self.bytes)

    def fill(self, model: PreTrainedModel, rows: int, world: World, console: Console) -> None:
        """Compute what is missing, ``rows`` windows at a time as training will read them, each process its share."""
        self._open()
        parts = range(world.rank * rows, self.count, world.size * rows)
        for said, first in enumerate(parts):
            numbers_B = np.arange(first, min(first + rows, self.count))
            if not self._done_N[numbers_B].all():
                features = compute(model, self.reads, self.windows.tokens(numbers_B).to(model.device))
                both = [each for each in features if each is not None]
                self._rows_NTW[numbers_B] = torch.cat(both, dim=-1).to(STORED).cpu()
                self._done_N[numbers_B] = 1
            if said % SAID_EVERY == 0:
                console.print(f"{self.path.stem}: features of window {first:,} of {self.count:,}")
        world.wait()

    def at(self, numbers_B: np.ndarray) -> Features:
        rows_BTW = self._rows_NTW[numbers_B].float()
        last_BTD, deep_BTD = rows_BTW[..., : self._width], rows_BTW[..., self._width :]
        return Features(last_BTD, deep_BTD if self.reads else None)

    def _open(self) -> None:
        size = int(np.prod(self._shape))
        self._rows_NTW = torch.from_file(str(self.path), shared=True, size=size, dtype=STORED).view(self._shape)
        self._done_N = torch.from_file(str(self.path.with_suffix(".done")), shared=True, size=self.count, dtype=torch.uint8)


def reserve(caches: list[Cache], console: Console) -> None:
    """Say how much disk the caches take and take it. Raises UserError, before anything is computed, where it is not free."""
    folder = files.folder(caches[0].path.parent)
    lacks, free = sum(cache.lacks for cache in caches), shutil.disk_usage(folder).free
    size = sum(cache.bytes for cache in caches)
    console.print(f"features take {size / 2**30:,.2f} GiB in {folder}, {lacks / 2**30:,.2f} of it new; {free / 2**30:,.1f} GiB are free")
    if lacks > free:
        raise UserError(
            f"the features take {lacks / 2**30:,.1f} GiB more in {folder}, where {free / 2**30:,.1f} GiB are free; choose another --work, "
            "fewer --tokens, or leave --cache-features out"
        )
    for cache in caches:
        cache.allocate()
