"""A run in this process: its schedule, its records, failures of turns, interrupts, and its manifest."""

import contextlib
import dataclasses
import io
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.consoles import printed
from helpers.edited_runs import without_digests
from helpers.tiny_target import QUESTIONS, write_suite, write_target

from methods.core.acceptance import Accepted, Sampling, match, path_to
from methods.core.errors import UserError
from methods.core.tree import DraftTree
from methods.vanilla import Vanilla
from specbench.config.options import RunConfig
from specbench.engines.base import Answer
from specbench.engines.own import OwnEngine
from specbench.measure import progress
from specbench.measure.measurer import WARMUP_TOKENS
from specbench.measure.progress import RunProgress
from specbench.measure.runner import LocalExecutor, run
from specbench.measure.schedule import Unit, schedule, turn_seed
from specbench.measure.session import Session, prepare
from specbench.store import records
from specbench.store.manifest import RunManifest, differences
from specbench.store.records import ImpossibleTimesError, Record, Steps
from specbench.suites import Question
from specbench.targets import chat
from specbench.util.memory import PeakMemory
from specbench.util.terminal import Console

TURNS = sum(len(turns) for _, _, turns in QUESTIONS)
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inputs")
    return write_target(folder / "target"), write_suite(folder / "suite.jsonl")


@pytest.fixture
def options(inputs):
    target, suite_file = inputs
    return RunConfig(methods=["pld"], target=str(target), suite_file=suite_file, max_new_tokens=12, dtype="fp32", device="cpu")


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def measured(session: Session, run_dir: Path) -> dict[tuple[str, str, int, int], Record]:
    run(LocalExecutor(session), run_dir, quiet())
    found, torn, *_ = records.read(run_dir)
    assert not torn
    assert len({record.key for record in found}) == len(found)
    return {record.key: record for record in found}


def with_arm(session: Session, drafter, accept=match) -> Session:
    """Return the session with its second arm replaced."""
    vanilla, other = session.own
    return dataclasses.replace(session, own=(vanilla, OwnEngine(other.name, other.target, drafter, accept)))


class Failing(Vanilla):
    """A drafter that raises an error when it drafts for the prompt with this hash. ``begun`` holds every prompt's hash."""

    def __init__(self, prompt_sha256: str, error: BaseException):
        super().__init__(torch.device("cpu"))
        self.prompt_sha256, self.error = prompt_sha256, error
        self.begun: list[str] = []

    def begin(self, prompt, first, scores, sampling):
        super().begin(prompt, first, scores, sampling)
        self.begun.append(chat.ids_sha256(prompt))

    def draft(self, tokens) -> DraftTree:
        if self.begun[-1] == self.prompt_sha256:
            raise self.error
        return super().draft(tokens)


def first_prompt(session: Session, question_id: str) -> str:
    question = next(q for q in session.suite.questions if q.id == question_id)
    return chat.ids_sha256(session.chat.encode(question.turns[:1], []))


def test_schedule_holds_every_unit_once_and_rotates_the_first_arm():
    questions = [Question(str(i), "c", ("x",) * (1 + i % 2), ()) for i in range(6)]
    order = list(schedule(questions, ["a", "b", "c"], repeats=2))
    assert len(set(order)) == len(order) == 3 * 9 * 2
    groups = [order[i : i + 3] for i in range(0, len(order), 3)]
    assert all(len({(u.question.id, u.turn, u.repeat) for u in group}) == 1 for group in groups)
    firsts = Counter(group[0].arm for group in groups if group[0].turn == 0)
    assert firsts == {"a": 4, "b": 4, "c": 4}
    assert [group[0].arm for group in groups if group[0].question.id == "0"] == ["a", "b"]


