"""Where the layers of a target are that does not fit one GPU.

Only decoder layers are spread. Embedding, last norm and head stay on the run's own device, with every drafter: they are called
in each round, some of them several times.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import is_accelerate_available

from methods.core.errors import UserError
from specbench.util.memory import free

AUTO = "auto"
AT_HOME = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
SHARE = 0.8  # of a GPU's free memory that weights may take; the rest is for caches, drafters and work in progress


def device_map(given: str, config: PreTrainedConfig, dtype: torch.dtype, home: str) -> dict[str, str]:
    """The device of every module, for ``from_pretrained``; ``given`` is "auto" or a JSON file, ``{"0-15": "cuda:0", "16": "cuda:1"}``.

    Raises UserError for a file that does not name each layer once, devices that are not there or not of the kind of ``home``,
    a target too large for all of them, and where accelerate is not installed.
    """
    if not is_accelerate_available():
        raise UserError("--device-map needs the package accelerate; install it with: pip install 'specbench[accelerate]'")
    home = _full(home)
    layers = _auto(config, dtype, home) if given == AUTO else _read(Path(given), config.num_hidden_layers, home)
    return dict.fromkeys(AT_HOME, home) | {f"model.layers.{i}": device for i, device in enumerate(layers)}


def unhook(model: PreTrainedModel) -> None:
    """Take away what accelerate put around each module to move tensors: our layer stack does that itself, once a device."""
    from accelerate.hooks import remove_hook_from_module

    remove_hook_from_module(model, recurse=True)


def hook(model: PreTrainedModel) -> None:
    """What ``unhook`` took away, back: training calls the model's own forward pass, which needs it."""
    from accelerate import dispatch_model

    layers: Any = model.base_model.get_submodule("layers")
    places: Any = dict.fromkeys(AT_HOME, model.device)
    places |= {f"model.layers.{i}": next(layer.parameters()).device for i, layer in enumerate(layers)}
    dispatch_model(model, places, force_hooks=True)


def spread(layers: nn.ModuleList, room: Mapping[int, int], dtype: torch.dtype) -> list[int]:
    """The GPU of each layer, in order and evenly, by accelerate; ``room`` is bytes by GPU. Raises UserError where they do not fit."""
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    whole = [type(layers[0]).__name__]
    balanced = get_balanced_memory(layers, max_memory=dict(room), no_split_module_classes=whole, dtype=dtype)
    found = infer_auto_device_map(layers, max_memory=balanced, no_split_module_classes=whole, dtype=dtype, clean_result=False)
    devices = [found.get(str(i)) for i in range(len(layers))]
    if not all(isinstance(device, int) for device in devices):
        needed = sum(p.numel() for p in layers.parameters()) * dtype.itemsize
        raise UserError(
            f"the target's layers take {needed / 2**30:.1f} GiB, the GPUs have {sum(room.values()) / 2**30:.1f} for them; "
            "choose a smaller --target or --dtype"
        )
    return devices


def _auto(config: PreTrainedConfig, dtype: torch.dtype, home: str) -> list[str]:
    if not home.startswith("cuda"):
        raise UserError(f"--device-map {AUTO} spreads a target over GPUs, and the run is on {home}; use --device cuda, or leave it out")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    layers = model.base_model.layers
    total, inner = (sum(p.numel() for p in part.parameters()) for part in (model, layers))
    at_home = torch.device(home).index
    room = {i: int(free(f"cuda:{i}") * SHARE) for i in range(torch.cuda.device_count())}
    room[at_home] = max(0, room[at_home] - (total - inner) * dtype.itemsize)
    return [f"cuda:{i}" for i in spread(layers, room, dtype)]


def _read(path: Path, count: int, home: str) -> list[str]:
    """The device of each layer as a JSON file has it."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        ranges = [(*_range(key), _full(device)) for key, device in stored.items()]
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f'--device-map {path} cannot be read ({reason}); write layers and devices, as in {{"0-15": "cuda:0"}}') from None
    named = [(layer, device) for first, last, device in ranges for layer in range(first, last + 1)]
    if sorted(layer for layer, _ in named) != list(range(count)):
        raise UserError(f"--device-map {path} must name each of the target's {count} layers once: 0 to {count - 1}")
    _check(sorted({device for _, device in named}), home)
    return [device for _, device in sorted(named)]


def _full(device: str) -> str:
    """A device's name with its number: "cuda" is the first GPU."""
    known = torch.device(device)
    return f"{known.type}:{known.index or 0}" if known.type == "cuda" else known.type


def _range(key: str) -> tuple[int, int]:
    if not re.fullmatch(r"\d+(-\d+)?", key):
        raise ValueError(f"{key!r} is neither a layer nor a range of layers")
    first, _, last = key.partition("-")
    return int(first), int(last or first)


def _check(devices: Sequence[str], home: str) -> None:
    kind = home.partition(":")[0]
    for device in devices:
        if device.partition(":")[0] != kind:
            raise UserError(f"--device-map has a layer on {device}, the run is on {home}; a target is spread over devices of one kind")
        if kind == "cuda" and int(device.partition(":")[2]) >= torch.cuda.device_count():
            raise UserError(f"--device-map has a layer on {device}; torch sees {torch.cuda.device_count()} CUDA devices, cuda:0 and up")
