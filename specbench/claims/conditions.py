"""The conditions of a claim beside those of a run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from specbench.claims.arms import name_like
from specbench.claims.claim import Claim
from specbench.config.arm import BASELINE
from specbench.store.describe import UNKNOWN
from specbench.store.manifest import COST_MATCHED, ArmFacts, RunManifest

SAME, DIFFERS = "same", "differs"


@dataclass(frozen=True)
class Condition:
    """One condition as text on both sides. ``status`` is "same", "differs", or "unknown"."""

    name: str
    claimed: str
    measured: str
    status: str


@dataclass(frozen=True)
class Extent:
    """The size of a run: questions compared, questions left out, and turns recorded."""

    compared: int
    excluded: int
    turns: int


def compare_conditions(claim: Claim, manifest: RunManifest, arm: str, over: str, extent: Extent) -> list[Condition]:
    """Return every condition of the claim beside that of the run, in which ``arm`` is compared with ``over``.

    A condition that either side does not state is "unknown", which never counts as the same.
    """
    settings, facts = manifest.settings, manifest.arms[arm]
    target = _target(claim, manifest)
    return [
        _suite(claim, manifest),
        _questions(claim, manifest, extent),
        _recorded(manifest, extent),
        _stated("questions covered", claim.covers, _choice(manifest)),
        target,
        _stated("target is cost-matched", "no", "yes" if manifest.target.label == COST_MATCHED else "no"),
        _implementation("method", claim.arm, facts),
        _implementation("compared with", claim.over, manifest.arms[over]),
        _tree(claim, facts),
        _drafter(claim, facts, target),
        _hashed("prompt template", claim.template, claim.template_sha256, manifest.template_sha256),
        _stated("history of later turns", claim.turns, settings.turns),
        _gpu(claim, manifest),
        _stated("PyTorch", claim.torch, _torch(manifest)),
        _stated("dtype", claim.dtype, settings.dtype),
        _stated("temperature", claim.temperature, settings.temperature),
        _stated("max_new_tokens", claim.max_new_tokens, settings.max_new_tokens or None),
        _stated("batch size", claim.batch_size, None if manifest.imported else 1),
        _stated("back end", claim.backend, _back_end(manifest, arm, over)),
        _lossless(claim, facts),
        _stated(f"definition of {claim.quantity}", claim.metric, claim.judged_by),
    ]


def other_suite(claim: Claim, manifest: RunManifest) -> bool:
    """Return whether the claim is over one file of questions, known by its checksum, and the run over another one."""
    return claim.suite_sha256 not in (None, manifest.suite.sha256)


def _stated(name: str, claimed: Any, measured: Any) -> Condition:
    measured = _known(measured)
    return Condition(name, _text(claimed), _text(measured), _status(claimed == measured, claimed, measured))


def _known(value: Any) -> Any:
    """Return None for a value that a run does not state: "unknown" or NaN."""
    return None if value == UNKNOWN or value != value else value


def _status(same: bool, *needed: Any) -> str:
    """Return "unknown" if a value ``needed`` to decide is None."""
    if any(value is None for value in needed):
        return UNKNOWN
    return SAME if same else DIFFERS


def _text(value: Any) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short(sha256: str | None) -> str:
    return f"sha256 {sha256[:12] if sha256 else UNKNOWN}"


def _suite(claim: Claim, manifest: RunManifest) -> Condition:
    """Compare the questions by the checksum of their file; questions of another name differ also without one."""
    suite = manifest.suite
    claimed = UNKNOWN if claim.suite is None else f"{claim.suite}, {_short(claim.suite_sha256)}"
    namesake = claim.suite in (None, suite.name)
    needed = (claim.suite, claim.suite_sha256) if namesake else ()
    same = suite.sha256 == claim.suite_sha256
    return Condition("suite", claimed, f"{suite.name}, {_short(suite.sha256)}", _status(same, *needed, _known(suite.sha256)))


def _questions(claim: Claim, manifest: RunManifest, extent: Extent) -> Condition:
    left_out = f", {extent.excluded} left out" if extent.excluded else ""
    measured = f"{extent.compared} compared of {sum(manifest.suite.categories.values())} asked{left_out}"
    return Condition("questions", _text(claim.questions), measured, _status(extent.compared == claim.questions, claim.questions))


def _choice(manifest: RunManifest) -> str:
    settings = manifest.settings
    choices = [*([f"{settings.limit} per category"] if settings.limit else []), *settings.categories]
    return ", ".join(choices) or "all questions"


def _recorded(manifest: RunManifest, extent: Extent) -> Condition:
    measured = f"{extent.turns} of {manifest.units_total}"
    return Condition("turns recorded", "all", measured, _status(extent.turns >= manifest.units_total))


def _back_end(manifest: RunManifest, arm: str, over: str) -> str:
    """Return the arm's back end, and that of the arm it is compared with if it has another one."""
    own, other = manifest.arms[arm].backend, manifest.arms[over].backend
    return own if own in (other, UNKNOWN) else f"{own}, over {other} {over}"


