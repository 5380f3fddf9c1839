"""Divergences are judged as rounding ties or as violations."""

import dataclasses
import io
import json
from math import inf, isnan

import pytest
import torch
from helpers.consoles import printed
from helpers.edited_runs import without_digests
from helpers.scripted_records import failed, turn, write_run
from helpers.small_models import CPU, taken
from helpers.tiny_target import write_suite, write_target

from methods.core.acceptance import match
from methods.core.errors import UserError
from methods.core.tree import DraftTree
from specbench.cli.agree import agree
from specbench.config.options import RunConfig
from specbench.engines.own import OwnEngine
from specbench.lossless import divergence, text
from specbench.lossless.differences import ArmAgreement, Divergence, LosslessReport
from specbench.lossless.divergence import explain, magnitude
from specbench.measure import progress, runner
from specbench.measure.runner import LocalExecutor
from specbench.measure.session import prepare
from specbench.store import records
from specbench.store.manifest import RunManifest
from specbench.suites import spec_bench
from specbench.targets.widen import SHAPES, ModelShape
from specbench.util.terminal import Console

torch.set_num_threads(1)
TOKENS = 60
QUESTIONS = [(f"a{i}", "letters", [f"Say {i} {i} {i}."]) for i in range(6)]


class Junk:
    """A drafter whose guesses the target never agrees with, so that every step has a wrong token that could be accepted."""

    sizes = (2,)
    reads = ()

    def begin(self, prompt, first, scores, sampling):
        pass

    def observe(self, tree, accepted, scores):
        pass

    def wipe(self):
        pass

    def draft(self, tokens):
        return DraftTree.chain([tokens[-1], (tokens[-1] * 7 + 3) % 256], CPU)


class Broken:
    """The match rule with a fault: it accepts one drafted token in 200 though the target chose another."""

    def __init__(self, every=200):
        self.every, self.tokens, self.accepted = every, 0, 0

    def __call__(self, tree, logits_NV, temperature, noise):
        verdict = match(tree, logits_NV, temperature, noise)
        self.tokens += int(verdict.length)
        if self.tokens % self.every or int(verdict.length) == tree.size:
            return verdict
        self.accepted += 1
        return taken(tree, logits_NV, 1, int(logits_NV[1].argmax()))


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """Return vanilla and an arm that drafts junk, on a random target in fp32."""
    folder = tmp_path_factory.mktemp("inputs")
    target, suite = write_target(folder / "target"), write_suite(folder / "suite.jsonl", [*QUESTIONS, ("b", "talks", ["Say a.", "And b?"])])
    options = RunConfig(["pld"], str(target), suite_file=suite, max_new_tokens=TOKENS, dtype="fp32", device="cpu")
    return prepare(options)


def measured(session, rule, run_dir):
    engines = (session.own[0], OwnEngine("pld", session.target, Junk(), rule))
    runner.run(LocalExecutor(dataclasses.replace(session, own=engines, warmup=())), run_dir, Console(file=io.StringIO()))
    return run_dir


@pytest.fixture(scope="module")
def sound(session, tmp_path_factory):
    return measured(session, match, tmp_path_factory.mktemp("sound"))


@pytest.fixture
def run(sound, tmp_path):
    """Copy the sound run, to change it."""
    for name in ("manifest.json", records.FILE):
        (tmp_path / name).write_bytes((sound / name).read_bytes())
    return without_digests(tmp_path)


def change(run, question, turn=0, **fields):
    """Change the arm's record and return vanilla's."""
    lines = [json.loads(line) for line in (run / records.FILE).read_text().splitlines()]
    ours, theirs = (
        [one for one in lines if (one["arm"], one["question_id"], one["turn"]) == (m, question, turn)] for m in ("pld", "vanilla")
    )
    ours[0].update(fields)
    (run / records.FILE).write_text("".join(json.dumps(one) + "\n" for one in lines))
    return theirs[0]


