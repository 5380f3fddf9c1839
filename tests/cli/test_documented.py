"""The command line that users' scripts rely on: a changed option or exit code has to be changed here too."""

import re
from pathlib import Path

import pytest
import typer.main

from specbench.claims.verdict import EXIT_CODES as VERDICTS
from specbench.cli import app
from specbench.gate.rules import EXIT_CODES as GATE
from specbench.targets.families import FAMILIES
from specbench.util import exits

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = {
    "run": "--method --target --revision --template --system-prompt --thinking --stop --suite --suite-file --hf-column --limit "
    "--categories --max-new-tokens --temperature --top-k --top-p --seed --dtype --device --device-map --attention "
    "--backend --repeats --turns --set --config --drafter --aa --base-url --endpoint-model --workers --ray-address --out",
    "resume": "--workers --ray-address --retry-errors",
    "report": "--out --show-prompts",
    "agree": "--json",
    "verify": "--claim --method --over --json",
    "check": "--baseline --junit --markdown --json",
    "baseline set": "--out",
    "import": "--format --baseline --tokenizer --name --out",
    "roofline": "--target --method --past --nodes --dtype --device --backend --out",
    "tune": "--method --target --suite-file --data --prompts --max-new-tokens --dtype --device --backend --drafter --out",
    "profile": "--method --target --suite --suite-file --max-new-tokens --dtype --device --backend --out",
    "scale": "--method --target --suite --limit --max-new-tokens --dtype --device --backend --out",
    "bench": "--target --dtype --device --out",
    "methods": "",
    "targets": "",
    "claims": "",
    "train": "--data --target --revision --template --system-prompt --thinking --stop --device-map --preset --out --set --tokens --lr "
    "--schedule --seq --rows --accumulate --regenerate --max-new-tokens --temperature --cache-features --device --work --log-dir "
    "--estimate",
    "card": "--data",
    "held-out": "--data --out",
}
CODES = {
    "agree": [0, 1, 2],
    "verify": [0, 1, 2, 3],
    "check": [0, 1, 2, 3],
    "baseline set": [0, 2],
    "run": [0, 2, 4, 130],
    "resume": [0, 2, 4, 130],
    "scale": [0, 2, 130],
}


def commands(group, path: str = "") -> dict:
    found: dict = {}
    for name, command in group.commands.items():
        inner = hasattr(command, "commands")
        found |= commands(command, f"{path}{name} ") if inner else {path + name: command}
    return found


ALL = commands(typer.main.get_command(app.app))


def test_the_commands_are_these():
    assert ALL.keys() == COMMANDS.keys()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_frozen_and_explained(name):
    options = sorted(option for each in ALL[name].params if each.param_type_name == "option" for option in each.opts)
    assert options == sorted(COMMANDS[name].split())
    assert all(each.help for each in ALL[name].params)


@pytest.mark.parametrize("name", CODES)
def test_every_exit_code_is_in_the_help(name):
    named = re.findall(r"(?<![\w.])\d+(?![\w.]*\d)", ALL[name].help)
    assert set(map(int, named)) >= set(CODES[name])


def test_exit_codes_are_frozen():
    assert VERDICTS == {"reproduced": 0, "above": 0, "below": 1, "inconclusive": 3, "not comparable": 3}
    assert {str(outcome): code for outcome, code in GATE.items()} == {"pass": 0, "fail": 1, "inconclusive": 3}
    assert (exits.MISUSE, exits.TURNS_FAILED, exits.INTERRUPTED, exits.FAULT) == (2, 4, 130, 70)


def test_the_readmes_numbers_are_the_reports():
    """README repeats cells of the committed report, so a new run has to update both."""
    report = (ROOT / "reports/spec-bench-tiny-160m-cpu-static/report.md").read_text(encoding="utf-8")
    section = README.split("## Result")[1].split("\n## ")[0]
    rows = [cells(line) for line in section.splitlines() if line.startswith("| ")]
    first_table = report.split("### All categories")[1].split("###")[0]
    full = {row[0]: row for row in map(cells, first_table.splitlines())}
    places = [full["Method"].index(header) for header in rows[0]]
    assert len(rows) == 9
    assert all(row == [full[row[0]][place] for place in places] for row in rows if set(row[0]) != {"-"})
    verdict = next(line for line in report.splitlines() if "under different conditions: S4C (reconstruction) measured " in line)
    measured = re.search(r"S4C \(reconstruction\) measured \S+ \[\S+ \S+\]", verdict)
    assert measured
    assert measured[0] in " ".join(section.split())


def test_the_readme_is_short():
    lines = README.splitlines()
    assert len(README.encode()) <= 8 * 1024
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


def test_the_readme_names_only_files_that_exist():
    assert [path for path in re.findall(r"\]\((?!http)([^)#]+)", README) if not (ROOT / path).exists()] == []


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_of_models_is_the_families():
    guide = (ROOT / "docs/real-models.md").read_text(encoding="utf-8")
    header, _, *rows = (
        cells(line) for line in guide.split("## Models and methods")[1].split("\n## ")[0].splitlines() if line.startswith("|")
    )
    kinds = [name.split(",")[0] for name in header[2:]]
    known = [
        [target, family.template, *("yes" if kind in drafters else "·" for kind in kinds)]
        for family in FAMILIES
        for target, drafters in family.targets.items()
    ]
    assert rows == known
    assert {kind for family in FAMILIES for drafters in family.targets.values() for kind in drafters} <= set(kinds)