def test_run_records_every_turn_of_every_arm(options, tmp_path):
    session = prepare(options)
    found = measured(session, tmp_path)
    assert len(found) == 2 * TURNS == session.manifest.units_total
    assert RunManifest.read(tmp_path).status == "complete"
    for record in found.values():
        assert record.status == "ok", record.error
        spent = record.prefill_s + sum(record.steps.draft_s + record.steps.verify_s + record.steps.commit_s)
        assert 0 < record.prefill_s < spent <= record.total_s + 1e-5
        assert record.peak_bytes > 10_000_000
        twin = found["vanilla", *record.key[1:]]
        assert record.output_ids == twin.output_ids
        assert record.prompt_sha256 == twin.prompt_sha256
        assert set(twin.steps.tree_size) == {1}
    assert max(max(r.steps.tree_size) for r in found.values() if r.arm == "pld") > 1


def test_prompts_and_answers_are_those_of_generate(options, tmp_path):
    session = prepare(options)
    found = measured(session, tmp_path)
    question = next(q for q in session.suite.questions if q.id == "n1")
    answers: list[str] = []
    model: Any = session.model  # transformers types its mixed-in `generate` as a tensor
    for turn in range(3):
        prompt = session.chat.encode(question.turns[: turn + 1], answers)
        record = found["pld", "n1", turn, 0]
        assert record.prompt_sha256 == chat.ids_sha256(prompt)
        assert record.prompt_tokens == len(prompt)
        truth = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12)[0, len(prompt) :]
        assert record.output_ids == truth.tolist()
        answers.append(str(session.tokenizer.decode(truth, skip_special_tokens=True)))


@pytest.mark.parametrize("turns", ["own", "shared"])
def test_history_of_a_second_turn_is_the_arms_own_or_vanillas(options, tmp_path, turns):
    def wrong(tree, logits_NV, temperature, noise) -> Accepted:
        return path_to(tree, logits_NV, torch.tensor([0]), torch.tensor([5]))

    session = with_arm(prepare(dataclasses.replace(options, turns=turns)), Vanilla(torch.device("cpu")), wrong)
    found = measured(session, tmp_path)
    assert found["pld", "a1", 0, 0].output_ids != found["vanilla", "a1", 0, 0].output_ids
    same = found["pld", "a1", 1, 0].prompt_sha256 == found["vanilla", "a1", 1, 0].prompt_sha256
    assert same == (turns == "shared")


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("out of memory\ntrace"), FloatingPointError("the target's logits are NaN"), KeyError("foreign code")],
    ids=lambda error: type(error).__name__,
)
def test_failed_turn_is_an_error_record_and_the_run_goes_on(options, tmp_path, error):
    session = prepare(options)
    session = with_arm(session, Failing(first_prompt(session, "n1"), error))
    found = measured(session, tmp_path)
    assert len(found) == 2 * TURNS
    assert found["pld", "n1", 0, 0].error == f"{type(error).__name__}: {str(error).splitlines()[0]}"
    assert found["pld", "n1", 1, 0].error == found["pld", "n1", 2, 0].error == "turn 1 failed"
    failed = [record for record in found.values() if record.status == "error"]
    assert len(failed) == 3
    assert not any(record.output_ids or record.total_s or record.peak_bytes for record in failed)


def test_template_that_refuses_a_conversation_fails_its_turns_alone(options, tmp_path):
    session = prepare(options)
    template = session.tokenizer.chat_template
    session.tokenizer.chat_template = "{% if messages|length == 3 %}{{ raise_exception('no second turn') }}{% endif %}" + template
    found = measured(session, tmp_path)
    assert len(found) == 2 * TURNS
    failed = {record.key: record.error for record in found.values() if record.status == "error"}
    assert {key[2] for key in failed} == {1, 2}
    assert {error for key, error in failed.items() if key[2] == 1} == {"TemplateError: no second turn"}


class MisclockedEngine:
    """An engine whose clock is another one while it answers the prompt with this hash."""

    def __init__(self, engine: OwnEngine, prompt_sha256: str, clock: Callable[[], float]):
        self.name, self.target, self.warm_up, self.recover = engine.name, engine.target, engine.warm_up, engine.recover
        self.engine, self.prompt_sha256, self.clock = engine, prompt_sha256, clock

    def answer(self, prompt: list[int], sampling: Sampling) -> Answer:
        with pytest.MonkeyPatch.context() as patch:
            if chat.ids_sha256(prompt) == self.prompt_sha256:
                patch.setattr(time, "perf_counter", self.clock)
            return self.engine.answer(prompt, sampling)


