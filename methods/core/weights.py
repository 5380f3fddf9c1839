"""Trained drafters on disk: one safetensors file each, described by its metadata."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn
from transformers import PreTrainedConfig

from methods.core.errors import UserError, WeightsError, unknown
from methods.core.json_text import parse_json
from methods.core.policies import Choice, StaticTree, best_choices, static_tree

FORMAT = "specbench-drafter-1"
M = TypeVar("M", bound=nn.Module)
RankAccuracy = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Trained(Generic[M]):
    """A drafter's trained module, and what was measured when it was trained.

    ``rank_accuracy[d][k]`` is how often its guess of rank k was the target's token at depth d + 1, on
    held-out text. It is empty for published weights; those that draft static trees have a published
    ``template`` instead, best drafts first.
    """

    module: M
    rank_accuracy: RankAccuracy
    sha256: str
    source: str = ""  # the file, folder or hub id of the weights
    template: tuple[Choice, ...] = ()

    def choices(self, nodes: int) -> tuple[Choice, ...]:
        """Return the ``nodes`` best drafts of a static tree, best first, or all if there are fewer.

        The result is empty for drafters that have no static tree.
        """
        return best_choices(self.rank_accuracy, nodes) if self.rank_accuracy else self.template[:nodes]

    def static_tree(self, nodes: int, tokens_U: Tensor | None = None) -> StaticTree:
        """Return the static tree of the ``nodes`` best drafts, guessed among ``tokens_U`` if not among all tokens."""
        return static_tree(self.choices(nodes)) if tokens_U is None else StaticTree(self.choices(nodes), tokens_U)


def save(path: Path, kind: str, module: nn.Module, architecture: Any, rank_accuracy: RankAccuracy, facts: dict[str, Any]) -> None:
    """Write a drafter's weights in bf16; ``facts`` are stored in the header but not used by ``load``.

    A process killed meanwhile leaves a broken file: callers write to another name first.
    """
    parameters = sum(tensor.numel() for tensor in module.state_dict().values())
    header = {"kind": kind, "architecture": asdict(architecture), "rank_accuracy": rank_accuracy, "parameters": parameters, **facts}

    tensors = {name: _in(torch.bfloat16, tensor.detach()).contiguous() for name, tensor in module.state_dict().items()}
    path.write_bytes(serialize(tensors, metadata={"format": FORMAT, "about": json.dumps(header)}))  # save_file ignores the umask


def load(path: Path, kind: str, module_type: type[M], architecture_type: type, target: PreTrainedConfig) -> Trained[M]:
    """Read a drafter of ``kind`` for a target of the given shape, in fp32 on the CPU.

    Raises WeightsError when the file is not such a drafter, and UserError naming both shapes when its
    tensors do not fit the target.
    """
    facts, tensors = _read(path, kind)
    if facts["kind"] != kind:
        raise WeightsError(f"drafter weights {path} are for {facts['kind']!r}, not {kind!r}", kind)
    module = module_type(target, _architecture(facts["architecture"], architecture_type, path))
    fit(module, tensors, str(path))
    return Trained(module.eval().requires_grad_(False), _tuples(facts["rank_accuracy"]), sha256_of([path]), str(path))


def check_readable(path: Path) -> None:
    """Raise UserError for a file that exists but may not be read, which safetensors calls missing."""
    if path.is_file() and not os.access(path, os.R_OK):
        raise UserError(f"{path} may not be read by this user; change its mode (chmod a+r), or run as its owner")


def is_ours(path: Path) -> bool:
    """Return whether a file is in this package's format; False also for a file that cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == FORMAT
    except (OSError, SafetensorError):
        return False


def settled(module: M, device: torch.device, dtype: torch.dtype) -> M:
    """Move the module to a device and its parameters to a dtype.

    Buffers keep their dtype: rotary frequencies must stay as exact as the target's.
    """
    module.to(device)
    for parameter in module.parameters():
        parameter.data = parameter.data.to(dtype)
    return module


def about(path: Path) -> dict[str, Any]:
    """Return the header of a file in this package's format."""
    return _read(path, path.stem)[0]


def _read(path: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: _in(torch.float32, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        check_readable(path)
        raise WeightsError(f"drafter weights {path} cannot be read ({error})", kind) from None
    if metadata.get("format") != FORMAT:
        raise WeightsError(f"drafter weights {path} are not in the format {FORMAT}", kind)
    return _header(metadata.get("about", ""), path, kind), tensors


def _header(text: str, path: Path, kind: str) -> dict[str, Any]:
    """Parse a file's header. Raises WeightsError naming the parts ``load`` needs that are damaged."""
    try:
        facts = parse_json(text)
    except ValueError:
        facts = None

    facts = facts if isinstance(facts, dict) else {}
    sound = {
        "kind": isinstance(facts.get("kind"), str),
        "architecture": isinstance(facts.get("architecture"), dict),
        "rank_accuracy": _is_rank_accuracy(facts.get("rank_accuracy")),
    }

    damaged = [name for name, ok in sound.items() if not ok]
    if damaged:
        raise WeightsError(f"drafter weights {path} have a damaged header (invalid or missing: {', '.join(damaged)})", kind)
    return facts


def _is_rank_accuracy(rows: Any) -> bool:
    """Return whether it is a list of non-empty lists of shares between 0 and 1."""
    return (
        isinstance(rows, list)
        and bool(rows)
        and all(isinstance(row, list) and row for row in rows)
        and all(isinstance(share, int | float) and 0 <= share <= 1 for row in rows for share in row)
    )


def _architecture(stored: dict[str, Any], architecture_type: type, path: Path) -> Any:
    types = {field.name: field.type for field in fields(architecture_type)}
    for key, value in stored.items():
        if key not in types:
            raise UserError(f"drafter weights {path}: {unknown('architecture option', key, types)}")
        choices = get_args(types[key])
        if value not in choices if choices else type(value) is not types[key]:
            raise UserError(f"drafter weights {path} have {key}={value!r}, which is no {key} of this architecture; train them again")
    try:
        return architecture_type(**stored)
    except UserError as error:
        raise UserError(f"drafter weights {path}: {error}") from None


def fit(module: nn.Module, tensors: Mapping[str, Tensor], source: str, named: Callable[[str], str] = str) -> None:
    """Load tensors into a module, in the dtype they have.

    ``named`` maps a tensor's name in the module to its name in the file. Raises UserError listing
    every tensor that is missing, unexpected or misshapen.
    """
    own = {named(name): (name, tuple(tensor.shape)) for name, tensor in module.state_dict().items()}
    wrong = [f"{name} {own[name][1]} is missing" for name in own if name not in tensors]
    for name, tensor in tensors.items():
        shape = tuple(tensor.shape)
        if name not in own:
            wrong.append(f"{name} {shape} is unexpected")
        elif own[name][1] != shape:
            wrong.append(f"{name} is {shape}, the target needs {own[name][1]}")
    if wrong:
        raise UserError(f"drafter weights {source} do not fit the target: {'; '.join(sorted(wrong))}; use weights trained for this target")
    module.load_state_dict({own[name][0]: tensor for name, tensor in tensors.items()}, assign=True)


def sha256_of(files: Iterable[Path]) -> str:
    """Return the SHA-256 of the concatenated files; of a single file, the output of ``sha256sum``."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _in(dtype: torch.dtype, tensor: Tensor) -> Tensor:
    """Convert a floating-point tensor to a dtype; return others, such as token ids, unchanged."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _tuples(rows: list[list[float]]) -> RankAccuracy:
    return tuple(tuple(row) for row in rows)
