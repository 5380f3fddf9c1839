"""transformers' own generate as reference rows: the arms' tokens, its rounds as they were, and the mark in every format."""

import csv
import dataclasses
import io
import re
from pathlib import Path

import pytest
import torch
from helpers.tiny_target import QUESTIONS, write_suite, write_target
from rich.console import Console
from transformers import AutoModelForCausalLM

from methods.core.acceptance import Sampling
from methods.core.target import ContextOverflow
from specbench.analysis.frames import turns_frame
from specbench.cli import app
from specbench.config.options import Options
from specbench.engines.registry import PEERS
from specbench.measure.runner import run
from specbench.measure.session import prepare
from specbench.report import build, figures
from specbench.store import records
from specbench.store.manifest import RunManifest
from specbench.store.records import BASELINE

torch.set_num_threads(1)
TURNS = sum(len(turns) for _, _, turns in QUESTIONS)
GENERATE = [name for name in PEERS if name.startswith("hf-")]
TOKENS = 16


def unsteady(folder, like):
    """A draft model that agrees with the target now and then: its weights with noise."""
    model = AutoModelForCausalLM.from_pretrained(write_target(folder))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * parameter.std() * torch.randn_like(parameter) if parameter.ndim > 1 else 0
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    target = write_target(folder / "target")
    drafter = unsteady(folder / "drafter", target)
    suite = write_suite(folder / "suite.jsonl")
    return Options(
        GENERATE, str(target), suite_file=suite, max_new_tokens=TOKENS, dtype="fp64", device="cpu", drafter_files={"hf-assisted": drafter}
    )


@pytest.fixture(scope="module")
def session(options):
    return prepare(options)


