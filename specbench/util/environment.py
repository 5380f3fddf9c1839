"""What a run ran on and from: versions, processor, threads, GPU and driver, state of the checkout."""

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers


def environment(device: torch.device) -> dict[str, Any]:
    """Facts for the manifest; ``gpu`` and ``driver`` are None on a CPU."""
    cuda = device.type == "cuda"
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "system": f"{platform.system()} {platform.release()}",
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "gomp_spincount": os.environ.get("GOMP_SPINCOUNT"),
        "gpu": torch.cuda.get_device_name(device) if cuda else None,
        "cuda": torch.version.cuda if cuda else None,
        "driver": output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0] if cuda else None,
    }


def device_id(device: torch.device, index: int | None = None, workers: int = 1) -> str:
    """What a record says it ran on, "KIND #WHICH"; times compare within a kind only (``records.device_kind``).

    On CUDA the GPU's name and its UUID. On a CPU its model, the process' threads and the ``workers`` that share it, all of which
    move times; which of them is ``index``.
    """
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        return f"{gpu.name} #GPU-{gpu.uuid}"
    kind = f"{_cpu_model()}, {torch.get_num_threads()} threads"
    return f"{kind} #cpu" if index is None else f"{kind}, {workers} workers #cpu worker {index}"


def joined(environments: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One environment of several workers': of a fact on which they differ, every value."""
    first = environments[0]
    apart = {key: sorted({str(each.get(key)) for each in environments}) for key in first}
    return {key: value if len(apart[key]) == 1 else ", ".join(apart[key]) for key, value in first.items()}


def git_state() -> dict[str, Any]:
    """``{"sha", "dirty"}`` of the checkout this package runs from, {} for an installed package."""
    package = Path(__file__).parents[1]
    in_package = ("git", "-C", str(package))
    # An environment inside a checkout is a folder of that checkout too, but none of its tracked files.
    if not output_of(*in_package, "ls-files", "__init__.py"):
        return {}
    dirty = output_of(*in_package, "status", "--porcelain", "--untracked-files=no")
    return {"sha": output_of(*in_package, "rev-parse", "HEAD"), "dirty": bool(dirty)}


def output_of(*command: str) -> str:
    """What a program prints; "" when it is not installed or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
