"""The import graph of methods and specbench: `python -m tools.import_graph [CHECKOUT]` prints its figures.

Every import counts, also those inside functions, those for type checking only, and modules that are imported by name. A graph
without cycles has an order in which no edge points upwards: each node's level is one more than the highest that it imports.
"""

import argparse
import ast
from collections.abc import Mapping
from pathlib import Path

from specbench.util.terminal import Console

PACKAGES = ("methods", "specbench")
Graph = dict[str, set[str]]


def modules(root: Path) -> Graph:
    """Return by module of the checkout the modules that it imports."""
    files = {_name(path.relative_to(root)): path for package in PACKAGES for path in (root / package).rglob("*.py")}
    return {name: _imported(path, files) - {name} for name, path in files.items()}


def folders(graph: Mapping[str, set[str]]) -> Graph:
    """Return the graph of folders: the first level below each package, and the files of ``methods`` as one."""
    found: Graph = {}
    for name, imported in graph.items():
        found.setdefault(_folder(name), set()).update(map(_folder, imported))
    return {folder: others - {folder} for folder, others in found.items()}


def cycles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Return the groups of nodes that import each other, directly or not; a group of one is no cycle."""
    reachable = {node: _reachable(graph, node) for node in graph}
    groups = {tuple(sorted(other for other in reachable[node] if node in reachable[other])) for node in graph}
    return [list(group) for group in groups if len(group) > 1]


def levels(graph: Mapping[str, set[str]]) -> int:
    """Return how many levels an acyclic graph has."""
    depth: dict[str, int] = {}

    def below(node: str) -> int:
        if node not in depth:
            depth[node] = 1 + max(map(below, graph[node]), default=0)
        return depth[node]

    return max(map(below, graph))


def _name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def _folder(module: str) -> str:
    package, *inner = module.split(".")
    if package == "methods":
        return "methods.core" if inner[:1] == ["core"] else "methods"
    return ".".join([package, *inner[:1]])


def _imported(path: Path, files: Mapping[str, Path]) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {name if (name := f"{node.module}.{alias.name}") in files else node.module for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            named = node.value.partition(":")[0]  # in a table, whose modules are imported when a row is used
            found |= {named} if named in files and files[named].name != "__init__.py" else set()
    return found & files.keys()


def _reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    seen, left = {start}, [start]
    while left:
        new = graph[left.pop()] - seen
        seen |= new
        left += new
    return seen


def main() -> None:
    """Print the figures of a checkout, this one by default."""
    parser = argparse.ArgumentParser(description="Print the size, levels and cycles of the import graph of a checkout.")
    parser.add_argument("root", metavar="CHECKOUT", nargs="?", type=Path, default=Path(__file__).parents[1])
    root, console = parser.parse_args().root, Console(soft_wrap=True, highlight=False)
    for what, graph in (("modules", modules(root)), ("folders", folders(modules(root)))):
        groups = cycles(graph)
        within = sum(other in group for group in groups for node in group for other in graph[node])
        depth = "no order of levels" if groups else f"{levels(graph)} levels"
        edges = sum(map(len, graph.values()))
        upward = f"up to {within} edges" if groups else "no edge"
        console.print(f"{what}: {len(graph)} nodes, {edges} edges, {depth}, {len(groups)} cycles; {upward} upwards")
        for group in groups:
            console.print(f"  {', '.join(group)}")


if __name__ == "__main__":
    main()