@pytest.mark.parametrize(
    ("clock", "error"),
    [(lambda: 7.0, "the turn took 0.0 s by the clock"), (map(float, range(1000, 0, -1)).__next__, r"the turn took -\d+\.0 s by the clock")],
    ids=["stands still", "runs backwards"],
)
def test_turn_by_a_clock_that_does_not_run_is_an_error_record(options, tmp_path, clock, error):
    session = prepare(options)
    vanilla, pld = session.own
    misclocked: Any = MisclockedEngine(pld, first_prompt(session, "n1"), clock)
    found = measured(dataclasses.replace(session, own=(vanilla, misclocked)), tmp_path)
    assert re.fullmatch(f"ImpossibleTimesError: {error}", found["pld", "n1", 0, 0].error)
    assert Counter(record.status for record in found.values()) == {"error": 3, "ok": 2 * TURNS - 3}


@pytest.mark.parametrize(
    ("total_s", "steps", "error"),
    [
        (float("nan"), Steps(accepted=[0], emitted=[1], step_s=[0.1]), "the turn took nan s"),
        (float("inf"), Steps(accepted=[0], emitted=[1], step_s=[0.1]), "the turn took inf s"),
        (1.0, Steps(accepted=[0, 0], emitted=[1, 1], step_s=[0.2, -0.1]), "a part of the turn took -0.1 s"),
        (1.0, Steps(accepted=[0, 0], emitted=[1, 1], step_s=[0.9, 0.9]), r"the turn took 1.0 s by the clock, its parts 1.8 s"),
    ],
)
def test_record_refuses_times_that_no_answer_takes(total_s, steps, error):
    with pytest.raises(ImpossibleTimesError, match=error):
        Record("a", "1", "c", 0, 0, "ok", output_ids=[1] * (1 + len(steps.emitted)), total_s=total_s, steps=steps)


def test_conversation_longer_than_the_context_is_an_error_record(options, tmp_path):
    target = write_target(tmp_path / "target", context=64)
    found = measured(prepare(dataclasses.replace(options, target=str(target), max_new_tokens=40)), tmp_path / "run")
    assert found["vanilla", "a1", 0, 0].status == "ok"
    assert found["vanilla", "a1", 1, 0].error.startswith("ContextOverflow: prompt of ")


def test_failed_device_ends_the_run(options, tmp_path):
    session = prepare(options)
    session = with_arm(session, Failing(first_prompt(session, "n1"), torch.AcceleratorError("device-side assert")))
    with pytest.raises(UserError, match="device-side assert"):
        run(LocalExecutor(session), tmp_path, quiet())
    assert RunManifest.read(tmp_path).status == "interrupted"


