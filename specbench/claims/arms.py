"""The two arms of a run that a claim is held against."""

from collections.abc import Collection

from methods.core.errors import UserError, unknown
from specbench.claims.claim import Claim
from specbench.config.arm import BASELINE, Arm
from specbench.store.manifest import ArmFacts, RunManifest


def arms_of(claim: Claim, manifest: RunManifest, arm: str | None = None, over: str | None = None) -> tuple[str, str]:
    """Return the arm to judge and the arm it is compared with: those given, else the claim's own.

    Raises UserError for an arm that the run does not have, also if its method is not built here, and for arms that
    cannot be compared.
    """
    judged, reference = arm or claim.arm, over or claim.over
    if judged == BASELINE:
        raise UserError(f"--method {judged} is what speedups are measured against; name one of the run's other arms")
    missing = next((name for name in (claim.arm, claim.over) if name in (judged, reference) and name not in manifest.arms), None)
    if missing is not None and not is_built(missing):
        raise UserError(
            f"claim {claim.name}: {missing} is not built here; specbench methods lists what is, and --method judges another arm"
        )
    _check("--method", judged, manifest, manifest.own.keys() - {BASELINE})
    _check("--over", reference, manifest, manifest.own)
    if judged == reference:
        raise UserError(f"--method and --over are both {judged}; name two arms of the run")
    return judged, reference


def held(claim: Claim, manifest: RunManifest) -> bool:
    """Return whether the run has both arms of the claim."""
    return {claim.arm, claim.over} <= manifest.own.keys()


def is_built(name: str) -> bool:
    """Return whether the methods table has the method of an arm, with the arm's options."""
    from methods.registry import resolve  # takes torch, which takes seconds

    arm = Arm.parse(name)
    try:
        resolve(arm.method, arm.options, "cpu")
    except UserError:
        return False
    return True


def name_like(claimed: str, facts: ArmFacts) -> str:
    """Return an arm's name with the options that a claim names, so that it equals ``claimed`` if the two are alike."""
    arm = Arm.parse(claimed)
    if facts.method != arm.method or not arm.options:
        return facts.method
    own = facts.config | {"acceptance": facts.acceptance, "backend": facts.backend}
    return f"{facts.method}:{','.join(f'{key}={own.get(key)}' for key in arm.options)}"


def _check(option: str, name: str, manifest: RunManifest, choices: Collection[str]) -> None:
    if name not in manifest.arms:
        raise unknown(f"arm of this run ({option})", name, choices)
    if manifest.arms[name].engine:
        raise UserError(f"{option} {name} is another engine ({manifest.arms[name].engine}): a claim is held against specbench's own arms")
