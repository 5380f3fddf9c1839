"""The environment of a run: its software and hardware, and how long its CPU threads wait for work.

That wait must be configured before torch is imported, so torch is imported only inside functions here.
"""

import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# An idle thread spins for a millisecond or more by default. Beside one other busy process that turns a forward pass
# of 8 ms into 850 ms. Without any spinning, waking takes 50 microseconds, a hundred times a token. This spin count
# covers the gap between two matrix products.
SPIN_COUNT = "1000"
THREAD_VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")  # environment to pass on to processes elsewhere


@dataclass(frozen=True)
class Environment:
    """The software and hardware of a process. None: not known, or, for the facts of a GPU, no GPU.

    Where workers differ in a fact, it is a text with every value.
    """

    python: str | None = None
    torch: str | None = None
    transformers: str | None = None
    system: str | None = None
    cpu: str | None = None
    cores: int | str | None = None
    threads: int | str | None = None
    omp_wait_policy: str | None = None
    gomp_spincount: str | None = None
    gpu: str | None = None
    cuda: str | None = None
    driver: str | None = None
    workers: int | None = None  # processes that shared the questions; None: one process
    ray: str | None = None  # version, where workers were actors of a Ray cluster


@dataclass(frozen=True)
class GitState:
    """The checkout that the package ran from; ``sha`` is "" for an installed package."""

    sha: str = ""
    dirty: bool = False


def environment(device: "torch.device") -> Environment:
    """Return the environment of this process, which runs on ``device``."""
    import torch
    import transformers

    cuda = device.type == "cuda"
    return Environment(
        python=platform.python_version(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        system=f"{platform.system()} {platform.release()}",
        cpu=cpu_model(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        omp_wait_policy=os.environ.get("OMP_WAIT_POLICY"),
        gomp_spincount=os.environ.get("GOMP_SPINCOUNT"),
        gpu=torch.cuda.get_device_name(device) if cuda else None,
        cuda=torch.version.cuda if cuda else None,
        driver=output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0] if cuda else None,
    )


def device_id(device: "torch.device", index: int | None = None, workers: int = 1) -> str:
    """Return what a record says it ran on, "KIND #WHICH"; times compare within a kind only (``records.device_kind``).

    On CUDA: the GPU's name and its UUID. On a CPU: its model, the process' threads, and the number of ``workers`` that share
    it, all of which change times; ``index`` is this worker's number.
    """
    import torch

    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        return f"{gpu.name} #GPU-{gpu.uuid}"
    kind = f"{cpu_model()}, {torch.get_num_threads()} threads"
    return f"{kind} #cpu" if index is None else f"{kind}, {workers} workers #cpu worker {index}"


def merge_environments(environments: Sequence[Environment]) -> Environment:
    """Return one environment for several workers; a fact on which they differ lists every value."""
    values: dict[str, list[Any]] = {f.name: [getattr(one, f.name) for one in environments] for f in fields(Environment)}
    distinct = {name: sorted({str(value) for value in each}) for name, each in values.items()}
    facts: dict[str, Any] = {name: each[0] if len(distinct[name]) == 1 else ", ".join(distinct[name]) for name, each in values.items()}
    return Environment(**facts)


def git_state() -> GitState:
    """Return the state of the checkout that this package runs from."""
    package = Path(__file__).parents[1]
    in_package = ("git", "-C", str(package))
    # A virtual environment inside a checkout lies in that checkout too, but its files are not tracked.
    if not output_of(*in_package, "ls-files", "__init__.py"):
        return GitState()
    dirty = output_of(*in_package, "status", "--porcelain", "--untracked-files=no")
    return GitState(output_of(*in_package, "rev-parse", "HEAD"), bool(dirty))


def output_of(*command: str) -> str:
    """Return what a program prints, stripped; "" when it is not installed or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def cpu_model() -> str:
    """Return the name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def configure_thread_waiting() -> None:
    """Set how long idle OpenMP threads spin, unless the user's environment already says so."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
        os.environ.setdefault("KMP_BLOCKTIME", "0")  # LLVM's and Intel's OpenMP: threads sleep at once
