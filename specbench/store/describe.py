"""What is said of a run wherever it is shown: its target's label, its processor, and how it was made."""

import json
from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

from specbench.store.manifest import RunManifest, Settings

COST_MATCHED = "cost-matched"
UNKNOWN = "unknown"


def cost_matched(manifests: Sequence[RunManifest]) -> list[str]:
    """The sentence that must come first when any run's target is a cost-matched one."""
    names = dict.fromkeys(str(m.target.get("name", m.settings.target)) for m in manifests if m.target.get("label") == COST_MATCHED)
    if not names:
        return []
    return [
        f"Cost-matched target {', '.join(names)}: wall-clock and round costs are real for that shape on this device, "
        "acceptance is that of the small embedded model."
    ]


def target(manifest: RunManifest) -> str:
    label = manifest.target.get("label")
    return f"{manifest.target.get('name', manifest.settings.target)}{f' ({label})' if label else ''}"


def processor(manifest: RunManifest) -> str:
    chip = manifest.environment.get("gpu") or manifest.environment.get("cpu")
    return f"{manifest.settings.device}{f' ({chip})' if chip else ''}"


def conditions(manifest: RunManifest) -> list[tuple[str, str]]:
    """How the run was made: names and facts."""
    asked, made_for, place = manifest.settings, manifest.target, manifest.environment
    choice = f", {asked.limit} a category" if asked.limit else ""
    parameters = f"{made_for['parameters']:,}" if made_for.get("parameters") else UNKNOWN
    limit, seed = (UNKNOWN if fact is None else fact for fact in (asked.max_new_tokens, asked.seed))  # imported answers have none
    temperature = UNKNOWN if isnan(asked.temperature) else f"{asked.temperature:g}"
    facts = {
        "Target": f"{target(manifest)}, {parameters} parameters",
        "Weights": f"sha256 {made_for.get('weights_sha256')}{f', commit {asked.revision} of the hub' if asked.revision else ''}",
        "Prompts": f"template {asked.template}, sha256 {manifest.template_sha256}{_changed(asked)}",
        "Suite": f"{asked.suite}{choice}, sha256 {asked.suite_sha256}; questions: "
        + ", ".join(f"{name} {count}" for name, count in manifest.categories.items()),
        "Sampling": f"temperature {temperature}, at most {limit} tokens a turn, seed {seed}, "
        f"{asked.repeats} repeat(s), second turns see {'vanilla' if asked.turns == 'shared' else 'the arm'}'s first answer",
        "Arithmetic": f"{asked.dtype} on {processor(manifest)}{_layers(made_for)}, attention {asked.attention}, back end {asked.backend}, "
        f"{place.get('threads')} threads" + (f" in each of {place['workers']} workers" if "workers" in place else ""),
        "Versions": ", ".join(f"{name} {place[name]}" for name in ("python", "torch", "transformers", "driver") if place.get(name)),
        "Code": f"{manifest.git.get('sha', 'no checkout')}{', with local changes' if manifest.git.get('dirty') else ''}",
        "Command": " ".join(["specbench", *manifest.argv]),
        "Begun": manifest.created + (f", resumed {len(manifest.resumed)} time(s)" if manifest.resumed else ""),
    }
    methods = {
        name: f"{json.dumps(one.config)}, acceptance {one.acceptance}{f', weights {one.weights_sha256}' if one.weights_sha256 else ''}"
        + (f", different engine: {one.engine}" if one.engine else "")
        for name, one in manifest.methods.items()
    }
    return [*facts.items(), *methods.items()]


def _changed(asked: Settings) -> str:
    """What was put in the place of a template's defaults."""
    system = "" if asked.system_prompt is None else f", system prompt {json.dumps(asked.system_prompt)}"
    return system + (f", thinking {asked.thinking}" if asked.thinking else "")


def _layers(target: Mapping[str, Any]) -> str:
    """Where the layers were, of a target on several devices."""
    spread = target.get("layers", {})
    return f", layers by device: {', '.join(f'{count} on {device}' for device, count in spread.items())}" if len(spread) > 1 else ""