def write_wrongly(run, question, position, token):
    """Let the arm write another token and go on as vanilla did."""
    ids = list(change(run, question)["output_ids"])
    ids[position] = token(ids[position]) if callable(token) else token
    return change(run, question, output_ids=ids)


def logits_after(session, theirs, position, question="Say 0 0 0."):
    prompt = session.chat.encode([question], [])
    with torch.inference_mode():
        return session.model(torch.tensor([prompt + theirs["output_ids"][:position]])).logits[0, -1]


def test_a_sound_verifier_agrees_and_no_target_is_loaded(sound, monkeypatch, capsys):
    monkeypatch.setattr(divergence, "prepare", None)
    [arm] = explain(sound).arms
    assert (arm.arm, arm.compared, arm.same, arm.share, arm.other_prompt, arm.unanswered) == ("pld", 8, 8, 1.0, 0, 0)
    assert arm.divergences == ()
    assert isnan(arm.widest_tie)
    assert isnan(arm.position_quartiles[1])
    agree(sound)
    assert "violation:" not in capsys.readouterr().out


def test_a_verifier_that_accepts_one_wrong_token_in_200_is_caught(session, tmp_path, capsys):
    rule = Broken()
    [arm] = explain(measured(session, rule, tmp_path)).arms
    assert rule.accepted >= 2  # more than 400 tokens were verified
    assert len(arm.violations) == len(arm.divergences) == rule.accepted  # no answer was hit twice
    assert all(each.shortfall > 100 * each.tolerance for each in arm.violations)
    with pytest.raises(SystemExit) as end:
        agree(tmp_path)
    assert end.value.code == 1
    assert capsys.readouterr().out.count("violation: pld, question ") == rule.accepted


@pytest.fixture(scope="module")
def wide_bf16(tmp_path_factory):
    """Return vanilla and an arm that drafts junk, in bf16, on a cost-matched target: a widened random one."""
    folder = tmp_path_factory.mktemp("wide")
    small, suite = write_target(folder / "target"), write_suite(folder / "suite.jsonl", QUESTIONS[:4])
    shape = ModelShape("a test's", hidden=64, layers=3, query=64, key=32, intermediate=96, vocab=400)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("specbench.targets.target.shipped_folder", lambda: small)
        patch.setitem(SHAPES, "tiny-160m", shape)
        yield prepare(RunConfig(["pld"], "tiny-160m", suite_file=suite, max_new_tokens=40, dtype="bf16", device="cpu"))


def test_a_broken_verifier_on_a_cost_matched_target_in_bf16_is_caught(wide_bf16, tmp_path):
    """If filler tokens' logits of -1e4 set the scale, a tolerance of four bf16 roundings would accept any token."""
    logits_V = wide_bf16.target.prefill([1, 2, 3]).logits_NV[-1]
    assert float(logits_V.min()) < -9_000
    assert magnitude(logits_V) < 1_000
    [arm] = explain(measured(wide_bf16, match, tmp_path / "sound")).arms
    assert arm.violations == []
    rule = Broken(every=20)
    [arm] = explain(measured(wide_bf16, rule, tmp_path / "broken")).arms
    assert rule.accepted >= 3
    assert len(arm.violations) >= 2  # a turn shows its first difference only, which may be a tie or an earlier wrong token


