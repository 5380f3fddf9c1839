"""Targets by name: the shipped one, the shapes it can be embedded in, or a folder of the same layout.

A target folder is a transformers checkpoint with its tokenizer and, beside them, ``drafters/KIND.safetensors``.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from jinja2 import TemplateError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from methods.core.errors import UserError, unknown
from methods.core.target import refuse
from methods.core.weights import Trained
from methods.registry import Resolved
from specbench import prompts
from specbench.targets import drafters
from specbench.targets.shapes import SHAPES
from specbench.targets.widen import widened

SHIPPED = "tiny"
TARGETS = (SHIPPED, *SHAPES)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}


@dataclass(frozen=True)
class Loaded:
    """A target on its device with the drafters trained for it."""

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    folder: Path
    weights_sha256: str
    small: PreTrainedModel | None = None  # the model inside, of a cost-matched target
    drafter_files: Mapping[str, Path] = field(default_factory=dict)  # the user's own files, folders or hub ids, by kind or arm
    _drafters: dict[str, Trained] = field(default_factory=dict)  # methods that share weights share them in memory too

    @property
    def label(self) -> str:
        return "cost-matched" if self.small is not None else ""

    @property
    def note(self) -> str:
        if self.small is None:
            return ""
        return (
            f"{self.name} is cost-matched: the small shipped target computed in the shape of {SHAPES[self.name].like}. Its wall-clock "
            "and round costs are real for that shape on this device; its acceptance is the small model's, not a real model's of that size."
        )

    @cached_property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def drafter_for(self, resolved: Resolved) -> Trained | None:
        """The drafter an arm needs, on the target's device, or None where it needs or has none."""
        source = drafters.place(self, resolved)
        if source is None:
            return None
        if source not in self._drafters:
            self._drafters[source] = drafters.load(self, resolved.method, source)
        return self._drafters[source]


def default_name(device: str) -> str:
    return "tiny-7b" if device.startswith("cuda") else "tiny-160m"


def default_dtype(device: str) -> str:
    """bf16 where the device computes it natively, else fp16 on CUDA and fp32 on a CPU."""
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.is_file() else set()
    return "bf16" if flags & {"avx512_bf16", "amx_bf16", "bf16"} else "fp32"


def load(name: str, *, device: str, dtype: str, attention: str, drafter_files: Mapping[str, Path] | None = None) -> Loaded:
    """A target by name or folder. Raises UserError for what does not exist, does not fit, or cannot be a target."""
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    if attention not in ("sdpa", "eager"):
        raise unknown("attention", attention, ("sdpa", "eager"))
    check_device(device)
    logging.disable_progress_bar()
    folder = shipped_folder() if name in TARGETS else Path(name)
    if not (folder / "config.json").is_file():
        if name in TARGETS:
            raise UserError(f"the shipped target is missing from {folder}; reinstall specbench")
        raise unknown("target", name, TARGETS)
    with within_memory(name, dtype, device):
        return _load(name, folder, device, DTYPES[dtype], attention, drafter_files or {})


@contextmanager
def within_memory(name: str, dtype: str, device: str) -> Iterator[None]:
    """Turns running out of the device's memory into a UserError; on a CPU torch raises a plain RuntimeError for that."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        raise UserError(
            f"target {name} in {dtype} with its drafters does not fit the memory of {device}; choose a smaller --target or --dtype"
        ) from None


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


def _load(name: str, folder: Path, device: str, dtype: torch.dtype, attention: str, drafter_files: Mapping[str, Path]) -> Loaded:
    wide = name in SHAPES
    try:
        model, tokenizer = _read(folder, torch.float32 if wide else dtype, attention)
    except (OSError, ValueError, TypeError, ArithmeticError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        if _out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"target folder {folder} cannot be loaded ({reason}); it must be a whole transformers checkpoint") from None
    model.eval().requires_grad_(False)
    if len(tokenizer) > model.config.vocab_size:
        raise UserError(f"tokenizer of {folder} has {len(tokenizer)} tokens, its model {model.config.vocab_size}: they are not a pair")
    try:
        prompts.encode(tokenizer, ["A question?"], [])
    except (TemplateError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the chat template of {folder} cannot be rendered ({reason}); repair it there") from None
    sha = _sha256(folder)
    if not wide:
        model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides the argument
        return Loaded(name, model, tokenizer, folder, sha, drafter_files=drafter_files)
    large = widened(model, SHAPES[name], name, device=device, dtype=dtype)
    return Loaded(name, large, tokenizer, folder, sha, small=model, drafter_files=drafter_files)


def _read(folder: Path, dtype: torch.dtype, attention: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model and tokenizer, every tensor from the folder's safetensors files: those are what its identity is a hash of."""
    if not any(folder.glob("*.safetensors")):
        raise ValueError("it holds no *.safetensors; convert other weights with save_pretrained")
    refuse(AutoConfig.from_pretrained(folder, attn_implementation=attention))
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of misfits is many lines; ours is one
    try:
        loading: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            attn_implementation=attention,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    finally:
        logging.set_verbosity(verbosity)
    model, report = loading
    misfits = [(name, "is missing") for name in report["missing_keys"]]
    misfits += [(name, "is unexpected") for name in report["unexpected_keys"]]
    misfits += [(name, f"is {tuple(has)}, the config needs {tuple(needs)}") for name, has, needs in report["mismatched_keys"]]
    if misfits:
        name, what = min(misfits)
        raise ValueError(f"{name} {what}; {len(misfits)} of its tensors do not match config.json")
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)


def check_device(device: str) -> None:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise unknown("device", device, ("cpu", "cuda", "cuda:0"))
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"device {device} was asked for, but torch sees no CUDA device; install a CUDA build of torch or use --device cpu")
    if device.startswith("cuda:") and int(device[5:]) >= torch.cuda.device_count():
        raise UserError(f"device {device} does not exist; torch sees {torch.cuda.device_count()}: cuda:0 and up")
    if device.startswith("cuda"):
        torch.cuda.set_device(device)  # streams, events and graphs are of the current device
        # cuDNN's attention prepares a plan for every new shape, tens of milliseconds each: every prompt is one, and is timed.
        torch.backends.cuda.enable_cudnn_sdp(False)


def shipped_folder() -> Path:
    with as_file(files("specbench.targets") / SHIPPED) as folder:
        return folder


def _sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
