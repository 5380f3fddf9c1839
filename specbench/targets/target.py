"""Loading of a target by name, folder or hub id, and of the drafters that go with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import as_file, files
from pathlib import Path

import torch
from transformers.utils import logging

from methods import registry
from methods.core.acceptance import AcceptanceRule
from methods.core.attention import KERNELS
from methods.core.decode import Drafter
from methods.core.errors import UserError, unknown
from methods.core.target import Target
from methods.core.weights import Trained
from methods.registry import Resolved
from specbench.targets import checkpoint, drafters, families, hub, placement
from specbench.targets.chat import Chat
from specbench.targets.model import TargetModel
from specbench.targets.placement import DTYPES, use_device, within_memory
from specbench.targets.widen import SHAPES, widened

SHIPPED = "tiny"
TARGETS = (SHIPPED, *SHAPES)


@dataclass(frozen=True)
class Loaded(TargetModel):
    """A target on its device with the drafters trained for it, which are loaded when first needed."""

    # By kind and source: methods that use the same weights share them in memory.
    _drafters: dict[str, Trained] = field(default_factory=dict)

    def drafter_for(self, resolved: Resolved) -> Trained | None:
        """Return the drafter of an arm, on the target's device; None where the arm needs none or has none."""
        source = drafters.locate(self, resolved)
        if source is None:
            return None
        key = f"{resolved.method.weights}={source}"
        if key not in self._drafters:
            self._drafters[key] = drafters.load(self, resolved.method, source)
        return self._drafters[key]

    def build(self, resolved: Resolved, target: Target) -> tuple[Drafter, AcceptanceRule]:
        """Build an arm on a target of this model. Raises UserError, with the next step, for weights that are missing or do not fit."""
        with drafters.with_next_step():
            return registry.build(resolved, target, self.drafter_for(resolved))


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
    stops: Sequence[str] = (),
) -> Loaded:
    """Load a target by name, folder or hub id.

    ``template`` None is the model family's; see ``chat.Chat`` for the prompt and ``placement.device_map``
    for spreading a target over devices. ``stops`` are tokens that end an answer beside the target's own.
    Raises UserError, before any weights are read, for anything
    that does not exist, does not fit together, or cannot be a target.
    """
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, DTYPES)
    if attention not in KERNELS:
        raise unknown("attention", attention, KERNELS)
    use_device(device)
    if name in TARGETS and (revision or device_map):
        raise UserError(f"target {name} is built here; leave {'--revision' if revision else '--device-map'} out")

    logging.disable_progress_bar()
    folder = _find_folder(name, revision)
    family = families.family_of(name)
    with checkpoint.readable(f"target folder {folder}"):
        config = checkpoint.load_config(folder, attention)
        tokenizer = checkpoint.load_tokenizer(folder, legacy=family.legacy)
    if tokenizer.vocab_size > config.vocab_size:  # added tokens may lie beyond; a prompt that holds one is refused
        raise UserError(f"tokenizer of {folder} has {tokenizer.vocab_size} tokens, its model {config.vocab_size}: they are not a pair")
    chat = Chat(tokenizer, template or family.template, system_prompt, thinking, config.vocab_size)

    with within_memory(name, dtype, device):
        devices = placement.device_map(device_map, config, DTYPES[dtype], device) if device_map else None
        with checkpoint.readable(f"target folder {folder}"):
            model = checkpoint.load_model(folder, config, torch.float32 if name in SHAPES else DTYPES[dtype], devices)
            sha256 = checkpoint.sha256(folder)
        loaded = Loaded(name, model, chat, folder, sha256, drafter_files=drafter_files or {}, stops=stops)
        loaded.check_prompt_end()

        if name in SHAPES:
            return replace(loaded, model=widened(model, SHAPES[name], name, device=device, dtype=DTYPES[dtype]), small=model)
        if devices:
            placement.remove_hooks(model)
        else:
            model.to(device)  # type: ignore[arg-type]  # transformers' wrapper hides the argument
        return replace(loaded, revision=folder.name if hub.is_id(name) else None)


def _find_folder(name: str, revision: str | None) -> Path:
    """Return a target's folder, downloading it where necessary."""
    if name not in TARGETS and not hub.is_id(name) and not Path(name).is_dir():
        if Path(name).is_absolute():
            raise UserError(f"target folder {name} does not exist; put it back, or name the target by --target")
        raise unknown("target", name, (*TARGETS, "a folder", "a hub id"), families.hub_ids())
    folder = shipped_folder() if name in TARGETS else hub.fetch_folder(name, revision)
    if not (folder / "config.json").is_file():
        if name in TARGETS:
            raise UserError(f"the shipped target is missing from {folder}; reinstall specbench")
        raise UserError(
            f"target folder {folder} holds no config.json; give a whole transformers checkpoint, a hub id or a target that ships"
        )
    return folder


def shipped_folder() -> Path:
    """Return the folder of the target that ships in the package."""
    with as_file(files("specbench.targets") / SHIPPED) as folder:
        return folder