def test_a_violation_is_shown_with_the_targets_gap_and_the_text_around(run, session, capsys):
    theirs = write_wrongly(run, "a0", 4, lambda token: (token + 1) % 200)
    [found] = explain(run).divergences
    logits_V, wrong = logits_after(session, theirs, 4), (theirs["output_ids"][4] + 1) % 200
    top, top10 = logits_V.topk(2).values, logits_V.topk(10).values
    assert (found.arm, found.question_id, found.turn, found.position) == ("pld", "a0", 0, 4)
    assert found.tokens == (theirs["output_ids"][4], wrong)
    assert found.gap == pytest.approx(float(top[0] - top[1]), rel=1e-4)
    assert found.shortfall == pytest.approx(float(top[0] - logits_V[wrong]), rel=1e-4)
    assert found.tolerance == pytest.approx(4 * 2**-23 * float(top10.abs().max()), rel=1e-4)
    decode = session.tokenizer.decode
    assert found.before == decode(theirs["output_ids"][:4])
    assert found.texts == (decode([found.tokens[0]]), decode([wrong]))
    assert found.after[0] == found.after[1] == decode(theirs["output_ids"][5:45])[:40]
    with pytest.raises(SystemExit):
        agree(run)
    shown = capsys.readouterr().out
    assert "violation: pld, question a0, turn 1, repeat 1, token 4: " in shown
    assert repr(found.before) in shown
    assert (
        "(4 roundings of fp32, 1.2e-07 each) times the largest magnitude among the 10 highest logits; "
        f"in this run {found.tolerance:.2g}" in shown
    )


def test_tokens_that_cannot_win_do_not_widen_the_tolerance():
    assert magnitude(torch.tensor([*range(12), -1e4])) == 11
    assert magnitude(torch.tensor([-3.0, -1e4])) == 1e4


def test_the_tolerance_follows_the_runs_dtype(run, session):
    theirs = change(run, "a0")
    second = int(logits_after(session, theirs, 3).topk(2).indices[1])
    write_wrongly(run, "a0", 3, second)
    seen = {}
    for dtype in ("fp64", "fp32", "fp16", "bf16"):
        manifest = RunManifest.read(run)
        dataclasses.replace(manifest, settings=dataclasses.replace(manifest.settings, dtype=dtype)).write(run)
        [found] = explain(run).divergences
        assert found.gap == pytest.approx(found.shortfall)
        seen[dtype] = found.tolerance
    assert seen["fp64"] == seen["fp32"]
    assert seen["fp16"] == pytest.approx(2**13 * seen["fp32"])
    assert seen["bf16"] == pytest.approx(2**16 * seen["fp32"])


def test_an_answer_that_ends_early_or_late_is_a_violation(run, capsys):
    theirs = change(run, "a0")
    steps = {**theirs["steps"], "accepted": [0] * 9, "emitted": [1] * 9}
    change(run, "a0", output_ids=theirs["output_ids"][:10], steps=steps, prefill_s=theirs["prefill_s"], total_s=theirs["total_s"])
    [found] = explain(run).divergences
    assert (found.position, found.tokens, found.texts[1], found.shortfall) == (10, (theirs["output_ids"][10], None), "", inf)
    assert not found.is_tie
    with pytest.raises(SystemExit):
        agree(run, as_json=True)
    shown = json.loads(capsys.readouterr().out)
    assert shown["arms"][0]["divergences"][0]["shortfall"] is None


def test_json_holds_everything(run, session, capsys):
    theirs = write_wrongly(run, "a0", 4, lambda token: (token + 1) % 200)
    write_wrongly(run, "a1", 9, lambda token: (token + 1) % 200)
    change(run, "b", 1, prompt_sha256="0" * 64)
    change(run, "a2", status="error", error="out of memory")
    with pytest.raises(SystemExit) as end:
        agree(run, as_json=True)
    assert end.value.code == 1
    shown = json.loads(capsys.readouterr().out)
    assert (shown["schema"], shown["dtype"], shown["violations"], shown["tolerance"]["roundings"]) == (2, "fp32", 2, 4)
    assert shown["tolerance"]["relative"] == 4 * 2**-23
    [arm] = shown["arms"]
    assert {name: arm[name] for name in ("arm", "compared", "same", "share", "ties", "violations", "widest_tie", "not_compared")} == {
        "arm": "pld", "compared": 6, "same": 4, "share": 4 / 6, "ties": 0, "violations": 2, "widest_tie": None,
        "not_compared": {"other_prompt": 1, "unanswered": 1},
    }  # fmt: skip
    assert arm["first_divergence"] == {"low_quartile": 5.25, "median": 6.5, "high_quartile": 7.75}
    assert [(one["question_id"], one["position"], one["verdict"]) for one in arm["divergences"]] == [
        ("a0", 4, "violation"),
        ("a1", 9, "violation"),
    ]
    assert arm["divergences"][0]["tokens"][0] == theirs["output_ids"][4]


