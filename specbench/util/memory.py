"""Memory of a device: how much is free, a turn's peak, and Python's garbage collection around it.

The peak is the allocator's on CUDA, and the process' resident set on a Linux CPU.
"""

import contextlib
import gc
from collections.abc import Iterator
from pathlib import Path

import torch

_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
MEMINFO = Path("/proc/meminfo")


class PeakMemory:
    """Peak memory in bytes since ``reset``, summed over the devices; 0 where the system cannot tell."""

    def __init__(self, *devices: torch.device):
        self._gpus = [device for device in devices if device.type == "cuda"]
        self._can_reset = False

    def reset(self) -> None:
        """Start a new measurement."""
        for gpu in self._gpus:
            torch.cuda.reset_peak_memory_stats(gpu)
        if self._gpus:
            return
        # Fails outside Linux, and in a sandbox without write access to /proc: peak() then returns 0.
        with contextlib.suppress(OSError):
            _CLEAR_REFS.write_text("5")
            self._can_reset = True

    def peak(self) -> int:
        """Return the peak in bytes."""
        if self._gpus:
            return sum(map(torch.cuda.max_memory_allocated, self._gpus))
        if not self._can_reset:
            return 0
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024


def free_memory(device: str) -> int:
    """Return the free bytes of a GPU, or those that the system says a new process may use."""
    if device != "cpu":
        return int(torch.cuda.mem_get_info(device)[0])
    line = next(line for line in MEMINFO.read_text().splitlines() if line.startswith("MemAvailable"))
    return int(line.split()[1]) * 1024


def freeze_gc() -> None:
    """Exclude all existing objects from garbage collection.

    A full collection over the objects that torch and transformers create on import takes 0.16 s.
    """
    gc.collect()
    gc.freeze()


@contextlib.contextmanager
def gc_paused() -> Iterator[None]:
    """Exclude all existing objects from garbage collection inside the block.

    The time of a full collection would be charged to whichever arm it interrupts.
    """
    freeze_gc()
    try:
        yield
    finally:
        gc.unfreeze()


def release_unused_memory() -> None:
    """Free the memory of targets that are no longer in use.

    A target, its captured graphs and their inputs refer to each other, so only a garbage collection
    frees them.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
