"""What there is to choose from: methods, other engines, targets."""

from rich.console import Console
from rich.table import Column, Table


def methods() -> None:
    """The methods that can be measured, and their options; then other engines, which answer beside them as reference rows."""
    from methods.registry import METHODS, options
    from specbench.engines import registry as engines

    table = Table("method", "title", "drafter", "options (--set)")
    for name, row in METHODS.items():
        drafter = f"{'a model' if row.model else 'trained'}: {row.weights}" if row.weights else "none to train"
        table.add_row(name, row.title, drafter, ", ".join(options(name)))
    Console().print(table)
    others = Table("different engine", "title", "needs", "options (--method NAME:KEY=VALUE)")
    for name, peer in engines.PEERS.items():
        others.add_row(name, peer.title, peer.needs, ", ".join(engines.options(name)))
    Console().print(others)


def targets() -> None:
    """The targets that ship or can be built here, and those of the hub whose template and drafters are known.

    A folder of a checkpoint works too, and any hub id of a supported model type.
    """
    from specbench.targets import TARGETS
    from specbench.targets.families import FAMILIES, ids
    from specbench.targets.shapes import SHAPES

    table = Table("target", "what it is")
    for name in TARGETS:
        what = f"cost-matched: the shipped target in the shape of {SHAPES[name].like}" if name in SHAPES else "the shipped target"
        table.add_row(name, what)
    Console().print(table)
    longest = max(map(len, ids()))
    table = Table(Column("hub id", min_width=longest), "template", "drafters known for it", box=None)
    for family in FAMILIES:
        for name, drafters in family.targets.items():
            table.add_row(name, family.template, ", ".join(drafters))
    Console().print(table)
