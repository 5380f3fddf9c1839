"""The architecture of the drafter to train: its options as given, with the defaults for a target's vocabulary."""

import importlib
from collections.abc import Mapping
from dataclasses import fields, replace
from types import ModuleType
from typing import Any

import torch
from transformers import PreTrainedConfig

from methods.core.errors import UserError, unknown
from methods.registry import METHODS, parse_option
from specbench import targets
from specbench.targets.widen import SHAPES
from specbench.train.recipe import Job

KINDS = sorted({row.weights for row in METHODS.values() if row.weights and not row.model})
LARGE_VOCABULARY = 32_000  # tokens of a target, above which its drafters have a draft vocabulary
DRAFT_VOCABULARY = 8192  # tokens


def resolve_drafter(job: Job) -> tuple[ModuleType, Any]:
    """Return the code of the drafter to train, and its architecture as given. Raises UserError for one that cannot be trained."""
    if job.kind not in KINDS:
        raise unknown("trainable method", job.kind, [*KINDS, "target"])
    if job.target in SHAPES:
        raise UserError(
            f"{job.target} is a cost-matched target, whose drafters are those of {targets.SHIPPED}; pass --target {targets.SHIPPED}"
        )
    code = importlib.import_module(next(row.module for row in METHODS.values() if row.weights == job.kind))
    return code, _parsed(code.Architecture(), job.kind, job.options)


def with_defaults(architecture: Any, given: Mapping[str, str], vocabulary: int) -> Any:
    """Return the architecture for a target of ``vocabulary`` tokens; options that were ``given`` stay.

    Above ``LARGE_VOCABULARY`` tokens it has a draft vocabulary of ``DRAFT_VOCABULARY``. With one, it guesses by the
    target's output matrix: its own over so many tokens would be most of its weights.
    """
    if vocabulary <= LARGE_VOCABULARY:
        return architecture
    if "vocabulary" not in given:
        architecture = replace(architecture, vocabulary=DRAFT_VOCABULARY)
    if architecture.vocabulary and hasattr(architecture, "output") and "output" not in given:
        architecture = replace(architecture, output="target")
    return architecture


def lookahead_of(code: ModuleType, architecture: Any, config: PreTrainedConfig) -> int:
    """Return how many tokens a training position of such a drafter needs after it. Raises UserError where it does not fit the target."""
    with torch.device("meta"):
        return int(code.Module(config, architecture).lookahead)


def _parsed(default: Any, kind: str, options: Mapping[str, str]) -> Any:
    types = {option.name: option.type for option in fields(default)}
    for key in options:
        if key not in types:
            raise unknown(f"training option of {kind}", key, types)
    return replace(default, **{key: parse_option(kind, key, text, types[key]) for key, text in options.items()})
