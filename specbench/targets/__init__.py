"""Targets by name: the shipped one, the shapes it can be embedded in, a hub id, or a folder of the same layout.

A target folder is a transformers checkpoint with its tokenizer and, beside them, ``drafters/KIND.safetensors``.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from methods.core.errors import UserError, unknown
from methods.core.weights import Trained
from methods.registry import Resolved
from specbench.targets import checkpoint, drafters, families, hub, placement
from specbench.targets.chat import Chat
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
    chat: Chat
    folder: Path
    weights_sha256: str
    revision: str | None = None  # the commit, of a hub id
    small: PreTrainedModel | None = None  # the model inside, of a cost-matched target
    drafter_files: Mapping[str, Path] = field(default_factory=dict)  # the user's own files, folders or hub ids, by kind or arm
    _drafters: dict[str, Trained] = field(default_factory=dict)  # methods that share weights share them in memory too

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.chat.tokenizer

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end an answer: the tokenizer's end-of-sequence token, those of the generation config and the family's."""
        configured = self.model.generation_config.eos_token_id if self.model.generation_config is not None else None
        listed = configured if isinstance(configured, list) else [configured]
        vocabulary = self.tokenizer.get_vocab()
        own = [vocabulary[token] for token in families.family_of(self.name).stops if token in vocabulary]
        return frozenset(token for token in (*listed, *own, self.tokenizer.eos_token_id) if token is not None)

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

    @property
    def layers(self) -> dict[str, int]:
        """How many decoder layers are on each device."""
        layers: Any = self.model.base_model.layers
        return dict(Counter(str(next(layer.parameters()).device) for layer in layers))

    @cached_property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    def drafter_for(self, resolved: Resolved) -> Trained | None:
        """The drafter an arm needs, on the target's device, or None where it needs or has none."""
        source = drafters.place(self, resolved)
        if source is None:
            return None
        key = f"{resolved.method.weights}={source}"
        if key not in self._drafters:
            self._drafters[key] = drafters.load(self, resolved.method, source)
        return self._drafters[key]


def default_name(device: str) -> str:
    return "tiny-7b" if device.startswith("cuda") else "tiny-160m"


def default_dtype(device: str) -> str:
    """bf16 where the device computes it natively, else fp16 on CUDA and fp32 on a CPU."""
    if device.startswith("cuda"):
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    cpuinfo = Path("/proc/cpuinfo")
    flags = set(cpuinfo.read_text().split()) if cpuinfo.is_file() else set()
    return "bf16" if flags & {"avx512_bf16", "amx_bf16", "bf16"} else "fp32"


def load(
    name: str,
    *,
    device: str,
    dtype: str,
    attention: str,
    drafter_files: Mapping[str, Path] | None = None,
    revision: str | None = None,
    template: str | None = None,
    system_prompt: str | None = None,
    thinking: str | None = None,
    device_map: str | None = None,
) -> Loaded:
    """A target by name, folder or hub id. ``template`` None is the family's; see ``prompts.Chat`` and ``placement.device_map``.

    Raises UserError, before any weights are read, for what does not exist, does not fit together, or cannot be a target.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    if attention not in ("sdpa", "eager"):
        raise unknown("attention", attention, ("sdpa", "eager"))
    check_device(device)
    if name in TARGETS and (revision or device_map):
        raise UserError(f"target {name} is built here; leave {'--revision' if revision else '--device-map'} out")
    logging.disable_progress_bar()
    folder = _folder(name, revision)
    family = families.family_of(name)
    with checkpoint.readable(folder):
        config = checkpoint.config(folder, attention)
        tokenizer = checkpoint.tokenizer(folder, legacy=family.legacy)
    if len(tokenizer) > config.vocab_size:
        raise UserError(f"tokenizer of {folder} has {len(tokenizer)} tokens, its model {config.vocab_size}: they are not a pair")
    chat = Chat(tokenizer, template or family.template, system_prompt, thinking)
    with within_memory(name, dtype, device):
        places = placement.device_map(device_map, config, DTYPES[dtype], device) if device_map else None
        with checkpoint.readable(folder):
            model = checkpoint.model(folder, config, torch.float32 if name in SHAPES else DTYPES[dtype], places)
            sha256 = checkpoint.sha256(folder)
        loaded = Loaded(name, model, chat, folder, sha256, drafter_files=drafter_files or {})
        if name in SHAPES:
            return replace(loaded, model=widened(model, SHAPES[name], name, device=device, dtype=DTYPES[dtype]), small=model)
        if places:
            placement.unhook(model)
        else:
            model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides the argument
        return replace(loaded, revision=folder.name if hub.is_id(name) else None)


def _folder(name: str, revision: str | None) -> Path:
    if name not in TARGETS and not hub.is_id(name) and not Path(name).is_dir():
        raise unknown("target", name, (*TARGETS, "a folder", "a hub id"), families.ids())
    folder = shipped_folder() if name in TARGETS else hub.folder(name, revision)
    if not (folder / "config.json").is_file():
        if name in TARGETS:
            raise UserError(f"the shipped target is missing from {folder}; reinstall specbench")
        raise UserError(
            f"target folder {folder} holds no config.json; give a whole transformers checkpoint, a hub id or a target that ships"
        )
    return folder


@contextmanager
def within_memory(name: str, dtype: str, device: str) -> Iterator[None]:
    """Turns running out of the device's memory into a UserError; on a CPU torch raises a plain RuntimeError for that."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not checkpoint.out_of_memory(error):
            raise
        raise UserError(
            f"target {name} in {dtype} with its drafters does not fit the memory of {device}; choose a smaller --target or --dtype"
        ) from None


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
