import dataclasses
import io
import re
import time
from collections import Counter
from typing import Any

import pytest
import torch
from helpers.tiny_target import QUESTIONS, write_suite, write_target

from methods.core import backend
from methods.core.acceptance import path_to
from methods.core.errors import UserError
from specbench.config.options import RunConfig
from specbench.measure.session import prepare
from specbench.store.records import Record
from specbench.studies.bench import decoding, prefill
from specbench.studies.bench.decoding import (
    ARMS,
    EAGER,
    LOOKUP,
    LOOKUP_TOKENS,
    STATIC,
    Case,
    Comparison,
    decoding_findings,
    generate,
    loop,
    speed_ratios,
)
from specbench.studies.bench.finding import Finding, findings_table
from specbench.studies.bench.prefill import prefill_finding
from specbench.studies.bench.run import Stopwatch, harness_finding
from specbench.util.terminal import Console
from specbench.util.text import NONE

torch.set_num_threads(1)
TOKENS = 24


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return str(write_target(tmp_path_factory.mktemp("target"), context=4096))


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch):
    """Switch compiling off, which takes seconds."""
    monkeypatch.setattr(backend, "_compiler_present", lambda device: False)


@pytest.fixture
def session(target, tmp_path):
    config = RunConfig(
        methods=list(ARMS),
        target=target,
        suite_file=write_suite(tmp_path / "suite.jsonl"),
        overrides=[f"pld.nodes={LOOKUP_TOKENS}"],
        max_new_tokens=TOKENS,
        dtype="fp64",
        device="cpu",
        backend="eager",
    )
    return prepare(config)


@pytest.fixture
def now(monkeypatch):
    """Replace the clock by one that a test sets."""
    hands = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: hands[0])
    return hands


def quiet() -> Console:
    return Console(file=io.StringIO(), width=250)


def first_prompt(session) -> list[int]:
    return session.chat.encode(session.suite.questions[0].turns[:1], [])


def test_a_speed_must_reach_its_bound_and_a_share_must_not_exceed_it():
    assert Finding("speed", [0.9, 0.98, 1.2], 0.97).verdict == "met"
    assert Finding("speed", [0.9, 0.96, 1.2], 0.97).verdict == "missed"
    assert Finding("share", [0.001, 0.019, 0.5], 0.02, is_share=True).verdict == "met"
    assert Finding("share", [0.001, 0.021, 0.5], 0.02, is_share=True).verdict == "missed"
    assert Finding("speed", [], 0.97).verdict == "not measured"


def test_the_table_shows_median_quartiles_pairs_and_bound():
    findings = [Finding("a", [1.0, 2.0, 3.0, 4.0, 9.0], 2.5), Finding("b", [0.01, 0.02], 0.02, is_share=True), Finding("c", [], 1.0)]
    assert findings_table(findings).rows == [
        ["a", "3.000x", "2.000x to 4.000x", "5", "at least 2.500x", "met", NONE],
        ["b", "1.50%", "1.25% to 1.75%", "2", "at most 2.00%", "met", NONE],
        ["c", NONE, f"{NONE} to {NONE}", "0", "at least 1.000x", "not measured", NONE],
    ]


def test_pairs_run_in_the_order_a_b_b_a_and_ratios_are_theirs_over_ours(now):
    order = []

    def arm(name, seconds):
        def answer(prompt):
            order.append((name, prompt[0]))
            now[0] += seconds + len(order)  # a machine that gets slower and slower
            return [7]

        return answer

    compared = Comparison("a", arm("ours", 2), arm("theirs", 5), wanted=1.0)
    ratios = speed_ratios(compared, [Case([0], [7], [7]), Case([1], [7], [7])], pairs=5)
    names = ["ours", "theirs", "theirs", "ours"] * 3
    assert order == list(zip(names[:10], [0] * 4 + [1] * 4 + [0] * 2, strict=True))
    assert ratios == pytest.approx([7 / 3, 8 / 6, 11 / 7, 12 / 10, 15 / 11])


def test_an_answer_that_changes_is_an_error():
    compared = Comparison("a", lambda prompt: [1], lambda prompt: [2], wanted=1.0)
    assert len(speed_ratios(compared, [Case([0], [1], [2])], pairs=1)) == 1, "two sides may differ"
    with pytest.raises(AssertionError, match="tokens changed"):
        speed_ratios(compared, [Case([0], [1], [1])], pairs=1)


def test_both_sides_run_past_the_end_of_sequence(session):
    prompt, model = first_prompt(session), session.model
    ours = loop(session, EAGER)(prompt)
    model.generation_config.eos_token_id = ours[3]
    assert len(ours) == TOKENS
    assert generate(session, lookup=None)(prompt) == generate(session, lookup=LOOKUP_TOKENS)(prompt) == ours
    assert loop(session, LOOKUP)(prompt) == loop(session, STATIC)(prompt) == ours


def test_generate_drafts_only_with_prompt_lookup(session):
    widths = []
    session.model.register_forward_pre_hook(lambda _, args, given: widths.append(given["input_ids"].shape[1]), with_kwargs=True)
    prompt = session.chat.encode(["abcdefghijklmnop" * 3], [])
    generate(session, lookup=None)(prompt)
    assert widths == [len(prompt)] + [1] * (TOKENS - 1)
    widths.clear()
    generate(session, lookup=LOOKUP_TOKENS)(prompt)
    assert max(widths[1:]) == 1 + LOOKUP_TOKENS


