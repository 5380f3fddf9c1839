"""The placement of a target: its device and dtype, and the device of each layer if it does not fit one GPU.

Only decoder layers are spread. Embedding, last norm and head stay on the run's own device, with every drafter: each step calls
them, some of them several times.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import is_accelerate_available

from methods.core.errors import UserError, unknown
from methods.core.json_text import parse_json
from specbench.targets import checkpoint
from specbench.util.memory import free_memory
from specbench.util.text import one_line

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp64": torch.float64}
AUTO = "auto"
LARGEST_MAP = 2**20  # bytes of a file that maps layers to devices
ON_HOME_DEVICE = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
WEIGHTS_SHARE = 0.8  # of a GPU's free memory; the rest is for caches, drafters and activations


def use_device(device: str) -> None:
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


def device_map(given: str, config: PreTrainedConfig, dtype: torch.dtype, home: str) -> dict[str, str]:
    """Return the device of every module, for ``from_pretrained``.

    ``given`` is "auto" or a JSON file, ``{"0-15": "cuda:0", "16": "cuda:1"}``; ``home`` is the run's own
    device. Raises UserError for a file that does not name each layer once, for devices that are not there
    or not of ``home``'s kind, for a target too large for all of them, and without accelerate.
    """
    if not is_accelerate_available():
        raise UserError("--device-map needs the package accelerate; install it with: pip install 'specbench[accelerate]'")
    home = _with_index(home)
    layers = _spread_over_gpus(config, dtype, home) if given == AUTO else read_map(Path(given), config.num_hidden_layers, home)
    return dict.fromkeys(ON_HOME_DEVICE, home) | {f"model.layers.{i}": device for i, device in enumerate(layers)}


def remove_hooks(model: PreTrainedModel) -> None:
    """Remove accelerate's hooks, which move tensors before each module; our layer ``Stack`` moves them once a device."""
    from accelerate.hooks import remove_hook_from_module

    remove_hook_from_module(model, recurse=True)


def add_hooks(model: PreTrainedModel) -> None:
    """Add accelerate's hooks again after ``remove_hooks``: training calls the model's own forward pass, which needs them."""
    from accelerate import dispatch_model

    layers: Any = model.base_model.get_submodule("layers")
    devices: Any = dict.fromkeys(ON_HOME_DEVICE, model.device)
    devices |= {f"model.layers.{i}": next(layer.parameters()).device for i, layer in enumerate(layers)}
    dispatch_model(model, devices, force_hooks=True)


def spread_layers(layers: nn.ModuleList, room: Mapping[int, int], dtype: torch.dtype) -> list[int]:
    """Return the GPU of each layer, in order and evenly spread by accelerate; ``room`` is bytes by GPU.

    Raises UserError where the layers do not fit.
    """
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    no_split = [type(layers[0]).__name__]
    balanced = get_balanced_memory(layers, max_memory=dict(room), no_split_module_classes=no_split, dtype=dtype)
    inferred = infer_auto_device_map(layers, max_memory=balanced, no_split_module_classes=no_split, dtype=dtype, clean_result=False)
    devices = [inferred.get(str(i)) for i in range(len(layers))]
    if not all(isinstance(device, int) for device in devices):
        needed = sum(p.numel() for p in layers.parameters()) * dtype.itemsize
        raise UserError(
            f"the target's layers take {needed / 2**30:.1f} GiB, the GPUs have {sum(room.values()) / 2**30:.1f} for them; "
            "choose a smaller --target or --dtype"
        )
    return devices


def _spread_over_gpus(config: PreTrainedConfig, dtype: torch.dtype, home: str) -> list[str]:
    if not home.startswith("cuda"):
        raise UserError(f"--device-map {AUTO} spreads a target over GPUs, and the run is on {home}; use --device cuda, or leave it out")

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    layers = model.base_model.layers
    total, in_layers = (sum(p.numel() for p in part.parameters()) for part in (model, layers))

    home_index = torch.device(home).index
    room = {i: int(free_memory(f"cuda:{i}") * WEIGHTS_SHARE) for i in range(torch.cuda.device_count())}
    room[home_index] = max(0, room[home_index] - (total - in_layers) * dtype.itemsize)
    return [f"cuda:{i}" for i in spread_layers(layers, room, dtype)]


def read_map(path: Path, count: int, home: str) -> list[str]:
    """Return the device of each of the ``count`` layers from a JSON file. Raises UserError as ``device_map`` does."""
    try:
        with path.open("rb") as file:
            raw = file.read(LARGEST_MAP + 1)
        if len(raw) > LARGEST_MAP:
            raise ValueError(f"larger than {LARGEST_MAP:,} bytes")
        stored = parse_json(raw)
        ranges = [(*_parse_range(key), _with_index(device)) for key, device in stored.items()]
    except (OSError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        reason = one_line(str(error))[:200]
        raise UserError(f'--device-map {path} cannot be read ({reason}); write layers and devices, as in {{"0-15": "cuda:0"}}') from None

    outside = any(last >= count for _, last, _ in ranges)
    named = [] if outside else [(layer, device) for first, last, device in ranges for layer in range(first, last + 1)]
    if sorted(layer for layer, _ in named) != list(range(count)):
        raise UserError(f"--device-map {path} must name each of the target's {count} layers once: 0 to {count - 1}")
    _check_devices(sorted({device for _, device in named}), home)
    return [device for _, device in sorted(named)]


def _with_index(device: str) -> str:
    """Return a device's name with its index; "cuda" is the first GPU."""
    parsed = torch.device(device)
    return f"{parsed.type}:{parsed.index or 0}" if parsed.type == "cuda" else parsed.type


def _parse_range(key: str) -> tuple[int, int]:
    if not re.fullmatch(r"\d+(-\d+)?", key):
        raise ValueError(f"{key!r} is neither a layer nor a range of layers")
    first, _, last = key.partition("-")
    return int(first), int(last or first)


def _check_devices(devices: Sequence[str], home: str) -> None:
    kind = home.partition(":")[0]
    for device in devices:
        if device.partition(":")[0] != kind:
            raise UserError(f"--device-map has a layer on {device}, the run is on {home}; a target is spread over devices of one kind")
        if kind == "cuda" and int(device.partition(":")[2]) >= torch.cuda.device_count():
            raise UserError(f"--device-map has a layer on {device}; torch sees {torch.cuda.device_count()} CUDA devices, cuda:0 and up")