def _target(claim: Claim, manifest: RunManifest) -> Condition:
    """Compare the target by name and size: the size tells another model of the same name."""
    name, size = Path(manifest.target.name).name, manifest.target.parameters
    namesake = name.lower() == claim.target
    claimed, measured = (
        f"{_text(model)}{f', {count:,} parameters' if count else ''}" for model, count in ((claim.target, claim.parameters), (name, size))
    )
    needed = (claim.target, _known(name), *((size, claim.parameters) if namesake else ()))
    return Condition("target", claimed, measured, _status(namesake and size == claim.parameters, *needed))


def _implementation(name: str, claimed: str, facts: ArmFacts) -> Condition:
    """Compare one of the two arms with the one that the claim names. Vanilla is the same whoever decoded it."""
    if claimed == BASELINE == facts.method:
        return Condition(name, claimed, facts.method, SAME)
    origin = "specbench's reconstruction" if facts.reconstruction else "specbench's implementation of the published method"
    rule, own = _known(facts.acceptance), name_like(claimed, facts)
    same = own == claimed and not facts.reconstruction
    return Condition(name, f"{claimed} as published", f"{own}, {origin if rule else 'imported'}", _status(same, rule))


def _tree(claim: Claim, facts: ArmFacts) -> Condition:
    if claim.tree is None:
        return Condition("draft tree", UNKNOWN, _options(facts.config), UNKNOWN)
    own = {key: facts.config.get(key) for key in claim.tree}
    return Condition("draft tree", _options(claim.tree), _options(own), _status(own == claim.tree, *own.values()))


def _options(config: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_text(value)}" for key, value in config.items()) or UNKNOWN


def _drafter(claim: Claim, facts: ArmFacts, target: Condition) -> Condition:
    """Compare the drafter by its checksum. A drafter of another target always differs, since it is trained for its target."""
    condition = _hashed("drafter's weights", claim.drafter, claim.drafter_sha256, facts.weights_sha256)
    if claim.drafter is None or target.status != DIFFERS:
        return condition
    return Condition(condition.name, condition.claimed, f"{condition.measured}, for another target", DIFFERS)


def _hashed(name: str, claimed: str | None, claimed_sha: str | None, sha: str | None) -> Condition:
    text, sha = UNKNOWN if claimed is None else f"{claimed}, {_short(claimed_sha)}", _known(sha)
    return Condition(name, text, _short(sha), _status(claimed_sha == sha, claimed, claimed_sha, sha))


def _gpu(claim: Claim, manifest: RunManifest) -> Condition:
    """Compare the GPU: the same if at every start of the run its name had all words of the claim's."""
    without_gpu = "none" if manifest.settings.device.startswith("cpu") else UNKNOWN
    names = list(dict.fromkeys(environment.gpu or without_gpu for environment in manifest.environments))
    words = (claim.gpu or "").lower().split()
    same = all(word in name.lower() for name in names for word in words)
    return Condition("GPU", _text(claim.gpu), "; ".join(names), _status(same, claim.gpu, *map(_known, names)))


def _torch(manifest: RunManifest) -> str | None:
    versions = dict.fromkeys(environment.torch.partition("+")[0] for environment in manifest.environments if environment.torch)
    return "; ".join(versions) or None


def _lossless(claim: Claim, facts: ArmFacts) -> Condition:
    claimed, measured = (None if value is None else ("lossless" if value else "lossy") for value in (claim.lossless, facts.lossless))
    rule = _known(facts.acceptance)
    shown = f"{measured} ({rule})" if rule else UNKNOWN
    return Condition("acceptance rule", _text(claimed), shown, _status(claimed == measured, claimed, rule))
