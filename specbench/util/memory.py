"""Memory: what is free, and a turn's peak (the allocator's on CUDA, the process' resident set on a Linux CPU)."""

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path

import torch

_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
MEMINFO = Path("/proc/meminfo")


class PeakMemory:
    """Bytes at the highest point since ``reset``, each device's own added up; 0 where the system cannot say."""

    def __init__(self, *devices: torch.device):
        self._gpus = [device for device in devices if device.type == "cuda"]
        self._can_reset = False

    def reset(self) -> None:
        for gpu in self._gpus:
            torch.cuda.reset_peak_memory_stats(gpu)
        if self._gpus:
            return
        with contextlib.suppress(OSError):  # not Linux, or a sandbox without write access to /proc: peak() then says 0
            _CLEAR_REFS.write_text("5")
            self._can_reset = True

    def peak(self) -> int:
        if self._gpus:
            return sum(map(torch.cuda.max_memory_allocated, self._gpus))
        if not self._can_reset:
            return 0
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024


def free(device: str) -> int:
    """Bytes not in use on the device: the GPU's own, or those the system says a new process may take."""
    if device != "cpu":
        return int(torch.cuda.mem_get_info(device)[0])
    line = next(line for line in MEMINFO.read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


def freeze() -> None:
    """Spare all that is there from collections: a full one over what torch and transformers import takes 0.16 s."""
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def unhindered() -> Iterator[None]:
    """Without full collections, which would be charged to whichever arm they hit."""
    freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def make_room() -> None:
    """Free the targets that nothing refers to any more.

    A target, its captured graphs and the pieces they came of refer to each other, so that only a collection frees them.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