@pytest.fixture(scope="module")
def run_dir(session, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    run(session, folder, Console(file=io.StringIO()))
    return folder


def peer(session, name):
    return next(each for each in session.peers if each.name == name)


def asked(session, text="abcdefghijklmnop" * 3):
    return session.chat.encode([text], [])


def ended(arguments):
    with pytest.raises(SystemExit) as end:
        app.main([str(each) for each in arguments])
    return int(end.value.code or 0)


def test_a_peer_says_what_vanilla_says_and_its_tokens_are_counted_alike(run_dir):
    found = {record.key: record for record in records.read(run_dir)[0]}
    assert len(found) == (1 + len(GENERATE)) * TURNS
    for record in found.values():
        twin = found[BASELINE, *record.key[1:]]
        assert (record.status, record.error) == ("ok", "")
        assert record.output_ids == twin.output_ids
        assert (record.prompt_sha256, record.stop, record.output_text) == (twin.prompt_sha256, twin.stop, twin.output_text)
        if record.method != BASELINE:
            assert record.timing == "rounds"
            assert len(record.steps.round_s) == len(record.steps.emitted)
            assert 0 < record.prefill_s < record.prefill_s + sum(record.steps.round_s) <= record.total_s + 1e-4
            assert record.peak_bytes > 10_000_000
    assert {n for record in found.values() if record.method == "hf-generate" for n in record.steps.emitted} == {1}
    assert max(n for record in found.values() if record.method == "hf-assisted" for n in record.steps.emitted) > 1


@pytest.mark.parametrize("name", GENERATE)
def test_a_round_is_a_forward_of_the_target(session, name):
    prompt, widths = asked(session), []
    hook = session.model.register_forward_pre_hook(lambda _, args, given: widths.append(given["input_ids"].shape[1]), with_kwargs=True)
    try:
        answer = peer(session, name).answer(prompt, Sampling(TOKENS))
    finally:
        hook.remove()
    assert len(widths) == 1 + len(answer.steps.emitted)
    assert answer.prefill_tokens + sum(answer.steps.emitted) == len(answer.output_ids) == TOKENS
    drafts = {"hf-generate": 0, "hf-pld": 10}.get(name)
    assert drafts is None or max(widths[1:]) == 1 + drafts


def test_drafts_of_the_prompts_own_forward_count_with_the_prefill(options):
    itself = {"hf-assisted": Path(options.target)}
    twin = prepare(dataclasses.replace(options, methods=["hf-assisted:nodes=6"], drafter_files=itself))
    arm = peer(twin, "hf-assisted:nodes=6")
    arm.drafting["assistant_model"].generation_config.assistant_confidence_threshold = 0.0  # else it stops where it is unsure
    answer = arm.answer(asked(twin), Sampling(TOKENS))
    assert answer.prefill_tokens == 7, "a drafter that is the target has its drafts accepted"
    assert 7 + sum(answer.steps.emitted) == TOKENS


@pytest.mark.parametrize("name", GENERATE)
def test_it_stops_where_the_run_stops(session, name):
    whole = session.arms[0].answer(asked(session), Sampling(TOKENS)).output_ids
    stop = frozenset({whole[5]})
    first = whole.index(whole[5])
    answer = peer(session, name).answer(asked(session), Sampling(TOKENS, stop_ids=stop))
    assert (answer.output_ids, answer.stop) == (whole[: first + 1], "stop_id")
    long = [70] * (session.target.context - 9)
    cut = peer(session, name).answer(long, Sampling(1000))
    assert (len(cut.output_ids), cut.stop) == (9, "length")
    with pytest.raises(ContextOverflow):
        peer(session, name).answer([5] * session.target.context, Sampling(1))


@pytest.mark.parametrize("name", ["hf-generate", "hf-pld"])
def test_what_a_model_asks_of_generate_changes_nothing(session, name, monkeypatch):
    greedy = session.arms[0].answer(asked(session), Sampling(TOKENS)).output_ids
    config = session.model.generation_config
    monkeypatch.setattr(config, "repetition_penalty", 50.0)
    monkeypatch.setattr(config, "top_k", 1)
    monkeypatch.setattr(config, "suppress_tokens", greedy[:1])
    monkeypatch.setattr(config, "encoder_repetition_penalty", 4.0)
    monkeypatch.setattr(config, "max_time", 1e-9)
    monkeypatch.setattr(config, "stop_strings", ["a"])
    monkeypatch.setattr(config, "return_dict_in_generate", True)
    arm = peer(session, name)
    assert arm.answer(asked(session), Sampling(TOKENS)).output_ids == greedy
    hot = [arm.answer(asked(session), Sampling(TOKENS, temperature=3.0, seed=seed)).output_ids for seed in (1, 1, 2)]
    assert hot[0] == hot[1]
    assert len({tuple(each) for each in (greedy, *hot)}) == 3


def test_an_interrupted_run_resumes(run_dir, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    lines = (run_dir / records.FILE).read_bytes().splitlines(keepends=True)
    (copy / records.FILE).write_bytes(b"".join(lines[:-6]))
    (copy / "manifest.json").write_bytes((run_dir / "manifest.json").read_bytes())
    manifest = RunManifest.read(copy)
    assert Options.of(manifest).methods == [BASELINE, *GENERATE]
    run(prepare(Options.of(manifest)), copy, Console(file=io.StringIO()))
    again = records.read(copy)[0]
    assert {(record.key, tuple(record.output_ids)) for record in again} == {
        (record.key, tuple(record.output_ids)) for record in records.read(run_dir)[0]
    }


def test_every_format_says_that_it_is_another_engine(run_dir, tmp_path, monkeypatch):
    looks, draw = [], figures.draw
    monkeypatch.setattr(figures, "draw", lambda *given: looks.append(given[4]) or draw(*given))
    console = Console(file=io.StringIO(), width=300)
    build.build([run_dir], tmp_path, console)
    folder = tmp_path / "file-target"
    mark = "(different engine: transformers generate "
    for text in (console.file.getvalue(), (tmp_path / "report.md").read_text(), (folder / "tables.tex").read_text()):
        assert all(f"{PEERS[name].title} {mark}" in text for name in GENERATE)
    assert mark in re.sub("&#39;", "'", (tmp_path / "report.html").read_text())
    assert "\nDifferent engine, timed by this run's clock: " in console.file.getvalue()
    for name in ("comparison", "turns", "acceptance", "time_split"):
        with (folder / f"{name}.csv").open() as file:
            for row in csv.DictReader(file):
                assert row["engine"].startswith("transformers generate") == (row["method"] in GENERATE)
    (look,) = looks
    assert all("different engine" in " ".join(look.methods[name].split()) for name in GENERATE)
    markdown = (tmp_path / "report.md").read_text()
    assert "No published claim is judged" in markdown
    assert "Fastest arm" not in markdown, "the only arms beside vanilla are no methods of ours"


def test_what_an_engine_does_not_tell_is_absent(run_dir):
    turns = turns_frame(records.read(run_dir)[0])
    own = turns[turns["method"] == "hf-pld"]
    assert own[["draft_s", "verify_s", "commit_s"]].isna().all(axis=None)
    assert (own["decode_s"] > 0).all()
    assert (own["other_s"] > 0).all()


def test_the_manifest_says_which_engine(run_dir, options):
    facts = RunManifest.read(run_dir).methods
    assert facts["hf-pld"].engine.startswith("transformers generate 5.")
    assert facts["hf-pld"].config == {"nodes": 10, "max_ngram": 3}
    assert facts["hf-assisted"].config == {"nodes": 20, "assistant": str(options.drafter_files["hf-assisted"])}
    assert len(facts["hf-assisted"].weights_sha256) == 64
    assert facts[BASELINE].engine == ""


def test_a_claim_is_not_held_against_another_engine(run_dir, capsys):
    assert ended(["verify", run_dir, "--claim", "s4c", "--method", "hf-pld"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --method hf-pld is another engine (transformers generate ")
    assert error.count("\n") == 1
