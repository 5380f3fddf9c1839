"""Whether two sides may be compared at all."""

from methods.core.errors import UserError
from specbench.gate.snapshot import Snapshot, differences, questions_apart


def check(new: Snapshot, base: Snapshot) -> list[str]:
    """Warnings on what differs and may; raises UserError naming everything that differs and must not.

    The code and the number of repeats may differ. Versions may between runs, a baseline file holds for its own only.
    """
    apart = [*differences(base.identity, new.identity), *questions_apart(base.categories, new.categories), *_arms_apart(new, base)]
    updated = differences(base.versions, new.versions)
    if base.pinned:
        apart += updated
    if apart:
        advice = "measure both under the same conditions" + (", or write another baseline: specbench baseline set" if base.pinned else "")
        raise UserError(f"{new.source} cannot be compared with {base.source}: {'; '.join(apart)}; {advice}")
    return [
        *(f"Versions differ: {each}." for each in updated),
        *(f"Arm {name} has no baseline." for name in new.arms if name not in base.arms),
    ]


def _arms_apart(new: Snapshot, base: Snapshot) -> list[str]:
    if not base.arms:
        return ["the baseline has no drafting arm"]
    missing = [f"arm {name} is missing" for name in base.arms if name not in new.arms]
    both = [name for name in base.arms if name in new.arms]
    changed = {name: differences(base.arms[name].settings, new.arms[name].settings) for name in both}
    return missing + [f"{name}: {each}" for name, apart in changed.items() for each in apart]
