"""Descriptions of a run for reports and the terminal: its target, its processor, and the conditions it was made under."""

import json
from collections.abc import Sequence
from math import isnan
from pathlib import Path

from specbench.config.options import RunConfig
from specbench.store.manifest import COST_MATCHED, ArmFacts, RunManifest, TargetFacts

UNKNOWN = "unknown"
RECONSTRUCTION = "(reconstruction)"


def cost_matched(manifests: Sequence[RunManifest]) -> list[str]:
    """Return the sentence that must come first if any run's target is a cost-matched one, else nothing."""
    names = dict.fromkeys(target_name(m) for m in manifests if m.target.label == COST_MATCHED)
    if not names:
        return []
    return [
        f"Cost-matched target {', '.join(names)}: wall-clock and step costs are real for that shape on this device, "
        "acceptance is that of the small embedded model."
    ]


def short_name(name: str, revision: str | None) -> str:
    """Return a target's name: a hub id, which has a revision, as it is; a local folder by the last part of its path."""
    return Path(name).name if revision is None else name


def target_name(manifest: RunManifest) -> str:
    """Return the name of a run's target, without the path of a local folder."""
    return short_name(manifest.target.name, manifest.settings.revision)


def target(manifest: RunManifest) -> str:
    """Return the target's name, with its label if it has one."""
    label = manifest.target.label
    return f"{target_name(manifest)}{f' ({label})' if label else ''}"


def arm_label(facts: ArmFacts) -> str:
    """Return an arm's title, followed by another engine's name, and by whether it is a reconstruction, keeps state, or is lossy."""
    title = f"{facts.title} (different engine: {facts.engine})" if facts.engine else facts.title
    if facts.reconstruction and RECONSTRUCTION not in title:
        title = f"{title} {RECONSTRUCTION}"
    if facts.state:
        title = f"{title} (keeps state)"
    return title if facts.lossless is not False else f"{title} (lossy: {facts.acceptance})"


def processor(manifest: RunManifest) -> str:
    """Return the device, with the model of its GPU or CPU."""
    chip = manifest.environment.gpu or manifest.environment.cpu
    return f"{manifest.settings.device}{f' ({chip})' if chip else ''}"


def conditions(manifest: RunManifest) -> list[tuple[str, str]]:
    """Return how the run was made: pairs of a name and its value as text."""
    settings, loaded, environment, suite = manifest.settings, manifest.target, manifest.environment, manifest.suite
    restriction = "".join(f", {name} {value:g}" for name, value in settings.restricted.items())
    choice = f", {settings.limit} a category" if settings.limit else ""
    categories = ", ".join(f"{name} {count}" for name, count in suite.categories.items())
    parameters = f"{loaded.parameters:,}" if loaded.parameters else UNKNOWN
    limit, seed = (UNKNOWN, UNKNOWN) if manifest.imported else (str(settings.max_new_tokens), str(settings.seed))
    temperature = UNKNOWN if isnan(settings.temperature) else f"{settings.temperature:g}"
    history = "vanilla" if settings.turns == "shared" else "the arm"
    threads = UNKNOWN if environment.threads is None else environment.threads
    versions = {name: getattr(environment, name) for name in ("python", "torch", "transformers", "driver")}

    facts = {
        "Target": f"{target(manifest)}, {parameters} parameters",
        "Weights": f"sha256 {loaded.weights_sha256}{f', commit {settings.revision} of the hub' if settings.revision else ''}",
        "Prompts": f"template {settings.template}, sha256 {manifest.template_sha256}{_template_changes(settings)}",
        "Suite": f"{suite.name}{choice}, sha256 {suite.sha256}; questions: {categories}",
        "Sampling": f"temperature {temperature}{restriction}, at most {limit} tokens a turn, seed {seed}, "
        f"{settings.repeats} repeat(s), second turns see {history}'s first answer",
        "Arithmetic": f"{settings.dtype} on {processor(manifest)}{_layer_placement(loaded)}, attention {settings.attention}, "
        f"back end {settings.backend}, {threads} threads" + (f" in each of {environment.workers} workers" if environment.workers else ""),
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items() if version),
        "Code": f"{manifest.git.sha or 'no checkout'}{', with local changes' if manifest.git.dirty else ''}",
        "Command": " ".join(["specbench", *_shown_arguments(manifest)]),
        "Begun": manifest.created + (f", resumed {len(manifest.resumed)} time(s)" if manifest.resumed else ""),
    }
    return [*facts.items(), *((name, _arm(arm)) for name, arm in manifest.arms.items())]


def _shown_arguments(manifest: RunManifest) -> list[str]:
    """Return the command's arguments; absolute paths are cut to their last part."""
    return [_last_part(argument) for argument in manifest.argv]


def _last_part(argument: str) -> str:
    """Return an argument whose absolute path, alone or after "=", is cut to its last part."""
    before, sign, path = argument.rpartition("=")
    return f"{before}{sign}{Path(path).name}" if path.startswith(("/", "~")) else argument


def _arm(arm: ArmFacts) -> str:
    """Return an arm's options, acceptance rule, weights, and engine."""
    weights = f", weights {arm.weights_sha256}" if arm.weights_sha256 else ""
    engine = f", different engine: {arm.engine}" if arm.engine else ""
    return f"{json.dumps(arm.config)}, acceptance {arm.acceptance}{weights}{engine}"


def _template_changes(settings: RunConfig) -> str:
    """Return the settings that replace the prompt template's defaults."""
    system = "" if settings.system_prompt is None else f", system prompt {json.dumps(settings.system_prompt)}"
    return system + (f", thinking {settings.thinking}" if settings.thinking else "")


def _layer_placement(facts: TargetFacts) -> str:
    """Return the number of layers on each device, for a target on several devices."""
    layers = facts.layers
    return f", layers by device: {', '.join(f'{count} on {device}' for device, count in layers.items())}" if len(layers) > 1 else ""
