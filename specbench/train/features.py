"""The frozen target's features of training text: computed when needed, or computed once and cached on disk.

Shape letters: N windows of a cache, B windows of a batch, T tokens of a window, D width, W width of all cached features.
"""

import os
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from methods.core.errors import UserError
from specbench.train.data.texts import Windows
from specbench.train.distributed import World
from specbench.util import files
from specbench.util.terminal import Console

STORED_DTYPE = torch.bfloat16
PROGRESS_EVERY = 100  # batches between two lines of progress


class Features(NamedTuple):
    """The target's features of a batch, in fp32."""

    last_BTD: Tensor  # after the last norm
    deep_BTD: Tensor | None  # the inputs of the layers asked for, concatenated from the lowest up; None without any


def compute(model: PreTrainedModel, reads: tuple[int, ...], tokens_BT: Tensor) -> Features:
    """Compute the features by one forward pass under bf16 autocast; ``reads`` are the layers whose input to return."""
    inputs_by_layer: dict[int, Tensor] = {}

    def keep_input(layer: int) -> Callable[[nn.Module, Any], None]:
        return lambda _, inputs: inputs_by_layer.__setitem__(layer, inputs[0].to(tokens_BT.device).float())

    layers: Any = model.base_model.get_submodule("layers")
    with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16), ExitStack() as hooks:
        for i in sorted(reads):
            hooks.enter_context(layers[i].register_forward_pre_hook(keep_input(i)))
        last_BTD = model.base_model(input_ids=tokens_BT, use_cache=False).last_hidden_state.float()
    return Features(last_BTD, torch.cat(list(inputs_by_layer.values()), dim=-1) if reads else None)


class FeatureCache:
    """The features of a text's first ``count`` windows, in bf16 on disk.

    They are in one file of fixed size; a second file beside it marks the windows that are done.
    """

    def __init__(self, path: Path, windows: Windows, count: int, config: PreTrainedConfig, reads: tuple[int, ...]):
        self.path, self.windows, self.count, self.reads = path, windows, min(count, len(windows)), reads
        self._width = config.hidden_size
        self._shape = (self.count, windows.seq, self._width * (1 + len(reads)))

    @property
    def bytes(self) -> int:
        """The size on disk: windows x tokens x (1 + layers read) x width x 2 bytes."""
        return int(np.prod(self._shape)) * STORED_DTYPE.itemsize

    @property
    def missing_bytes(self) -> int:
        """The disk space that is not yet allocated."""
        return max(0, self.bytes - (self.path.stat().st_size if self.path.is_file() else 0))

    def allocate(self) -> None:
        """Allocate the disk space now, so that it cannot run out later."""
        files.make_folder(self.path.parent)
        with self.path.open("ab") as file:
            os.posix_fallocate(file.fileno(), 0, self.bytes)

    def fill(self, model: PreTrainedModel, rows: int, world: World, console: Console) -> None:
        """Compute the missing features, ``rows`` windows at a time as in training; each process computes its share."""
        self._open()
        first_windows = range(world.rank * rows, self.count, world.size * rows)
        for i, first in enumerate(first_windows):
            numbers_B = np.arange(first, min(first + rows, self.count))
            if not self._done_N[numbers_B].all():
                features = compute(model, self.reads, self.windows.tokens(numbers_B).to(model.device))
                present = [tensor for tensor in features if tensor is not None]
                self._rows_NTW[numbers_B] = torch.cat(present, dim=-1).to(STORED_DTYPE).cpu()
                self._done_N[numbers_B] = 1
            if i % PROGRESS_EVERY == 0:
                console.print(f"{self.path.stem}: features of window {first:,} of {self.count:,}")
        world.wait()

    def at(self, numbers_B: np.ndarray) -> Features:
        """Return the features of the windows with these numbers."""
        rows_BTW = self._rows_NTW[numbers_B].float()
        last_BTD, deep_BTD = rows_BTW[..., : self._width], rows_BTW[..., self._width :]
        return Features(last_BTD, deep_BTD if self.reads else None)

    def _open(self) -> None:
        size = int(np.prod(self._shape))
        self._rows_NTW = torch.from_file(str(self.path), shared=True, size=size, dtype=STORED_DTYPE).view(self._shape)
        self._done_N = torch.from_file(str(self.path.with_suffix(".done")), shared=True, size=self.count, dtype=torch.uint8)


def reserve_disk(caches: list[FeatureCache], console: Console) -> None:
    """Print how much disk space the caches take and allocate it. Raises UserError where it is not free."""
    folder = files.make_folder(caches[0].path.parent)
    missing, free = sum(cache.missing_bytes for cache in caches), shutil.disk_usage(folder).free
    size = sum(cache.bytes for cache in caches)
    console.print(f"features take {size / 2**30:,.2f} GiB in {folder}, {missing / 2**30:,.2f} of it new; {free / 2**30:,.1f} GiB are free")
    if missing > free:
        raise UserError(
            f"the features take {missing / 2**30:,.1f} GiB more in {folder}, where {free / 2**30:,.1f} GiB are free; "
            "choose another --work, fewer --tokens, or leave --cache-features out"
        )
    for cache in caches:
        cache.allocate()
