"""The documentation agrees with the code: generated pages, examples, commands and paths."""

import importlib.util
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import typer.main
from helpers.small_models import OTHER_PROMPT, PROMPT, build, run, small_target

from methods.registry import METHODS, Method
from specbench.claims.claim import load_claims, parse_claims
from specbench.cli import app
from tools.docs import generate

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PROSE = [*sorted(DOCS.glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "SECURITY.md"]
COMMANDS = dict(generate.commands(typer.main.get_command(app.app)))
FENCE = re.compile(r"^```(\w+)(?: title=\"([^\"\n]*)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page, language):
    """Return the code blocks of a page in one language: pairs of title and text."""
    return [(title, text) for kind, title, text in FENCE.findall(page.read_text(encoding="utf-8")) if kind == language]


def command_lines(page):
    """Return every `specbench` command of a page's shell blocks, split into words."""
    for _, text in blocks(page, "bash"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["specbench"]:
                yield words[1:]


@pytest.mark.parametrize("name", generate.pages())
def test_generated_pages_are_up_to_date(name):
    written = (DOCS / name).read_text(encoding="utf-8")
    assert written == generate.pages()[name], f"docs/{name} is stale; run: python -m tools.docs.generate"


def test_every_column_of_the_comparison_is_documented():
    header = (ROOT / "tests/golden/comparison.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    defined = {f"{name}{end}" for name in generate.DEFINITIONS for end in ("", "_low", "_high")}
    columns = {column for column in header if column not in defined}
    assert columns - {"speedup_over_eager_low", "speedup_over_eager_high"} == generate.OTHER_COLUMNS.keys()


@pytest.fixture
def example_method(tmp_path, monkeypatch):
    """Install the method of add-a-method.md under the name its page gives it."""
    (_, code), (_, row) = blocks(DOCS / "add-a-method.md", "python")
    name, method = next(iter(eval(f"{{{row}}}", {"Method": Method}).items()))
    file = tmp_path / "example.py"
    file.write_text(code, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(method.module, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, method.module, module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(METHODS, name, method)
    return name, code


def test_the_example_method_is_short_and_lossless(example_method):
    name, code = example_method
    assert sum(bool(line.strip()) for line in code.splitlines()) < 40
    target = small_target()
    for prompt in (PROMPT, OTHER_PROMPT):
        plain, drafted = (run(target, drafter, prompt, 60, rule) for drafter, rule in (build("vanilla", target), build(name, target)))
        assert drafted.tokens == plain.tokens
        assert sum(step.accepted for step in drafted.steps) > 0, "it drafts nothing that is right"


def test_the_example_claim_loads_and_every_field_is_explained():
    ((title, text),) = blocks(DOCS / "add-a-claim.md", "toml")
    assert title == "specbench/claims/example.toml"
    ((name, claim),) = parse_claims(text, "example.toml").items()
    assert name not in load_claims()
    assert (claim.low, claim.high, claim.template_sha256) == (1.58, 1.84, None)
    page = (DOCS / "add-a-claim.md").read_text(encoding="utf-8").split("## Fields")[1]
    table = " ".join(line.split("|")[1] for line in page.splitlines() if line.startswith("|"))
    assert {field.name for field in fields(claim)} - {"name"} <= set(re.findall(r"`(\w+)`", table))


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.name)
def test_the_commands_of_a_page_exist_with_their_options(page):
    for words in command_lines(page):
        name = " ".join(words[:2]) if words[0] == "baseline" else words[0]
        assert name in COMMANDS, name
        known = {option for each in COMMANDS[name].params if each.param_type_name == "option" for option in each.opts} | {"--help"}
        assert {word for word in words if word.startswith("--")} <= known, f"specbench {' '.join(words)}"


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.name)
def test_the_files_a_page_names_exist(page):
    named = re.findall(r"`((?:methods|specbench|tools|tests|docs|\.github)/[\w./-]+)`", page.read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", PROSE, ids=lambda page: page.name)
def test_lines_are_at_most_120_characters_long(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    long = [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|") and "](http" not in line]
    assert long == []


def test_the_site_builds_without_warnings(tmp_path):
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    pages = {path.stem for path in (tmp_path / "site").glob("*.html")} - {"404"}
    assert pages == {path.stem for path in DOCS.glob("*.md")}
    outside = re.compile(r"""<(?:script|link|img)[^>]*(?:src|href)=["']https?://""")
    assert not any(outside.search(path.read_text(encoding="utf-8")) for path in (tmp_path / "site").glob("*.html"))