def test_each_arm_runs_on_its_own_back_end(session):
    assert [engine.name for engine in session.own] == [EAGER, STATIC, LOOKUP]
    assert [engine.target.backend.name for engine in session.own] == ["eager", "static", "eager"]


def test_every_comparison_has_its_pairs_and_its_bound(session):
    findings = decoding_findings(session, quiet(), pairs=3)
    assert [each.wanted for each in findings] == [0.97, 1.0, 1.3, 1.3]
    for each in findings:
        assert len(each.ratios) == 3
        assert all(0.05 < ratio < 20 for ratio in each.ratios)
        assert each.remark == "", "in fp64 every prompt counts"


def test_each_side_answers_once_before_pairs_are_timed(session, monkeypatch):
    asked = []

    def counted(make):
        def made(*given, **options):
            side = make(*given, **options)

            def answer(prompt):
                asked.append(side)
                return side(prompt)

            return answer

        return made

    monkeypatch.setattr(decoding, "loop", counted(decoding.loop))
    monkeypatch.setattr(decoding, "generate", counted(decoding.generate))
    decoding_findings(session, quiet(), pairs=0)
    assert set(Counter(asked).values()) == {len(QUESTIONS)}
    assert len(set(asked)) == 5


def test_a_loop_is_warmed_up_with_its_acceptance_rule(session):
    seen = []
    eager, *others = session.own

    def watched(tree, *given):
        seen.append(tree.size)
        return eager.accept(tree, *given)

    loop(dataclasses.replace(session, own=(eager._replace(accept=watched), *others)), EAGER)
    assert seen


def test_prompts_on_which_the_tokens_differ_are_left_out_and_counted(session):
    eager, static, pld = session.own
    odd = set(loop(session, LOOKUP)(first_prompt(session))[:1])

    def wrong(tree, *given):
        return (wrong_everywhere if int(tree.tokens_N[0]) in odd else pld.accept)(tree, *given)

    broken = dataclasses.replace(session, own=(eager, static._replace(accept=wrong), pld._replace(accept=wrong)))
    untouched, lookup, against_eager, against_generate = decoding_findings(broken, quiet(), pairs=2)
    assert untouched.remark == ""
    assert re.fullmatch("same tokens on [123] of 4 prompts; the others are left out", lookup.remark)
    assert against_eager.remark == against_generate.remark == lookup.remark.split(";")[0]
    assert len(lookup.ratios) == len(against_eager.ratios) == 2
    always = dataclasses.replace(session, own=(eager, static, pld._replace(accept=wrong_everywhere)))
    assert decoding_findings(always, quiet(), pairs=2)[1].verdict == "not measured"


def wrong_everywhere(tree, logits_NV, temperature, noise):
    return path_to(tree, logits_NV, torch.zeros(1, dtype=torch.long), torch.tensor([5]))


def test_the_share_is_wall_clock_time_outside_decoding(now):
    class Slow:
        def add(self, record):
            now[0] += 0.5

    watch = Stopwatch(Slow())
    for question, repeat in (("1", 0), ("2", 0), ("1", 1)):
        for arm in ("a", "b"):
            now[0] += 2.0
            watch.add(Record(arm, question, "c", 0, repeat, "ok", output_ids=[1], total_s=1.5))
    assert list(watch.spent) == [(0, "1"), (0, "2"), (1, "1")]
    _, *rest = watch.spent.values()
    assert [(each.wall, each.decoding) for each in rest] == [(5.0, 3.0), (5.0, 3.0)]


def test_a_run_that_fails_is_not_timed():
    unused: Any = None
    watch = Stopwatch(inner=unused)
    with pytest.raises(UserError, match="a, question 1: out of memory"):
        watch.add(Record("a", "1", "c", 0, 0, "error", error="out of memory"))


def test_a_short_run_is_measured_and_leaves_nothing_behind(session, tmp_path):
    parent = tmp_path / "results"
    finding = harness_finding(session, parent, quiet(), repeats=2)
    assert len(finding.ratios) == 2 * len(QUESTIONS) - 1
    assert all(0 < share < 1 for share in finding.ratios)
    assert finding.is_share
    assert list(parent.iterdir()) == []


def test_a_long_prompt_is_timed_beside_transformers(monkeypatch):
    """Ours takes twice as long as theirs here, whichever goes first."""
    finding = prefill_finding(torch.float32, torch.device("cpu"), quiet(), tokens=40, pairs=3)
    assert len(finding.ratios) == 3
    assert finding.what == "prefill of 40 tokens, 8 query and 2 key heads / transformers' forward, speed"

    asked: list[str] = []

    def laps(side, repeats, device):
        asked.append(side.__name__)
        return [{"ours": 2.0, "theirs": 1.0}[side.__name__]]

    monkeypatch.setattr(prefill, "laps", laps)
    slow = prefill_finding(torch.float32, torch.device("cpu"), quiet(), tokens=40, pairs=2)
    assert (slow.ratios, slow.verdict) == ([0.5, 0.5], "missed")
    assert asked == ["ours", "theirs", "ours", "theirs", "theirs", "ours"]
