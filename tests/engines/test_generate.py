"""The engines of transformers' generate: their tokens and steps, and their mark in every format of a report."""

import csv
import dataclasses
import io
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from helpers.consoles import printed
from helpers.tiny_target import QUESTIONS, write_suite, write_target
from transformers import AutoModelForCausalLM

from methods.core.acceptance import Sampling
from methods.core.target import ContextOverflow
from specbench.analysis.frames import turns_frame
from specbench.cli import app
from specbench.config.arm import BASELINE
from specbench.config.options import RunConfig
from specbench.engines.registry import ENGINES
from specbench.measure.runner import LocalExecutor, run
from specbench.measure.session import prepare
from specbench.report import compose, figures
from specbench.store import records
from specbench.store.manifest import RunManifest
from specbench.util.terminal import Console

torch.set_num_threads(1)
TURNS = sum(len(turns) for _, _, turns in QUESTIONS)
GENERATE = [name for name in ENGINES if name.startswith("hf-")]
TOKENS = 16


def write_noisy_copy(folder):
    """Write a draft model that sometimes agrees with the target: the target with noise on its weights."""
    model = AutoModelForCausalLM.from_pretrained(write_target(folder))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.add_(0.05 * parameter.std() * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    target = write_target(folder / "target")
    drafter = write_noisy_copy(folder / "drafter")
    suite = write_suite(folder / "suite.jsonl")
    return RunConfig(
        GENERATE, str(target), suite_file=suite, max_new_tokens=TOKENS, dtype="fp64", device="cpu", drafters={"hf-assisted": drafter}
    )


@pytest.fixture(scope="module")
def session(options):
    return prepare(options)


@pytest.fixture(scope="module")
def run_dir(session, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    run(LocalExecutor(session), folder, Console(file=io.StringIO()))
    return folder


def engine(session, name):
    return next(engine for engine in session.others if engine.name == name)


def encoded(session, text="abcdefghijklmnop" * 3):
    return session.chat.encode([text], [])


def ended(arguments):
    with pytest.raises(SystemExit) as end:
        app.main([str(argument) for argument in arguments])
    return int(end.value.code or 0)


def test_engines_answer_like_vanilla_and_their_tokens_are_counted_alike(run_dir):
    found = {record.key: record for record in records.read(run_dir)[0]}
    assert len(found) == (1 + len(GENERATE)) * TURNS
    for record in found.values():
        twin = found[BASELINE, *record.key[1:]]
        assert (record.status, record.error) == ("ok", "")
        assert record.output_ids == twin.output_ids
        assert (record.prompt_sha256, record.stop, record.output_text) == (twin.prompt_sha256, twin.stop, twin.output_text)
        if record.arm != BASELINE:
            assert record.timing == "steps"
            assert len(record.steps.step_s) == len(record.steps.emitted)
            assert 0 < record.prefill_s < record.prefill_s + sum(record.steps.step_s) <= record.total_s + 1e-4
            assert record.peak_bytes > 10_000_000
    assert {n for record in found.values() if record.arm == "hf-generate" for n in record.steps.emitted} == {1}
    assert max(n for record in found.values() if record.arm == "hf-assisted" for n in record.steps.emitted) > 1


@pytest.mark.parametrize("name", GENERATE)
def test_each_step_is_one_forward_of_the_target(session, name):
    prompt, widths = encoded(session), []
    hook = session.model.register_forward_pre_hook(lambda _, args, given: widths.append(given["input_ids"].shape[1]), with_kwargs=True)
    try:
        answer = engine(session, name).answer(prompt, Sampling(TOKENS))
    finally:
        hook.remove()
    assert len(widths) == 1 + len(answer.steps.emitted)
    assert answer.prefill_tokens + sum(answer.steps.emitted) == len(answer.output_ids) == TOKENS
    drafts = {"hf-generate": 0, "hf-pld": 10}.get(name)
    assert drafts is None or max(widths[1:]) == 1 + drafts


def test_drafts_accepted_in_the_forward_over_the_prompt_are_prefill_tokens(options):
    itself = {"hf-assisted": Path(options.target)}
    twin = prepare(dataclasses.replace(options, methods=["hf-assisted:nodes=6"], drafters=itself))
    arm = engine(twin, "hf-assisted:nodes=6")
    arm.arguments[
        "assistant_model"
    ].generation_config.assistant_confidence_threshold = 0.0  # by default it stops drafting where it is unsure
    answer = arm.answer(encoded(twin), Sampling(TOKENS))
    assert answer.prefill_tokens == 7, "a drafter that is the target has its drafts accepted"
    assert 7 + sum(answer.steps.emitted) == TOKENS


@pytest.mark.parametrize("name", GENERATE)
def test_answers_stop_at_stop_ids_and_at_the_context(session, name):
    whole = session.own[0].answer(encoded(session), Sampling(TOKENS)).output_ids
    stop = frozenset({whole[5]})
    first = whole.index(whole[5])
    answer = engine(session, name).answer(encoded(session), Sampling(TOKENS, stop_ids=stop))
    assert (answer.output_ids, answer.stop) == (whole[: first + 1], "stop_id")
    long = [70] * (session.target.context - 9)
    cut = engine(session, name).answer(long, Sampling(1000))
    assert (len(cut.output_ids), cut.stop) == (9, "length")
    with pytest.raises(ContextOverflow):
        engine(session, name).answer([5] * session.target.context, Sampling(1))


SETTINGS = {
    "use_cache": False,
    "cache_implementation": "static",
    "repetition_penalty": 50.0,
    "encoder_repetition_penalty": 4.0,
    "penalty_alpha": 0.6,
    "top_k": 1,
    "num_beams": 3,
    "num_return_sequences": 2,
    "prompt_lookup_num_tokens": 5,
    "stop_strings": ["a"],
    "max_time": 1e-9,
    "return_dict_in_generate": True,
}


def test_generation_settings_of_the_checkpoint_change_nothing(session, options, tmp_path, monkeypatch):
    greedy = session.own[0].answer(encoded(session), Sampling(TOKENS)).output_ids
    other = shutil.copytree(options.target, tmp_path / "other")
    (other / "generation_config.json").write_text(json.dumps(SETTINGS | {"suppress_tokens": greedy[:1], "eos_token_id": 7}))
    twin = prepare(dataclasses.replace(options, methods=["hf-generate", "hf-pld"], target=str(other), drafters={}))
    assert 7 in twin.stop_ids
    widths: list[int] = []
    for name in ("hf-generate", "hf-pld"):
        arm = engine(twin, name)
        widths.clear()
        hook = twin.model.register_forward_pre_hook(lambda _, args, given: widths.append(given["input_ids"].shape[1]), with_kwargs=True)
        answer = arm.answer(encoded(twin), Sampling(TOKENS))
        hook.remove()
        assert answer.output_ids == greedy
        assert max(widths[1:]) == (1 if name == "hf-generate" else 11), "the cache is used, and only hf-pld drafts"
        hot = [arm.answer(encoded(twin), Sampling(TOKENS, temperature=3.0, seed=seed)).output_ids for seed in (1, 1, 2)]
        assert hot[0] == hot[1]
        assert len({tuple(tokens) for tokens in (greedy, *hot)}) == 3


@pytest.mark.parametrize("restricted", [{"top_k": 1}, {"top_p": 1e-9}])
@pytest.mark.parametrize("name", GENERATE)
def test_they_sample_from_the_likeliest_tokens(session, name, restricted):
    greedy = session.own[0].answer(encoded(session), Sampling(TOKENS)).output_ids
    assert engine(session, name).answer(encoded(session), Sampling(TOKENS, 3.0, **restricted)).output_ids == greedy


def test_interrupted_run_resumes(run_dir, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    lines = (run_dir / records.FILE).read_bytes().splitlines(keepends=True)
    (copy / records.FILE).write_bytes(b"".join(lines[:-6]))
    (copy / "manifest.json").write_bytes((run_dir / "manifest.json").read_bytes())
    manifest = RunManifest.read(copy)
    assert list(manifest.arms) == [BASELINE, *GENERATE]
    run(LocalExecutor(prepare(manifest.settings)), copy, Console(file=io.StringIO()))
    again = records.read(copy)[0]
    assert {(record.key, tuple(record.output_ids)) for record in again} == {
        (record.key, tuple(record.output_ids)) for record in records.read(run_dir)[0]
    }


def test_every_report_format_marks_other_engines(run_dir, tmp_path, monkeypatch):
    contexts, draw = [], figures.draw

    def noted(*given):
        contexts.append(given[4])
        return draw(*given)

    monkeypatch.setattr(figures, "draw", noted)
    console = Console(file=io.StringIO(), width=300)
    compose.build([run_dir], tmp_path, console)
    folder = tmp_path / "file-target"
    mark = "(different engine: transformers generate "
    for text in (printed(console), (tmp_path / "report.md").read_text(), (folder / "tables.tex").read_text()):
        assert all(f"{ENGINES[name].title} {mark}" in text for name in GENERATE)
    assert mark in re.sub("&#39;", "'", (tmp_path / "report.html").read_text())
    assert "\nDifferent engine, timed by this run's clock: " in printed(console)
    for name in ("comparison", "turns", "acceptance", "time_split"):
        with (folder / f"{name}.csv").open() as file:
            for row in csv.DictReader(file):
                assert row["engine"].startswith("transformers generate") == (row["arm"] in GENERATE)
    (context,) = contexts
    assert all("different engine" in " ".join(context.arms[name].split()) for name in GENERATE)
    markdown = (tmp_path / "report.md").read_text()
    assert "S4C's claim is not judged" in markdown
    assert "Fastest arm" not in markdown, "the only arms beside vanilla are no methods of ours"


def test_times_that_an_engine_does_not_report_are_missing(run_dir):
    turns = turns_frame(records.read(run_dir)[0], RunManifest.read(run_dir).arms)
    own = turns[turns["arm"] == "hf-pld"]
    assert own[["draft_s", "verify_s", "commit_s"]].isna().all(axis=None)
    assert (own["decode_s"] > 0).all()
    assert (own["other_s"] > 0).all()


def test_manifest_names_the_engine(run_dir, options):
    facts = RunManifest.read(run_dir).arms
    assert facts["hf-pld"].engine.startswith("transformers generate 5.")
    assert facts["hf-pld"].config == {"nodes": 10, "max_ngram": 3}
    assert facts["hf-assisted"].config == {"nodes": 20, "assistant": str(options.drafters["hf-assisted"])}
    assert len(facts["hf-assisted"].weights_sha256 or "") == 64
    assert facts[BASELINE].engine == ""


def test_claims_are_not_judged_on_another_engine(run_dir, capsys):
    assert ended(["verify", run_dir, "--claim", "s4c", "--method", "hf-pld"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --method hf-pld is another engine (transformers generate ")
    assert error.count("\n") == 1
