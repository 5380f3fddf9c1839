"""Rules on imports that keep the packages in their order; imports inside functions count."""

from pathlib import Path

import pytest

from tools.import_graph import cycles, folders, modules

MODULES = modules(Path(__file__).parents[2])
FOLDERS = folders(MODULES)
ALLOWED = {  # a folder: all it may import
    "methods.core": set(),
    "methods": {"methods.core"},
    "specbench.analysis": {"specbench.store", "specbench.util", "specbench.config", "methods.core"},
}
FORBIDDEN = {"specbench.store": {"specbench.engines", "specbench.measure"}}


@pytest.mark.parametrize("folder", ALLOWED)
def test_a_folder_imports_only_what_is_below_it(folder):
    assert FOLDERS[folder] <= ALLOWED[folder]


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_a_folder_does_not_import_what_uses_it(folder):
    assert not FOLDERS[folder] & FORBIDDEN[folder]


def test_analysis_takes_only_names_and_errors_from_outside_the_store():
    outside = {other for name, found in MODULES.items() if name.startswith("specbench.analysis") for other in found}
    below = ("specbench.analysis", "specbench.store", "specbench.util")
    assert {other for other in outside if not other.startswith(below)} <= {"specbench.config.arm", "methods.core.errors"}


def test_nobody_imports_the_command_line():
    importers = {name for name, found in MODULES.items() if any(other.startswith("specbench.cli") for other in found)}
    assert {name for name in importers if not name.startswith("specbench.cli")} <= {"specbench.__main__"}


def test_there_is_no_cycle():
    assert cycles(MODULES) == []
    assert cycles(FOLDERS) == []


def test_the_top_level_holds_only_folders():
    top = Path(__file__).parents[2] / "specbench"
    assert {path.name for path in top.glob("*.py")} == {"__init__.py", "__main__.py"}
