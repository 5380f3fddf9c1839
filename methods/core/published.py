"""Published drafters: their folder as it is on disk, read without running anything in it.

A method whose drafters are published has in its file, beside ``Module`` and ``build``,

    def published(checkpoint: Checkpoint, target: PreTrainedModel) -> Trained[Module]

It checks the keys of ``checkpoint.config`` (``methods.core.published_keys``), builds the module that the
config describes for that target and gives it its tensors by ``checkpoint.fitted``, which accounts for
every tensor. It uses the target's config and embedding.
The caller finds the function by its name and moves the module to the target's device and dtype.
"""

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
from methods.core.json_text import parse_json
from methods.core.policies import Choice
from methods.core.published_keys import CONFIG
from methods.core.weights import Trained, fit, sha256_of

# A folder's weights are the first of these patterns that matches. Patterns are needed because training
# leaves other pickles in the folder (training_args.bin).
WEIGHTS = ("model*.safetensors", "*_lm_head.safetensors", "pytorch_model*.bin", "*_lm_head.pt")
EMBEDDING = "embed_tokens.weight"
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError, struct.error)

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Checkpoint:
    """A published drafter: its ``config.json`` and its tensors.

    Tensors are on the CPU, in the dtype and under the names they are stored with. ``source`` is the
    name it was asked for by; ``sha256`` covers the weight files alone.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    sha256: str
    source: str

    @classmethod
    def read(cls, path: Path, source: str) -> Self:
        """Read a folder, or one weight file in its folder.

        Raises UserError for a file that is missing, damaged or holds more than tensors.
        """
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
        """Return a whole number of the config, or the default. Raises UserError unless it is 1 to ``most``."""
        value = self.config.get(key)
        value = default if value is None else value
        if type(value) is not int or not 1 <= value <= most:
            raise UserError(f"{CONFIG} of drafter {self.source} has {key}={value!r}; it must be 1 to {most}")
        return value

    def flag(self, key: str, default: bool = False) -> bool:
        """Return a boolean of the config, or the default. Raises UserError for another value."""
        value = self.config.get(key)
        if value is not None and type(value) is not bool:
            raise UserError(f"{CONFIG} of drafter {self.source} has {key}={value!r}; it must be true or false")
        return default if value is None else value

    def sharing(self, target: PreTrainedModel) -> "Checkpoint":
        """Return it without ``embed_tokens.weight`` if that equals the target's, in the target's dtype."""
        own, theirs = cast(Tensor, target.get_input_embeddings().weight), self.tensors.get(EMBEDDING)
        if theirs is None or theirs.shape != own.shape or not torch.equal(theirs.to(own.device, own.dtype), own):
            return self
        return replace(self, tensors={name: tensor for name, tensor in self.tensors.items() if name != EMBEDDING})

    def fitted(self, module: M, named: Callable[[str], str], template: tuple[Choice, ...] = ()) -> Trained[M]:
        """Return the module with these tensors, in the dtype as stored.

        ``named`` is as in ``weights.fit``; ``template`` is the published static tree. Raises
        UserError listing every tensor that is missing, unexpected or misshapen, by its name in the
        file.
        """
        fit(module, self.tensors, self.source, named)
        return Trained(module.eval().requires_grad_(False), (), self.sha256, self.source, template)


def _config(path: Path, source: str) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"drafter {source} has no {CONFIG} in {path.parent}; give the folder it was published as, or its hub id")
    try:
        config = parse_json(path.read_bytes())
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
