"""Under which conditions a claim was made and a run was, side by side."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specbench.claims import UNKNOWN, Claim
from specbench.store.describe import COST_MATCHED
from specbench.store.manifest import IMPORTED, MethodFacts, RunManifest
from specbench.store.records import AGAIN, BASELINE

SAME, DIFFERS = "same", "differs"


@dataclass(frozen=True)
class Condition:
    """One condition as text on both sides; ``status`` is "same", "differs" or "unknown"."""

    name: str
    claimed: str
    measured: str
    status: str


@dataclass(frozen=True)
class Extent:
    """How much of the run counts: questions compared and left out, turns recorded."""

    compared: int
    excluded: int
    turns: int


def conditions(claim: Claim, manifest: RunManifest, arm: str, extent: Extent) -> list[Condition]:
    """Every condition of the claim beside the run's. What either side does not say is "unknown", which is never a match."""
    asked, facts = manifest.settings, manifest.methods[arm]
    target = _target(claim, manifest)
    return [
        _suite(claim, manifest),
        _questions(claim, manifest, extent),
        _recorded(manifest, extent),
        _stated("number is over", claim.covers, _choice(manifest)),
        target,
        _stated("target is cost-matched", "no", "yes" if manifest.target.get("label") == COST_MATCHED else "no"),
        _implementation(claim, arm, facts),
        _tree(claim, facts),
        _drafter(claim, facts, target),
        _hashed("prompt template", claim.template, claim.template_sha256, manifest.template_sha256),
        _stated("second turns see answers of", claim.turns, asked.turns),
        _gpu(claim, manifest),
        _stated("PyTorch", claim.torch, _torch(manifest)),
        _stated("dtype", claim.dtype, asked.dtype),
        _stated("temperature", claim.temperature, asked.temperature),
        _stated("max_new_tokens", claim.max_new_tokens, asked.max_new_tokens),
        _stated("batch size", claim.batch_size, None if manifest.target.get("label") == IMPORTED else 1),
        _stated("back end", claim.backend, _back_end(manifest, facts)),
        _lossless(claim, facts),
        _stated("definition of speedup", claim.metric, claim.judged_by),
    ]


def same_suite(claim: Claim, manifest: RunManifest) -> bool:
    return manifest.settings.suite_sha256 == claim.suite_sha256


def _stated(name: str, claimed: Any, measured: Any) -> Condition:
    measured = _known(measured)
    return Condition(name, _text(claimed), _text(measured), _status(claimed == measured, claimed, measured))


def _known(value: Any) -> Any:
    """None for what a run does not say of itself: an imported one names it unknown, or has no number for it."""
    return None if value == UNKNOWN or value != value else value


def _status(same: bool, *needed: Any) -> str:
    """Unknown where something ``needed`` to decide is None."""
    if any(each is None for each in needed):
        return UNKNOWN
    return SAME if same else DIFFERS


def _text(value: Any) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short(sha256: str | None) -> str:
    return f"sha256 {sha256[:12] if sha256 else UNKNOWN}"


def _suite(claim: Claim, manifest: RunManifest) -> Condition:
    asked = manifest.settings
    claimed, measured = f"{claim.suite}, {_short(claim.suite_sha256)}", f"{asked.suite}, {_short(asked.suite_sha256)}"
    return Condition("suite", claimed, measured, _status(same_suite(claim, manifest), _known(asked.suite_sha256)))


def _questions(claim: Claim, manifest: RunManifest, extent: Extent) -> Condition:
    left_out = f", {extent.excluded} left out" if extent.excluded else ""
    measured = f"{extent.compared} compared of {sum(manifest.categories.values())} asked{left_out}"
    return Condition("questions", str(claim.questions), measured, _status(extent.compared == claim.questions))


def _choice(manifest: RunManifest) -> str:
    asked = manifest.settings
    chosen = [*([f"{asked.limit} a category"] if asked.limit else []), *asked.categories]
    return ", ".join(chosen) or "all questions"


def _recorded(manifest: RunManifest, extent: Extent) -> Condition:
    measured = f"{extent.turns} of {manifest.units_total}"
    return Condition("turns recorded", "all", measured, _status(extent.turns >= manifest.units_total))


