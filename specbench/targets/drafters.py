"""The drafter of an arm, located and loaded: weights trained by specbench, published weights, or an ordinary model."""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods.core import weights
from methods.core.errors import UserError, WeightsError
from methods.core.published import Checkpoint
from methods.core.published_keys import CONFIG
from methods.core.weights import Trained
from methods.registry import METHODS, Method, Resolved
from specbench.targets import checkpoint, families, hub
from specbench.targets.model import TargetModel
from specbench.targets.widen import fill
from specbench.util.terminal import tell

FILES = (".safetensors", ".pt", ".bin")  # endings of files; any other source is a folder or a hub id
RENAMED = 0.01  # share of the ids whose tokens may be named otherwise by a draft model: special tokens, not another tokenizer


def locate(target: TargetModel, resolved: Resolved) -> str | None:
    """Return the file, folder or hub id of an arm's drafter; None where the arm needs none or none is known.

    In this order: the user's drafter for the arm, the user's for its kind, the one in the target's
    folder, and the one that the table of families lists.
    """
    kind = resolved.method.weights
    if kind is None:
        return None

    beside = target.folder / "drafters" / f"{kind}.safetensors"
    source = target.drafter_files.get(resolved.arm) or target.drafter_files.get(kind) or (beside if beside.is_file() else None)
    return str(source) if source else families.drafter_of(target.name, kind)


def load(target: TargetModel, method: Method, source: str) -> Trained:
    """Load the drafter at ``source`` in the target's dtype on its device.

    Raises UserError where there is no drafter, or none for this target.
    """
    assert method.weights is not None, "this method needs no drafter"
    if method.model:
        return load_draft_model(target, source)

    code: Any = importlib.import_module(method.module)
    path = Path(source) if source.endswith(FILES) else hub.fetch_folder(source, what=f"{method.weights} drafter")
    if source.endswith(FILES) and not path.is_file():
        raise UserError(f"{method.weights} drafter {source} does not exist; give a file, a folder or a hub id")

    published = path.suffix != ".safetensors" or ((path.parent / CONFIG).is_file() and not weights.is_ours(path))
    trained = _load_published(target, method.weights, code, path, source) if published else _load_own(target, method.weights, code, path)
    shown = str(path.relative_to(target.folder)) if path.is_relative_to(target.folder) else source
    return replace(trained, module=weights.settled(trained.module, target.model.device, target.model.dtype), source=shown)


@contextmanager
def with_next_step() -> Iterator[None]:
    """Add to a WeightsError how to get the weights it asks for."""
    try:
        yield
    except WeightsError as error:
        raise UserError(f"{error}; {next_step(error.kind, error.architecture)}") from None


def next_step(kind: str, architecture: Mapping[str, str] | None = None) -> str:
    """Return how to get weights of a kind: the command that trains them, the option that takes them."""
    method = next(row for row in METHODS.values() if row.weights == kind)
    given = f"--drafter {kind}=FOLDER or {kind}=HUB_ID"
    if method.model:
        return f"give one: {given}"
    options = "".join(f" --set {name}={value}" for name, value in (architecture or {}).items())
    published = f", or give published ones: {given}" if hasattr(importlib.import_module(method.module), "published") else ""
    return f"train them with: specbench train {kind}{options}{published}"


def _load_own(target: TargetModel, kind: str, code: Any, path: Path) -> Trained:
    inner = target.model if target.small is None else target.small
    with with_next_step():
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


def _load_published(target: TargetModel, kind: str, code: Any, path: Path, source: str) -> Trained:
    if not hasattr(code, "published"):
        raise UserError(f"no published layout of {kind} is known, so {source} cannot be read; pass a file made by: specbench train {kind}")
    if target.small is not None:
        raise UserError(
            f"{target.name} is cost-matched: it takes drafters of the small model inside, and {source} is published for a real one; "
            "run that one, --target FOLDER or HUB_ID"
        )

    stored = Checkpoint.read(path, source)
    base = _base_model(stored.config)
    if base and Path(base).name.lower() not in (Path(target.name).name.lower(), target.folder.name.lower()):
        tell(f"warning: {kind} drafter {source} says it is for {base!r}, and the target is {target.name}")
    try:
        return code.published(stored, target.model)
    except (TypeError, KeyError, ValueError, ArithmeticError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"{kind} drafter {source}: no drafter can be built as its {CONFIG} says ({reason}); fix it") from None


def _base_model(config: Mapping[str, Any]) -> str:
    """Return the model a published drafter says it was trained for; empty where it names none."""
    wrapped = config.get("speculators_config")
    verifier = wrapped.get("verifier") if isinstance(wrapped, dict) else None
    named = verifier.get("name_or_path") if isinstance(verifier, dict) else None
    return str(config.get("base_model_name_or_path") or named or "")


def load_draft_model(target: TargetModel, source: str) -> Trained[PreTrainedModel]:
    """Load an ordinary model as a drafter, in the target's dtype on its device.

    Raises UserError where it cannot be loaded or its tokens are not the target's.
    """
    folder = hub.fetch_folder(source, what="draft model")
    with checkpoint.readable(f"draft model folder {folder}"):
        config = checkpoint.load_config(folder, target.model.config._attn_implementation, "draft model")
        _check_tokens(target, checkpoint.load_tokenizer(folder, legacy=families.family_of(target.name).legacy), source)
        model = checkpoint.load_model(folder, config, target.model.dtype)
        sha256 = checkpoint.sha256(folder)
    return Trained(model.to(target.model.device), (), sha256, source)  # type: ignore[arg-type]  # transformers hides the argument


def _check_tokens(target: TargetModel, drafter_tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Raise UserError where more than RENAMED of the ids stand for two different tokens, and print a warning for fewer.

    Drafts are verified, so such an id costs acceptance, not losslessness. Ids that only one model has are allowed.
    """
    own, theirs = (
        {token_id: token for token, token_id in tokenizer.get_vocab().items()} for tokenizer in (target.tokenizer, drafter_tokenizer)
    )
    common = own.keys() & theirs.keys()
    differing = [token_id for token_id in sorted(common) if own[token_id] != theirs[token_id]]
    if not differing:
        return
    first = differing[0]
    what = f"of {len(common)} ids {len(differing)} differ, the first is {first}, {theirs[first]!r} there and {own[first]!r} here"
    if len(differing) > RENAMED * len(common):
        raise UserError(
            f"draft model {source} has another tokenizer than {target.name}: {what}; choose a model with the target's tokenizer"
        )
    tell(f"warning: draft model {source} names tokens otherwise than {target.name}: {what}; its drafts of these are lost")
