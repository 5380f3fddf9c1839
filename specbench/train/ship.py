"""The command ``python -m specbench.train.ship``: prepare a trained target for the package, within the package's size limits.

``fits PRESET`` checks before training whether the preset and its drafters will fit. ``shard FOLDER`` splits the trained weights
into small enough files; do so before training drafters, which are bound to the hash of these files. ``install FOLDER`` copies the
target and its drafters into the package.
"""

import importlib
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from methods.core.errors import UserError, unknown
from methods.registry import METHODS, SHIPPED_WEIGHTS
from specbench import targets
from specbench.train.target import PRESETS, llama_config
from specbench.util.exits import exit_codes
from specbench.util.terminal import Console

MIB = 2**20
MAX_FILE, MAX_TOTAL = 15 * MIB, 40 * MIB  # bytes of a file, and of everything that ships
SHARD_SIZE = "14MB"
SHIPPED_FILES = ("*.json", "*.jinja", "*.md", "*.safetensors", "drafters/*.safetensors")
UNSHARDED = "model.safetensors"


def check_fits(preset: str, console: Console) -> None:
    """Print the size of a preset's target and drafters in bf16. Raises UserError where it is too large to ship."""
    if preset not in PRESETS:
        raise unknown("target preset", preset, PRESETS)
    sizes = {name: 2 * count for name, count in count_parameters(preset).items()}
    total = sum(sizes.values())
    parts = ", ".join(f"{name} {size / MIB:.1f}" for name, size in sizes.items())
    summary = f"preset {preset} in bf16: {parts}; {total / MIB:.1f} MiB in all, {MAX_TOTAL // MIB} may ship"
    if total > MAX_TOTAL:
        raise UserError(f"{summary}; give it fewer layers, or train it without shipping: specbench train target --preset {preset}")
    console.print(summary, markup=False, soft_wrap=True)


def count_parameters(preset: str) -> dict[str, int]:
    """Return the number of parameters of a preset's target and of each shipped kind of drafter."""
    tokenizer: Any = AutoTokenizer.from_pretrained(targets.shipped_folder())
    config = llama_config(PRESETS[preset], tokenizer)
    with torch.device("meta"):
        modules: dict[str, Any] = {"target": AutoModelForCausalLM.from_config(config)}
        for kind in SHIPPED_WEIGHTS:
            code = importlib.import_module(next(row.module for row in METHODS.values() if row.weights == kind))
            modules[kind] = code.Module(config, code.Architecture())
    return {name: sum(parameter.numel() for parameter in module.parameters()) for name, module in modules.items()}


def shard(folder: Path) -> None:
    """Split weights in one too large file into several; the same weights give the same files."""
    unsharded = folder / UNSHARDED
    if not unsharded.is_file() or unsharded.stat().st_size <= MAX_FILE:
        return

    with safe_open(unsharded, framework="pt") as file:
        dtype = file.get_tensor(next(iter(file.keys()))).dtype
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    model.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    unsharded.unlink()


def install(folder: Path, destination: Path) -> list[Path]:
    """Replace the shipped files in ``destination`` by those of ``folder``, and return them.

    Raises UserError, before anything is changed, if they are incomplete or too large.
    """
    new = [path.relative_to(folder) for pattern in SHIPPED_FILES for path in sorted(folder.glob(pattern))]
    missing = [kind for kind in SHIPPED_WEIGHTS if Path("drafters", f"{kind}.safetensors") not in new]
    if missing or Path("config.json") not in new:
        raise UserError(f"{folder} lacks {', '.join(missing) or 'config.json'}: train the target and all its drafters first")

    for path in new:
        size = (folder / path).stat().st_size
        if size > MAX_FILE:
            raise UserError(
                f"{folder / path} has {size / MIB:.1f} MiB, {MAX_FILE // MIB} may ship in a file; "
                f"split it: python -m specbench.train.ship shard {folder}"
            )
    total = sum((folder / path).stat().st_size for path in new)
    if total > MAX_TOTAL:
        raise UserError(f"{folder} comes to {total / MIB:.1f} MiB, {MAX_TOTAL // MIB} may ship; train a smaller preset")

    for pattern in SHIPPED_FILES:  # an old weight file would be read in place of new shards
        for path in destination.glob(pattern):
            path.unlink()
    for path in new:
        (destination / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / path, destination / path)
    return new


def main(arguments: list[str]) -> None:
    """Run the command. Raises UserError for unknown arguments."""
    console = Console()
    match arguments:
        case ["fits", preset]:
            check_fits(preset, console)
        case ["shard", folder]:
            shard(Path(folder))
        case ["install", folder]:
            destination = targets.shipped_folder()
            console.print(*(destination / path for path in install(Path(folder), destination)), sep="\n", markup=False, soft_wrap=True)
        case _:
            raise UserError("ship takes one of: fits PRESET, shard FOLDER, install FOLDER")


if __name__ == "__main__":
    with exit_codes():
        main(sys.argv[1:])
