"""The command `specbench verify`: output, exit codes, and errors."""

import json

import pytest
import typer
from helpers.claimed_runs import ON_SPEC_BENCH, S4C, records, verdict_on
from helpers.scripted_records import write_run

from methods.core.errors import UserError
from specbench.analysis.frames import turns_frame
from specbench.claims import text
from specbench.claims.verdict import EXIT_CODES, judge
from specbench.cli.verify import verify
from specbench.store.manifest import RunManifest
from specbench.store.records import read
from specbench.util.terminal import Console
from specbench.util.text import TextTable


def test_model_text_cannot_become_markup(tmp_path):
    verdict = verdict_on(tmp_path, records(2.4), methods={"vanilla": "V", "s4c": "<script>|x"}, target={"name": "a|b<i>"})
    blocks = text.markdown(verdict)
    assert blocks[0].startswith("**reproduced, under different conditions: &lt;script>\\|x (reconstruction) measured")
    joined = "\n\n".join(blocks)
    assert "<" not in joined
    assert "a\\|b&lt;i>" in joined
    tables = [part for part in text.parts(verdict) if isinstance(part, TextTable)]
    assert len(tables) == 4
    assert all(table.markdown() in joined for table in tables)


def app():
    made = typer.Typer(pretty_exceptions_enable=False)
    made.command()(verify)
    return made


def ended(arguments):
    with pytest.raises(SystemExit) as end:
        app()(args=arguments)
    return end.value.code


@pytest.mark.parametrize(
    ("speedup", "changes", "code"),
    [(2.4, {}, 0), (3.0, {}, 0), (1.4, {}, 1), (2.4, {"questions": 5}, 3), (2.4, {"suite": {"sha256": "0" * 64}}, 3)],
)
def test_exit_codes_and_json(tmp_path, capsys, speedup, changes, code):
    found = list(records(speedup, questions=changes.get("questions", 36)))
    written = write_run(tmp_path / "run", found, suite=ON_SPEC_BENCH | changes.get("suite", {}), methods={"vanilla": "V", "s4c": "S4C"})
    assert ended([str(written), "--claim", "s4c"]) == code
    shown = capsys.readouterr().out
    assert ended([str(written), "--claim", "s4c", "--json"]) == code
    printed = capsys.readouterr().out
    parsed = json.loads(printed, parse_constant=pytest.fail)
    verdict = judge(S4C, RunManifest.read(written), turns_frame(read(written)[0], RunManifest.read(written).arms))
    assert parsed == json.loads(json.dumps(text.to_json(verdict)))
    assert (parsed["schema"], parsed["exit_code"], parsed["outcome"]) == (3, code, verdict.outcome)
    assert EXIT_CODES[parsed["outcome"]] == code
    assert shown.splitlines()[0] == parsed["sentence"]
    assert parsed["judged"]["measured"] == dict(zip(("value", "low", "high"), verdict.judged.measured, strict=True))
    assert parsed["noise_floor"]["value"] is None
    assert parsed["claim"]["target"] is None
    assert parsed["claim"]["date"] == "2025-06-17"


def test_misuse_is_one_line(tmp_path):
    run = write_run(tmp_path / "run", [], suite=ON_SPEC_BENCH, methods={"vanilla": "V", "medusa": "Medusa"})

    def complaint(*arguments):
        with pytest.raises(UserError) as error:
            app()(args=[*map(str, arguments)])
        return str(error.value)

    assert "unknown claim 's4d'; did you mean 's4c'? choices: confu, " in complaint(run, "--claim", "s4d")
    assert "unknown arm of this run (--method) 's4c'; choices: medusa" in complaint(run, "--claim", "s4c")
    assert "did you mean 'medusa'?" in complaint(run, "--claim", "s4c", "--method", "medsua")
    assert "unknown arm of this run (--over) 'eagle3'; choices: medusa, vanilla" in complaint(
        run, "--claim", "s4c", "--method", "medusa", "--over", "eagle3"
    )
    assert "--method and --over are both medusa" in complaint(run, "--claim", "s4c", "--method", "medusa", "--over", "medusa")
    assert "--method vanilla is what speedups are measured against" in complaint(run, "--claim", "s4c", "--method", "vanilla")
    assert "holds no manifest.json" in complaint(tmp_path / "nowhere", "--claim", "s4c")
    assert ended([str(run)]) == 2


def test_the_help_says_what_the_exit_codes_mean(capsys):
    assert ended(["--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "0 reproduced or above, 1 below, 2 misuse, 3 inconclusive or not comparable" in shown


def test_the_sentence_is_one_line_on_a_narrow_terminal(tmp_path):
    console = Console(record=True, width=60)
    verdict = verdict_on(tmp_path, records(1.39))
    text.show(verdict, console)
    assert console.export_text().splitlines()[0] == text.sentence(verdict)