def test_run_resumes_after_ctrl_c(options, tmp_path):
    session = prepare(options)
    broken = with_arm(session, Failing(first_prompt(session, "n1"), KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        run(LocalExecutor(broken), tmp_path, quiet())
    before = (tmp_path / records.FILE).read_bytes()
    assert before.endswith(b"\n")
    assert RunManifest.read(tmp_path).status == "interrupted"
    assert len(measured(session, tmp_path)) == 2 * TURNS
    assert (tmp_path / records.FILE).read_bytes().startswith(before)
    assert RunManifest.read(tmp_path).status == "complete"
    assert len(RunManifest.read(tmp_path).resumed) == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full here")
def test_full_disk_is_a_user_error(options, tmp_path):
    (tmp_path / records.FILE).symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"No space left on device.*specbench resume"):
        run(LocalExecutor(prepare(options)), tmp_path, quiet())


def test_warm_up_answers_its_questions_and_leaves_no_record(options, tmp_path):
    session = prepare(options)
    session = with_arm(session, drafter := Failing("", RuntimeError()))
    found = measured(session, tmp_path)
    warmed = [chat.ids_sha256(session.chat.encode(q.turns[:1], [])) for q in session.warmup]
    assert drafter.begun[1 : 1 + len(warmed)] == warmed  # the first prompt is made up by the arm's own warm-up
    assert len(drafter.begun) == 1 + len(warmed) + TURNS
    assert not {record.prompt_sha256 for record in found.values()} & set(warmed)
    run(LocalExecutor(session), tmp_path, quiet())
    assert len(drafter.begun) == 1 + len(warmed) + TURNS, "a finished run needs no warm-up"


def test_failed_warm_up_is_printed_and_the_run_goes_on(options, tmp_path):
    session = prepare(options)
    warmed = chat.ids_sha256(session.chat.encode(session.warmup[0].turns[:1], []))
    console = Console(file=io.StringIO(), width=200)
    run(LocalExecutor(with_arm(session, Failing(warmed, RuntimeError("no kernel")))), tmp_path, console)
    assert "pld failed to warm up: RuntimeError: no kernel" in printed(console)
    assert RunManifest.read(tmp_path).status == "complete"


def test_vanilla_that_fails_to_warm_up_ends_the_run_before_it_measures(options, tmp_path):
    session = prepare(options)
    vanilla, pld = session.own
    warmed = chat.ids_sha256(session.chat.encode(session.warmup[0].turns[:1], []))
    broken = vanilla._replace(drafter=Failing(warmed, RuntimeError("no kernel")))
    with pytest.raises(UserError, match=r"^vanilla failed to warm up \(RuntimeError: no kernel\), so nothing is measured; try another .*$"):
        run(LocalExecutor(dataclasses.replace(session, own=(broken, pld))), tmp_path, quiet())
    assert not (tmp_path / records.FILE).exists()
    assert RunManifest.read(tmp_path).status == "interrupted"


def test_sampling_differs_between_repeats_but_not_between_runs(options, tmp_path):
    hot = dataclasses.replace(options, temperature=1.0, repeats=2)
    one, two = measured(prepare(hot), tmp_path / "1"), measured(prepare(hot), tmp_path / "2")
    assert {key: record.output_ids for key, record in one.items()} == {key: record.output_ids for key, record in two.items()}
    assert one["vanilla", "a2", 0, 0].output_ids != one["vanilla", "a2", 0, 1].output_ids


def test_turns_and_warm_up_sample_from_the_likeliest_tokens(options, tmp_path, monkeypatch):
    warmed: list[Sampling] = []
    restricted = {"top_k": 1, "top_p": 0.9}
    options = dataclasses.replace(options, backend="eager", limit=1, max_new_tokens=6)
    monkeypatch.setattr(OwnEngine, "warm_up", lambda engine, sampling: warmed.append(sampling))
    greedy = measured(prepare(options), tmp_path / "1")
    session = prepare(dataclasses.replace(options, temperature=3.0, top_k=1, top_p=0.9))
    least = measured(session, tmp_path / "2")
    assert {key: record.output_ids for key, record in least.items()} == {key: record.output_ids for key, record in greedy.items()}
    assert warmed[-2:] == [Sampling(WARMUP_TOKENS, 3.0, top_k=1, top_p=0.9)] * 2
    assert session.manifest.identity().items() >= restricted.items()


def test_a_manifest_of_before_top_k_and_top_p_sampled_from_all_tokens(options, tmp_path):
    manifest = prepare(options).manifest
    manifest.write(tmp_path)
    stored = json.loads((without_digests(tmp_path) / "manifest.json").read_text())
    assert (stored["settings"].pop("top_k"), stored["settings"].pop("top_p")) == (0, 1.0)
    (tmp_path / "manifest.json").write_text(json.dumps(stored))
    assert differences(RunManifest.read(tmp_path), manifest) == []


def test_what_a_back_end_does_not_do_here_is_printed_once_and_not_recorded(options, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    console = Console(file=io.StringIO(), width=40)
    run(LocalExecutor(prepare(dataclasses.replace(options, backend="static", limit=1, max_new_tokens=1))), tmp_path, console)
    notice = "the static back end runs layers uncompiled: TORCH_COMPILE_DISABLE=1 is set; unset it to compile them"
    assert printed(console).splitlines().count(notice) == 1
    assert printed(console).count("TORCH_COMPILE_DISABLE") == 1
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and "TORCH_COMPILE_DISABLE" in path.read_text()]


def test_each_turn_has_its_own_seed_shared_by_the_arms():
    questions = [Question(name, "c", ("x", "y"), ()) for name in ("1", "11")]
    seeds = {(u.question.id, u.turn, u.repeat): turn_seed(0, u) for u in schedule(questions, ["a"], 2)}
    assert len(set(seeds.values())) == len(seeds) == 8
    assert turn_seed(0, Unit("b", questions[0], 1, 0)) == seeds["1", 1, 0] != turn_seed(1, Unit("b", questions[0], 1, 0))


def test_prompt_longer_than_the_context_is_refused_by_question(options, tmp_path):
    suite = write_suite(tmp_path / "long.jsonl", [*QUESTIONS, ("huge", "letters", ["x" * 600])])
    with pytest.raises(UserError, match=r"question huge: its prompt of 6\d\d tokens .* 512 tokens"):
        prepare(dataclasses.replace(options, suite_file=suite))


def test_records_and_manifest_hold_no_prompt(options, tmp_path):
    measured(prepare(options), tmp_path)
    written = (tmp_path / records.FILE).read_text() + (tmp_path / "manifest.json").read_text()
    assert not [text for _, _, turns in QUESTIONS for text in turns if text in written]


def test_manifest_describes_the_run(options, tmp_path):
    session = prepare(dataclasses.replace(options, overrides=["nodes=3"], categories=["numbers"], limit=1))
    run(LocalExecutor(session), tmp_path, quiet())
    facts = json.loads((tmp_path / "manifest.json").read_text())
    assert facts["schema"] == 2
    assert facts["status"] == "complete"
    assert list(facts["arms"]) == ["vanilla", "pld"]
    assert facts["arms"]["pld"]["config"]["nodes"] == 3
    assert facts["arms"]["pld"]["lossless"] is True
    assert facts["suite"]["categories"] == {"numbers": 1}
    assert facts["units_total"] == 2 * 3
    assert facts["environment"]["threads"] == torch.get_num_threads()
    assert len(facts["target"]["weights_sha256"]) == len(facts["template_sha256"]) == 64
    assert facts["target"]["parameters"] > 0
    assert facts["prepared"][0]["seconds"] > 0
    assert facts["prepared"][0]["peak_bytes"] > 10_000_000
    assert RunManifest.read(tmp_path).settings == dataclasses.replace(
        options,
        suite="file",
        overrides=["nodes=3"],
        categories=["numbers"],
        limit=1,
        backend="eager",
        template="chat",
    )


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak cannot be reset here")
def test_peak_memory_is_reset_between_turns():
    memory = PeakMemory(torch.device("cpu"))
    memory.reset()
    block = torch.ones(25_000_000)  # 100 MB
    high = memory.peak()
    del block
    memory.reset()
    assert 80_000_000 < high - memory.peak() < 200_000_000


def test_progress_without_a_terminal_prints_a_line_after_an_interval(monkeypatch):
    console = quiet()
    now = [1000.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    ok = Record("a", "1", "c", 0, 0, "ok", output_ids=[1, 2, 3, 4, 5], total_s=2.0, steps=Steps(accepted=[2, 0], emitted=[3, 1]))
    shown = RunProgress(console, ["a", "b"], 6, [ok])
    with contextlib.nullcontext(shown):
        now[0] += progress.LINE_EVERY_S / 2
        shown.add(dataclasses.replace(ok, question_id="2"))
        assert printed(console) == ""
        now[0] += progress.LINE_EVERY_S / 2
        shown.add(Record("b", "1", "c", 0, 0, "error", error="RuntimeError: bad"))
    lines = printed(console).splitlines()
    assert lines == [
        "b, question 1, turn 1: RuntimeError: bad",
        "3/6 turns, 0:00:45 left: a 2.5 tokens/s MAT 2.00, b - tokens/s MAT -",
    ]
