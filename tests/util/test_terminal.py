"""Text from outside reaches the terminal without its control characters, and an error is one line."""

import ast
import io
import json
from pathlib import Path

import pytest
from rich.text import Text

from methods.core.errors import UserError
from specbench.util.exits import FAULT, MISUSE, exit_codes
from specbench.util.terminal import Console, print_json, tell
from specbench.util.text import TextTable

ROOT = Path(__file__).parents[2]
HOSTILE = "a\x1b[2J\x1b]0;title\x07b\rc\x9b31md\u202ee\x00f"
CONTROLS = set("\x1b\x07\r\x9b\u202e\x00")
SHOWN = "a\ufffd[2J\ufffd]0;title\ufffdb\ufffdc\ufffd31md\ufffde\ufffdf"


def printed(*renderables, **options):
    out = io.StringIO()
    Console(file=out, width=200, force_terminal=True, color_system="truecolor").print(
        *renderables, markup=False, highlight=False, **options
    )
    return out.getvalue()


def test_a_console_shows_no_control_characters_of_a_text():
    for renderable in (HOSTILE, Text(HOSTILE), TextTable("", ["arm"], [[HOSTILE]]).rich()):
        said = printed(renderable, no_wrap=True)
        assert "a\ufffd[2J\ufffd]0;title" in said
        assert not CONTROLS & set(said.replace("\x1b[1m", "").replace("\x1b[0m", ""))


def test_a_consoles_own_styles_and_control_codes_are_kept():
    assert printed(Text("red", "red")) == "\x1b[31mred\x1b[0m\n"
    out = io.StringIO()
    Console(file=out, force_terminal=True).show_cursor(False)
    assert out.getvalue() == "\x1b[?25l"


def test_what_is_told_is_one_line(capsys):
    tell(f"{HOSTILE}\nerror: forged\u2028 and  two spaces")
    assert capsys.readouterr().err == f"{SHOWN.replace(chr(0xFFFD) + 'c', ' c')} error: forged  and  two spaces\n"


@pytest.mark.parametrize(("error", "code"), [(UserError, MISUSE), (ValueError, FAULT)])
def test_an_error_prints_no_control_characters(error, code, capsys):
    with pytest.raises(SystemExit) as end, exit_codes():
        raise error(HOSTILE)
    assert end.value.code == code
    said = capsys.readouterr().err
    assert "[2J" in said
    assert not CONTROLS & set(said)


def test_json_escapes_control_characters_and_keeps_the_value(capsys):
    print_json({"arm": HOSTILE, "of": "Zürich"})
    said = capsys.readouterr().out
    assert json.loads(said) == {"arm": HOSTILE, "of": "Zürich"}
    assert not CONTROLS & set(said)
    assert "Zürich" in said


WRITERS = {"print", "typer.echo", "typer.secho", "traceback.print_exc", "sys.stdout.write", "sys.stderr.write"}


def writes_elsewhere(path):
    """Yield the lines of a module that print without this module's functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in WRITERS:
            yield f"{path}:{node.lineno} calls {ast.unparse(node.func)}"
        if isinstance(node, ast.ImportFrom) and node.module == "rich.console" and "Console" in {name.name for name in node.names}:
            yield f"{path}:{node.lineno} imports rich's Console"


def test_nothing_else_writes_to_the_terminal():
    paths = [path for folder in ("specbench", "methods", "tools") for path in (ROOT / folder).rglob("*.py")]
    assert len(paths) > 150
    assert [line for path in paths if path.name != "terminal.py" for line in writes_elsewhere(path)] == []


def test_a_module_that_prints_is_found(tmp_path):
    path = tmp_path / "module.py"
    path.write_text("import sys\nfrom rich.console import Console\nprint(1)\nsys.stderr.write('x')\ntyper.echo('x')\n")
    assert len(list(writes_elsewhere(path))) == 4
