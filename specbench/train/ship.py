"""``python -m specbench.gpu.ship``: from a target trained on a GPU to the files the package ships, within what a package may weigh.

``fits PRESET`` says before training whether the preset and its drafters will; ``shard FOLDER`` cuts the trained weights into files
small enough, before drafters are trained for them (their identity is a hash of those files); ``leave FOLDER`` puts all in place.
"""

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from methods.core.errors import UserError, unknown
from methods.registry import METHODS, SHIPPED_WEIGHTS
from specbench import targets
from specbench.train.target import PRESETS, config

MIB = 2**20
LARGEST, ALL = 15 * MIB, 40 * MIB  # bytes of a file, and of everything that ships
SHARD = "14MB"
SHIPPED = ("*.json", "*.jinja", "*.md", "*.safetensors", "drafters/*.safetensors")
WHOLE = "model.safetensors"


def fits(preset: str, console: Console) -> None:
    """Raises UserError where the preset's target and drafters, in bf16, will come to more than may ship."""
    if preset not in PRESETS:
        raise unknown("target preset", preset, PRESETS)
    sizes = {name: 2 * count for name, count in parameters(preset).items()}
    total = sum(sizes.values())
    parts = ", ".join(f"{name} {size / MIB:.1f}" for name, size in sizes.items())
    told = f"preset {preset} in bf16: {parts}; {total / MIB:.1f} MiB in all, {ALL // MIB} may ship"
    if total > ALL:
        raise UserError(f"{told}; give it fewer layers, or train it without shipping: specbench train target --preset {preset}")
    console.print(told, markup=False, soft_wrap=True)


def parameters(preset: str) -> dict[str, int]:
    """Of the target and each kind of drafter, without training or building any."""
    tokenizer: Any = AutoTokenizer.from_pretrained(targets.shipped_folder())
    shape = config(PRESETS[preset], tokenizer)
    with torch.device("meta"):
        modules: dict[str, Any] = {"target": AutoModelForCausalLM.from_config(shape)}
        for kind in SHIPPED_WEIGHTS:
            code = importlib.import_module(next(row.module for row in METHODS.values() if row.weights == kind))
            modules[kind] = code.Module(shape, code.Architecture())
    return {name: sum(parameter.numel() for parameter in module.parameters()) for name, module in modules.items()}


def shard(folder: Path) -> None:
    """Weights in one large file become several; the same weights give the same files. A folder without one is left as it is."""
    whole = folder / WHOLE
    if not whole.is_file() or whole.stat().st_size <= LARGEST:
        return
    with safe_open(whole, framework="pt") as file:
        dtype = file.get_tensor(next(iter(file.keys()))).dtype
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    model.save_pretrained(folder, max_shard_size=SHARD)
    whole.unlink()


def leave(folder: Path, place: Path) -> list[Path]:
    """Replace what ships in ``place`` by what is in ``folder``; returns the files. Raises UserError, before any, if it is too much."""
    new = [path.relative_to(folder) for pattern in SHIPPED for path in sorted(folder.glob(pattern))]
    missing = [kind for kind in SHIPPED_WEIGHTS if Path("drafters", f"{kind}.safetensors") not in new]
    if missing or Path("config.json") not in new:
        raise UserError(f"{folder} lacks {', '.join(missing) or 'config.json'}: train the target and all its drafters first")
    for path in new:
        size = (folder / path).stat().st_size
        if size > LARGEST:
            raise UserError(f"{folder / path} has {size / MIB:.1f} MiB, {LARGEST // MIB} may ship in a file; cut it: ship shard {folder}")
    total = sum((folder / path).stat().st_size for path in new)
    if total > ALL:
        raise UserError(f"{folder} comes to {total / MIB:.1f} MiB, {ALL // MIB} may ship; train a smaller preset")
    for pattern in SHIPPED:  # an old file beside new shards would be read instead of them
        for path in place.glob(pattern):
            path.unlink()
    for path in new:
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / path, place / path)
    return new


def main(arguments: list[str]) -> None:
    console = Console()
    match arguments:
        case ["fits", preset]:
            fits(preset, console)
        case ["shard", folder]:
            shard(Path(folder))
        case ["leave", folder]:
            place = targets.shipped_folder()
            console.print(*(place / path for path in leave(Path(folder), place)), sep="\n", markup=False, soft_wrap=True)
        case _:
            raise UserError("ship takes one of: fits PRESET, shard FOLDER, leave FOLDER")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