def test_equal_divergences_of_arms_and_repeats_take_one_forward(run, monkeypatch):
    write_wrongly(run, "a0", 4, lambda token: (token + 1) % 200)
    lines = [json.loads(line) for line in (run / records.FILE).read_text().splitlines()]
    again = [{**one, "repeat": 1} for one in lines]
    (run / records.FILE).write_text("".join(json.dumps(one) + "\n" for one in (*lines, *again)))
    asked = []
    true = divergence.prepare

    def watched(options):
        session = true(options)
        prefill = session.target.prefill

        def noted(prompt):
            asked.append(prompt)
            return prefill(prompt)

        monkeypatch.setattr(session.target, "prefill", noted)
        return session

    monkeypatch.setattr(divergence, "prepare", watched)
    assert [each.repeat for each in explain(run).divergences] == [0, 1]
    assert len(asked) == 1


def made(arm="s4c", shortfall=0.1, gap=0.1, position=3, before="so", texts=("a", "b"), question="1"):
    return Divergence(arm, question, 0, 0, position, (5, 6), texts, before, (" c", " d"), gap, shortfall, tolerance=0.2)


@pytest.mark.parametrize(
    ("shortfall", "tie"), [(0.1, True), (0.3, False), (inf, False)], ids=["near", "one token far from the top", "an answer ended"]
)
def test_a_tie_needs_both_tokens_near_the_targets_first_choice(shortfall, tie):
    assert made(shortfall=shortfall).is_tie == tie


def test_the_table_counts_ties_and_violations_apart():
    arm = ArmAgreement("s4c", "", 10, 2, 1, (made(position=2), made(shortfall=0.15, position=5), made(shortfall=7.0, position=30)))
    explained = LosslessReport("a run", "bf16", (arm, ArmAgreement("pld", "", 0, 0, 13, ())))
    assert text.table(explained).rows == [
        ["s4c", "10", "7 (70.0 %)", "2", "1", "5 (4 to 18)", "0.15", "2", "1"],
        ["pld", "0", "\N{EM DASH}", "0", "0", "\N{EM DASH}", "\N{EM DASH}", "0", "13"],
    ]
    assert "is 0.031 (4 roundings of bf16, 0.0078 each)" in explained.rule


def test_model_text_cannot_steer_the_terminal(monkeypatch, capsys, tmp_path):
    hostile = made(shortfall=7.0, before="[bold]\x1b[2J\n\x9b2J\u202e", texts=("[/red]", "\r"), question="q\x1b[2J")
    monkeypatch.setattr(
        divergence, "explain", lambda run, on_progress: LosslessReport("r", "bf16", (ArmAgreement("s4c", "", 1, 0, 0, (hostile,)),))
    )
    with pytest.raises(SystemExit):
        agree(tmp_path)
    shown = capsys.readouterr().out
    [line] = [line for line in shown.splitlines() if line.startswith("violation:")]
    assert line.isprintable()
    assert "'[bold]\\x1b[2J\\n\\x9b2J\\u202e'" in line
    assert "'[/red]'" in line


def test_a_sampled_run_is_refused(run):
    manifest = RunManifest.read(run)
    dataclasses.replace(manifest, settings=dataclasses.replace(manifest.settings, temperature=0.7)).write(run)
    with pytest.raises(UserError, match=r"sampled at temperature 0\.7; only greedy runs"):
        explain(run)


