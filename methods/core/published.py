"""Drafters that others published: their folder as it is on disk, read without running anything in it.

A method whose drafters are published has in its file, beside ``Module`` and ``build``,

    def published(checkpoint: Checkpoint, target: PreTrainedModel) -> Trained[Module]

which builds the module that ``checkpoint.config`` describes for that target and gives it its tensors by
``checkpoint.fitted``, which accounts for every one. The loader (specbench/targets/drafters.py) finds it by that name and
brings the module to the target's device and dtype. ``target`` is there for its config and its embedding.
"""

import json
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Self, TypeVar, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from methods.core.errors import UserError
from methods.core.policies import Choice
from methods.core.weights import Trained, fit, sha256_of

CONFIG = "config.json"
# The first that a folder has are its weights. By name, since training leaves other pickles beside them (training_args.bin).
WEIGHTS = ("model*.safetensors", "*_lm_head.safetensors", "pytorch_model*.bin", "*_lm_head.pt")
EMBEDDING = "embed_tokens.weight"
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, struct.error)

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Checkpoint:
    """A published drafter: its ``config.json`` and its tensors, on the CPU, dtype as stored, under the names of its files.

    ``source`` is what the user or the table calls it; ``sha256`` is of the weight files alone.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    sha256: str
    source: str

    @classmethod
    def read(cls, path: Path, source: str) -> Self:
        """A folder, or one of its weight files. Raises UserError for what is missing, damaged or more than tensors."""
        folder = path if path.is_dir() else path.parent
        config = _config(folder / CONFIG, source)
        files = _weight_files(folder, source) if path.is_dir() else [path]
        tensors: dict[str, Tensor] = {}
        for file in files:
            found = _tensors(file)
            twice = sorted(tensors.keys() & found)
            if twice:
                raise UserError(f"drafter weights {source} hold {twice[0]} in more than one file; keep one set of weight files there")
            tensors |= found
        return cls(config, tensors, sha256_of(files), source)

    def number(self, key: str, default: int, most: int) -> int:
        """A whole number of the config, 1 to ``most``."""
        value = self.config.get(key, default)
        if type(value) is not int or not 1 <= value <= most:
            raise UserError(f"{CONFIG} of drafter {self.source} has {key}={value!r}; it must be 1 to {most}")
        return value

    def sharing(self, target: PreTrainedModel) -> "Checkpoint":
        """Without ``embed_tokens.weight`` where that is the target's own, in the target's dtype."""
        own, theirs = cast(Tensor, target.get_input_embeddings().weight), self.tensors.get(EMBEDDING)
        if theirs is None or theirs.shape != own.shape or not torch.equal(theirs.to(own.device, own.dtype), own):
            return self
        return replace(self, tensors={name: tensor for name, tensor in self.tensors.items() if name != EMBEDDING})

    def fitted(self, module: M, named: Callable[[str], str], template: tuple[Choice, ...] = ()) -> Trained[M]:
        """The module with these tensors, ``named`` as in ``weights.fit``, dtype as stored, and its published static tree.

        Raises UserError listing every tensor that is missing, unexpected or misshapen, by its name in the file.
        """
        fit(module, self.tensors, self.source, named)
        return Trained(module.eval().requires_grad_(False), (), self.sha256, self.source, template)


def _config(path: Path, source: str) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"drafter {source} has no {CONFIG} in {path.parent}; give the folder it was published as, or its hub id")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); fetch it again") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a JSON object; fetch it again")
    return config


def _weight_files(folder: Path, source: str) -> list[Path]:
    for pattern in WEIGHTS:
        if files := sorted(folder.glob(pattern)):
            return files
    raise UserError(f"drafter {source} has none of {', '.join(WEIGHTS)} in {folder}; fetch its weights, or name the file itself")


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))
        reason = f"its pickle asks for {wanted[1]}, which is no tensor and is not run" if wanted else "it is no sound pickle"
        raise UserError(f"drafter weights {path} cannot be read: {reason}; get them as safetensors") from None
    except (*UNREADABLE, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"drafter weights {path} cannot be read ({reason}); fetch them again") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) and isinstance(each, Tensor) for name, each in found.items()):
        raise UserError(f"drafter weights {path} are not a mapping of names to tensors, which is what is published; fetch them again")
    return found
