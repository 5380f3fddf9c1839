"""Devices and dtypes of a target: checks, defaults, and the error for a device whose memory is full."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from methods.core.errors import UserError, unknown
from specbench.targets import checkpoint

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


def check_device(device: str) -> None:
    """Make a CUDA device the current one, set up for timing. Raises UserError for a device that is not there."""
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise unknown("device", device, ("cpu", "cuda", "cuda:0"))
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device {device} was asked for, but torch sees no CUDA device; install a CUDA build of torch or use --device cpu")
    if device.startswith("cuda:") and int(device[5:]) >= torch.cuda.device_count():
        raise UserError(f"device {device} does not exist; torch sees {torch.cuda.device_count()}: cuda:0 and up")

    if device.startswith("cuda"):
        torch.cuda.set_device(device)  # streams, events and graphs belong to the current device
        # cuDNN's attention prepares a plan for every new shape, which takes tens of milliseconds. Each prompt has a new
        # shape, and its prefill is timed.
        torch.backends.cuda.enable_cudnn_sdp(False)


def default_name(device: str) -> str:
    """Return the name of the target that a run on this device uses by default."""
    return "tiny-7b" if device.startswith("cuda") else "tiny-160m"


def default_dtype(device: str) -> str:
    """Return bf16 where the device computes it natively, else fp16 on CUDA and fp32 on a CPU."""
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.is_file() else set()
    return "bf16" if flags & {"avx512_bf16", "amx_bf16", "bf16"} else "fp32"


@contextmanager
def within_memory(name: str, dtype: str, device: str) -> Iterator[None]:
    """Raise UserError where the block runs out of the device's memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch raises a plain RuntimeError on a CPU
        if not checkpoint.out_of_memory(error):
            raise
        raise UserError(
            f"target {name} in {dtype} with its drafters does not fit the memory of {device}; choose a smaller --target or --dtype"
        ) from None