def test_a_run_without_two_comparable_arms_is_refused(tmp_path):
    for name, rows in {"alone": [turn("vanilla", "q1", [0])], "failed": [turn("vanilla", "q1", [0]), failed("medusa", "q1")]}.items():
        with pytest.raises(UserError, match="no turn of another arm beside vanilla's"):
            explain(write_run(tmp_path / name, rows))


@pytest.mark.parametrize("provided", [None, "changed"])
def test_a_missing_spec_bench_file_is_refused_with_a_hint_that_agree_supports(run, tmp_path, monkeypatch, provided):
    write_wrongly(run, "a0", 4, 7)
    manifest = RunManifest.read(run)
    settings = dataclasses.replace(manifest.settings, suite="spec-bench", suite_file=None)
    suite = dataclasses.replace(manifest.suite, name="spec-bench", sha256=spec_bench.SHA256)
    dataclasses.replace(manifest, settings=settings, suite=suite).write(run)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("SPECBENCH_DATA", str(tmp_path))
    monkeypatch.setattr(spec_bench, "URL", (tmp_path / "absent").as_uri())
    if provided:
        (tmp_path / "spec_bench").mkdir()
        (tmp_path / "spec_bench" / "question.jsonl").write_text("changed")
    with pytest.raises(UserError) as refusal:
        agree(run)
    assert "--suite-file" not in str(refusal.value)
    assert ("is not that of Spec-Bench's questions" if provided else "could not be downloaded") in str(refusal.value)
    assert str(refusal.value).endswith("; set SPECBENCH_DATA to a folder that holds an unchanged spec_bench/question.jsonl")


def test_a_missing_suite_file_is_named_with_its_place(run, tmp_path):
    write_wrongly(run, "a0", 4, 7)
    gone = tmp_path / "gone.jsonl"
    manifest = RunManifest.read(run)
    dataclasses.replace(manifest, settings=dataclasses.replace(manifest.settings, suite_file=gone)).write(run)
    with pytest.raises(UserError) as refusal:
        agree(run)
    advice = f"put the run's questions back at {gone}, where its manifest has them"
    assert str(refusal.value) == f"suite file {gone} does not exist; {advice}"


def test_progress_goes_to_stderr_now_and_then_and_never_to_stdout(run, monkeypatch, capsys):
    write_wrongly(run, "a0", 4, lambda token: (token + 1) % 200)
    write_wrongly(run, "a1", 9, lambda token: (token + 1) % 200)
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    with pytest.raises(SystemExit):
        agree(run, as_json=True)
    shown = capsys.readouterr()
    assert json.loads(shown.out)["violations"] == 2
    assert shown.err.splitlines() == [f"{done}/2 first differences put to the target" for done in range(3)]
    monkeypatch.undo()
    with pytest.raises(SystemExit):
        agree(run)
    assert capsys.readouterr().err == ""  # too soon for a line


def test_on_a_terminal_progress_is_a_bar_that_goes_away():
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with progress.show_progress(console, "first differences put to the target") as on_progress:
        on_progress(0, 8)
        on_progress(3, 8)
    drawn = printed(console)
    assert "first differences put to the target" in drawn
    assert "38%" in drawn
    assert drawn.endswith("\x1b[2K")  # the line it stood in, erased


@pytest.mark.parametrize(("part", "named"), [("suite", "the suite of the run"), ("target", "the target of the run")])
def test_another_suite_or_target_is_refused(run, part, named):
    write_wrongly(run, "a0", 4, 7)
    manifest = RunManifest.read(run)
    changed = dataclasses.replace(getattr(manifest, part), **{"suite": {"sha256": "f" * 64}, "target": {"weights_sha256": "f" * 64}}[part])
    dataclasses.replace(manifest, **{part: changed}).write(run)
    with pytest.raises(UserError, match=rf"{named} \(sha256 ffffffffffff\) is not the one here"):
        explain(run)