def _back_end(manifest: RunManifest, facts: MethodFacts) -> str:
    """The arm's; where vanilla has another one, that too, since the speedup is over it."""
    vanilla = manifest.methods[BASELINE].backend if BASELINE in manifest.methods else facts.backend
    return facts.backend if facts.backend in (vanilla, UNKNOWN) else f"{facts.backend}, over {vanilla} vanilla"


def _target(claim: Claim, manifest: RunManifest) -> Condition:
    """By name and size; a name is all that a source gives, and a size keeps a namesake from passing for it."""
    name, size = Path(str(manifest.target.get("name", manifest.settings.target))).name, manifest.target.get("parameters")
    namesake = name.lower() == claim.target
    claimed, measured = (
        f"{_text(each)}{f', {count:,} parameters' if count else ''}" for each, count in ((claim.target, claim.parameters), (name, size))
    )
    needed = (claim.target, _known(name), size if namesake else 0)
    return Condition("target", claimed, measured, _status(namesake and size == claim.parameters, *needed))


def _implementation(claim: Claim, arm: str, facts: MethodFacts) -> Condition:
    base = arm.removesuffix(AGAIN).partition(":")[0]
    what = "specbench's reconstruction" if facts.reconstruction else "specbench's implementation of the published method"
    rule = _known(facts.acceptance)
    same = base == claim.arm and not facts.reconstruction
    return Condition("method", f"{claim.arm} as published", f"{base}, {what if rule else 'imported'}", _status(same, rule))


def _tree(claim: Claim, facts: MethodFacts) -> Condition:
    if claim.tree is None:
        return Condition("draft tree", UNKNOWN, _options(facts.config), UNKNOWN)
    own = {key: facts.config.get(key) for key in claim.tree}
    return Condition("draft tree", _options(claim.tree), _options(own), _status(own == claim.tree, *own.values()))


def _options(config: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_text(value)}" for key, value in config.items()) or UNKNOWN


def _drafter(claim: Claim, facts: MethodFacts, target: Condition) -> Condition:
    """A drafter is trained for its target, so that of another target cannot be the same; of the same one, its hash decides."""
    found = _hashed("drafter's weights", claim.drafter, claim.drafter_sha256, facts.weights_sha256)
    if claim.drafter is None or target.status != DIFFERS:
        return found
    return Condition(found.name, found.claimed, f"{found.measured}, for another target", DIFFERS)


def _hashed(name: str, claimed: str | None, claimed_sha: str | None, sha: str | None) -> Condition:
    text, sha = UNKNOWN if claimed is None else f"{claimed}, {_short(claimed_sha)}", _known(sha)
    return Condition(name, text, _short(sha), _status(claimed_sha == sha, claimed, claimed_sha, sha))


def _gpu(claim: Claim, manifest: RunManifest) -> Condition:
    """The same where every start of the run was on a device whose name holds all words of the claim's."""
    instead = "none" if manifest.settings.device.startswith("cpu") else UNKNOWN
    names = list(dict.fromkeys(str(place.get("gpu") or instead) for place in _environments(manifest)))
    words = (claim.gpu or "").lower().split()
    same = all(word in name.lower() for name in names for word in words)
    return Condition("GPU", _text(claim.gpu), "; ".join(names), _status(same, claim.gpu, *map(_known, names)))


def _torch(manifest: RunManifest) -> str | None:
    versions = dict.fromkeys(str(place["torch"]).partition("+")[0] for place in _environments(manifest) if place.get("torch"))
    return "; ".join(versions) or None


def _environments(manifest: RunManifest) -> list[dict[str, Any]]:
    return [manifest.environment, *(start["environment"] for start in manifest.resumed)]


def _lossless(claim: Claim, facts: MethodFacts) -> Condition:
    claimed, measured = (None if each is None else ("lossless" if each else "lossy") for each in (claim.lossless, facts.lossless))
    rule = _known(facts.acceptance)
    return Condition(
        "acceptance rule", _text(claimed), f"{measured} ({rule})" if rule else UNKNOWN, _status(claimed == measured, claimed, rule)
    )
