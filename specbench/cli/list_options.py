"""The commands ``methods``, ``targets`` and ``claims``: lists of what a run can measure, and can be held against."""

from rich.table import Column, Table

from specbench.cli.common import console
from specbench.util.terminal import print_table
from specbench.util.text import TextTable


def methods() -> None:
    """List the methods and their options, then the other engines, which a run can measure as reference rows."""
    from methods.registry import METHODS, options
    from specbench.engines import registry as engines

    own = Table("method", "title", "drafter", "options (--set)")
    for name, row in METHODS.items():
        drafter = f"{'a model' if row.model else 'trained'}: {row.weights}" if row.weights else "none to train"
        own.add_row(name, row.title, drafter, ", ".join(options(name)))
    console.print(own)

    others = Table("different engine", "title", "needs", "options (--method NAME:KEY=VALUE)")
    for name, engine in engines.ENGINES.items():
        others.add_row(name, engine.title, engine.needs, ", ".join(engines.options(name)))
    console.print(others)


def targets() -> None:
    """List the targets that ship with specbench, and the hub ids whose prompt template and drafters are known.

    `--target` also takes a checkpoint folder, and any hub id of a supported model type.
    """
    from specbench.targets import TARGETS
    from specbench.targets.families import FAMILIES, hub_ids
    from specbench.targets.widen import SHAPES

    here = Table("target", "what it is")
    for name in TARGETS:
        description = f"cost-matched: the shipped target in the shape of {SHAPES[name].like}" if name in SHAPES else "the shipped target"
        here.add_row(name, description)
    console.print(here)

    longest = max(map(len, hub_ids()))
    hub = Table(Column("hub id", min_width=longest), "template", "drafters known for it", box=None)
    for family in FAMILIES:
        for name, drafters in family.targets.items():
            hub.add_row(name, family.template, ", ".join(drafters))
    console.print(hub)


def claims() -> None:
    """List the published claims that `specbench verify` holds a run against, and whether their methods are built here."""
    from specbench.claims.arms import is_built
    from specbench.claims.claim import load_claims

    rows = []
    for claim in load_claims().values():
        here = "built" if is_built(claim.arm) and is_built(claim.over) else "not built here"
        rows.append([claim.name, claim.arm, claim.over, claim.quantity, claim.range_text, here])
    print_table(console, TextTable("Published claims", ["Claim", "Arm", "Over", "Quantity", "Claimed", "Here"], rows))
