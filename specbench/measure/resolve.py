"""The plan of a run: its settings with defaults settled, and its arms with their options. Loads no weights."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from methods import registry
from methods.core.backend import BACKENDS, DEFAULT_BACKEND, EAGER
from methods.core.errors import UserError, unknown
from methods.registry import METHODS, Resolved
from specbench import suites, targets
from specbench.config.arm import BASELINE, Arm
from specbench.config.options import DEFAULT_METHODS, RunConfig
from specbench.engines import registry as engines
from specbench.engines.base import ResolvedEngine
from specbench.suites import Suite
from specbench.util.files import absolute

BACKEND_VARIABLE = "SPECBENCH_BACKEND"  # environment variable: the back end if --backend is not given


@dataclass(frozen=True)
class Plan:
    """A run that is ready to be loaded.

    ``config`` has every default settled, except those that are known once the target's files have been read.
    """

    config: RunConfig
    arms: dict[str, Arm]  # by name, in the order of the manifest: vanilla first, other engines last
    methods: dict[str, Resolved]  # the arms that specbench decodes
    other_engines: dict[str, ResolvedEngine]  # the other arms


def device_name(config: RunConfig, *, has_gpu: bool) -> str:
    """Return the device that was asked for, else CUDA where there is a GPU, else the CPU."""
    return config.device or ("cuda" if has_gpu else "cpu")


def backend_name(config: RunConfig) -> str:
    """Return the back end of arms that choose none in their name."""
    return config.backend or (EAGER.name if config.device_map else os.environ.get(BACKEND_VARIABLE, DEFAULT_BACKEND))


def settle(config: RunConfig) -> RunConfig:
    """Return the settings with device, back end, target, and dtype settled, and paths that hold in any folder.

    The device becomes the current one. Raises UserError for values that do not exist.
    """
    least = {
        "max-new-tokens": (config.max_new_tokens, 1),
        "repeats": (config.repeats, 1),
        "temperature": (config.temperature, 0),
        "top-k": (config.top_k, 0),
    }
    for name, (value, bound) in least.items():
        if not bound <= value < math.inf:
            raise UserError(f"--{name} is {value}; it must be at least {bound}")
    if not 0 < config.top_p <= 1:
        raise UserError(f"--top-p is {config.top_p}; it must be above 0 and at most 1")
    if config.restriction and not config.temperature:
        raise UserError(f"{config.restriction} has no effect at temperature 0; leave it out, or sample with --temperature")

    if config.turns not in ("own", "shared"):
        raise unknown("value of --turns", config.turns, ("own", "shared"))

    device = device_name(config, has_gpu=torch.cuda.is_available())
    targets.use_device(device)
    backend = backend_name(config)
    if backend not in BACKENDS:
        raise unknown("backend", backend, BACKENDS)

    return replace(
        config,
        device=device,
        backend=backend,
        target=config.target if config.target in targets.TARGETS else absolute(config.target) or targets.default_name(device),
        suite_file=config.suite_file and config.suite_file.absolute(),
        drafters={key: Path(absolute(str(source))) for key, source in config.drafters.items()},
        dtype=config.dtype or targets.default_dtype(device),
        categories=sorted(config.categories),
    )


def plan(config: RunConfig) -> Plan:
    """Settle a run and resolve its arms. Raises UserError for names and options that do not exist or do not go together."""
    config = settle(config)
    if config.tuned:
        config.tuned.check(target=config.target, dtype=config.dtype, device=config.device, backend=config.backend)

    own, others = split_arms(config)
    methods = resolve_methods(own, config)
    for name, method in methods.items():
        if config.restriction and not method.lossless:
            raise UserError(
                f"{config.restriction} has no meaning for the rule {method.acceptance} of {name}, which accepts by thresholds of its own; "
                "leave one of them out"
            )
    resolved = {arm.name: engines.resolve(arm) for arm in others}
    engines.check(list(resolved.values()), config)

    if config.device_map and any(method.backend != EAGER.name for method in methods.values()):
        raise UserError(f"--device-map needs the back end {EAGER.name} in every arm: the others prepare the target for a single device")
    stateful = [name for name, method in methods.items() if method.state]
    if stateful and config.repeats > 1:
        raise UserError(f"{stateful[0]} keeps state across questions, and a repeat would find its own answers there; leave out --repeats")

    drafter_keys = {kind for method in methods.values() if (kind := method.method.weights)} | {method.arm for method in methods.values()}
    drafter_keys |= {key for engine in resolved.values() for key in engine.drafter_keys}
    for key in config.drafters:
        if key not in drafter_keys:
            raise unknown("kind or arm in --drafter", key, drafter_keys)
    return Plan(config, {arm.name: arm for arm in (*own, *others)}, methods, resolved)


def split_arms(config: RunConfig) -> tuple[list[Arm], list[Arm]]:
    """Return the arms that specbench decodes, vanilla first and the repetition of an A/A test last, and those of other engines.

    Raises UserError for a name that is neither a method nor an engine, and for an engine in an A/A test.
    """
    named = {text: Arm.parse(text) for text in [BASELINE, *(config.methods or DEFAULT_METHODS), *([config.aa] if config.aa else [])]}
    for arm in named.values():
        if arm.method not in METHODS and arm.method not in engines.ENGINES:
            raise unknown("method", arm.method, (*METHODS, *engines.ENGINES))

    own = [arm for arm in named.values() if arm.method in METHODS]
    if config.aa:
        if named[config.aa] not in own:
            raise UserError(f"--aa {config.aa}: an A/A test repeats one of specbench's own methods, not another engine; name a method")
        own.append(named[config.aa].again())
    return own, [arm for arm in named.values() if arm.method in engines.ENGINES]


def own_arms(config: RunConfig, action: str) -> list[Arm]:
    """Return the arms of a study that takes none of another engine: specbench cannot ``action`` (profile, tune, …) its steps.

    Raises UserError for another engine, and as ``split_arms`` does.
    """
    own, others = split_arms(config)
    if others:
        raise UserError(f"{others[0].name} is another engine, whose steps specbench cannot {action}; name specbench's own methods")
    return own


def resolve_methods(arms: Sequence[Arm], config: RunConfig) -> dict[str, Resolved]:
    """Return each arm with every option settled: tuned options, then --set, then the arm's own.

    Raises UserError for unknown options, and for a key of --set that no arm has.
    """
    given = _overrides([arm for arm in arms if not arm.repeat_of], config)
    return {arm.name: resolve_arm(arm, given[arm.repeat_of or arm.name], config) for arm in arms}


def resolve_arm(arm: Arm, overrides: Mapping[str, str], config: RunConfig) -> Resolved:
    """Return an arm with every option settled. ``config`` must be settled. Raises UserError for an unknown option."""
    return registry.resolve(
        arm.method, {**overrides, **arm.options}, config.device, config.backend, arm=arm.repeat_of or arm.name, variant=arm.variant
    )


def _overrides(arms: Sequence[Arm], config: RunConfig) -> dict[str, dict[str, str]]:
    """Return the options that --config and --set give each arm, by its name. A later --set overrides an earlier one."""
    keys = {arm.name: registry.options(arm.method) for arm in arms}
    given = {arm.name: config.tuned.options(arm.method) if config.tuned else {} for arm in arms}
    for override in config.overrides:
        path, equals, value = override.partition("=")
        if not equals or not path or not value:
            raise UserError(f"--set {override!r} is not KEY=VALUE or ARM.KEY=VALUE; as in --set depth=4 or --set eagle2.depth=4")

        name, dot, key = path.rpartition(".")
        if key == "backend":
            named = f"METHOD:backend={value}"
            raise UserError(f"--set {override!r}: the back end of all arms is --backend; one arm's is named with it, {named}")
        if dot and name not in keys:
            raise unknown("arm in --set", name, keys)

        concerned = [arm for arm in ([name] if dot else keys) if key in keys[arm]]
        if not concerned:
            known = keys[name] if dot else {known_key for arm_keys in keys.values() for known_key in arm_keys}
            raise unknown(f"option of {name}" if dot else "option in --set", key, known)
        for arm in concerned:
            given[arm][key] = value
    return given


def suite_of(config: RunConfig) -> Suite:
    """Return the questions that a run asks. Raises UserError as ``suites.load`` does."""
    return suites.load(
        config.suite or ("file" if config.suite_file else "mini"),
        suite_file=config.suite_file,
        limit=config.limit,
        categories=config.categories,
        hf_columns=config.hf_columns,
    )
