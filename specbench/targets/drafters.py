"""Which drafter an arm gets, and how it is read: weights trained here, what others published, or an ordinary model."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods.core import weights
from methods.core.errors import UserError
from methods.core.published import CONFIG, Checkpoint
from methods.core.weights import Trained
from methods.registry import Method, Resolved
from specbench.targets import checkpoint, families, hub
from specbench.targets.widen import fill

if TYPE_CHECKING:
    from specbench.targets import Loaded

FILES = (".safetensors", ".pt", ".bin")  # what ends so is a file, whether it is there or not; all else a folder or a hub id


def place(target: "Loaded", resolved: Resolved) -> str | None:
    """The file, folder or hub id of an arm's drafter; None where it needs none or none is known.

    The user's own for this arm goes first, then that for its kind, the target folder's, and the table's.
    """
    kind = resolved.method.weights
    if kind is None:
        return None
    beside = target.folder / "drafters" / f"{kind}.safetensors"
    given = target.drafter_files.get(resolved.arm) or target.drafter_files.get(kind) or (beside if beside.is_file() else None)
    return str(given) if given else families.drafter_of(target.name, kind)


def load(target: "Loaded", method: Method, source: str) -> Trained:
    """The drafter at a ``place``, in the target's dtype on its device. Raises UserError for what is none, or none for this target."""
    assert method.weights is not None, "this method needs no drafter"
    if method.model:
        return draft_model(target, source)
    code: Any = importlib.import_module(method.module)
    path = Path(source) if source.endswith(FILES) else hub.folder(source, what=f"{method.weights} drafter")
    if source.endswith(FILES) and not path.is_file():
        raise UserError(f"{method.weights} drafter {source} does not exist; give a file, a folder or a hub id")
    foreign = path.suffix != ".safetensors" or ((path.parent / CONFIG).is_file() and not weights.is_ours(path))
    trained = _published(target, method.weights, code, path, source) if foreign else _own(target, method.weights, code, path)
    told = str(path.relative_to(target.folder)) if path.is_relative_to(target.folder) else source
    return replace(trained, module=weights.settled(trained.module, target.model.device, target.model.dtype), source=told)


def _own(target: "Loaded", kind: str, code: Any, path: Path) -> Trained:
    inner = target.model if target.small is None else target.small
    trained = weights.load(path, kind, code.Module, code.Architecture, inner.config)
    trained_for = weights.about(path).get("target_sha256")
    if trained_for != target.weights_sha256:
        raise UserError(
            f"drafter weights {path} were trained for another target (sha256 {str(trained_for)[:12]}, this one is "
            f"{target.weights_sha256[:12]}); train them with: specbench train {kind} --target {target.name}"
        )
    if target.small is None:
        return trained
    with torch.device(target.model.device):
        wide = weights.settled(code.Module(target.model.config, trained.module.architecture), target.model.device, target.model.dtype)
    fill(wide, trained.module, target.model.config, inner.config, seed=1)
    return replace(trained, module=wide.eval().requires_grad_(False))


def _published(target: "Loaded", kind: str, code: Any, path: Path, source: str) -> Trained:
    if not hasattr(code, "published"):
        raise UserError(f"no published layout of {kind} is known, so {source} cannot be read; pass a file made by: specbench train {kind}")
    if target.small is not None:
        raise UserError(
            f"{target.name} is cost-matched: it takes drafters of the small model inside, and {source} is published for a real one; "
            "run that one, --target FOLDER or HUB_ID"
        )
    read = Checkpoint.read(path, source)
    base = str(read.config.get("base_model_name_or_path") or "")
    if base and Path(base).name.lower() not in (Path(target.name).name.lower(), target.folder.name.lower()):
        print(f"warning: {kind} drafter {source} says it is for {base!r}, and the target is {target.name}", file=sys.stderr)
    try:
        return code.published(read, target.model)
    except (TypeError, KeyError, ValueError, ArithmeticError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{kind} drafter {source}: no drafter can be built as its {CONFIG} says ({reason}); mend it") from None


def draft_model(target: "Loaded", source: str) -> Trained[PreTrainedModel]:
    """An ordinary model with the target's tokens, in its dtype on its device. Raises UserError where it is none."""
    folder = hub.folder(source, what="draft model")
    with checkpoint.readable(folder, "draft model"):
        config = checkpoint.config(folder, target.model.config._attn_implementation, "draft model")
        _check_tokens(target, checkpoint.tokenizer(folder, legacy=families.family_of(target.name).legacy), source)
        model = checkpoint.model(folder, config, target.model.dtype)
        sha256 = checkpoint.sha256(folder)
    return Trained(model.to(target.model.device), (), sha256, source)  # type: ignore[arg-type]  # transformers hides the argument


def _check_tokens(target: "Loaded", tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Raise UserError where an id means another token; either may have some that the other lacks."""
    own, theirs = ({number: token for token, number in each.get_vocab().items()} for each in (target.tokenizer, tokenizer))
    common = own.keys() & theirs.keys()
    differing = [number for number in sorted(common) if own[number] != theirs[number]]
    if differing:
        first = differing[0]
        raise UserError(
            f"draft model {source} has another tokenizer than {target.name}: of {len(common)} ids {len(differing)} differ, the first "
            f"is {first}, {theirs[first]!r} there and {own[first]!r} here; choose a model with the target's tokenizer"
        )
