"""Sample outputs: cuts at steps, choice of questions, and prompts."""

import json
from dataclasses import replace
from unittest.mock import patch

import pytest
from helpers.scripted_records import turn, write_run

from methods.core.errors import UserError
from specbench import suites
from specbench.report import samples
from specbench.report.blocks import Paragraph, Sample, TextPiece
from specbench.report.compose import build
from specbench.report.run import load_runs
from specbench.store.manifest import RunManifest
from specbench.util.terminal import Console

TWO = {"vanilla": "Vanilla", "s4c": "S4C"}


def decode(ids):
    return bytes(ids).decode("utf-8", "replace")


def answered(text, accepted, method="s4c"):
    ids = list(text.encode())
    assert len(ids) == 1 + sum(a + 1 for a in accepted)
    return replace(turn(method, "7", accepted, ids=ids), output_text=text)


def test_pieces_are_the_steps_and_concatenate_to_the_output():
    found = samples.pieces(answered("abcdefgh", [2, 0, 2]), decode)
    assert found == (
        TextPiece("a", 0, False), TextPiece("bc", 1, False), TextPiece("d", 1, True),
        TextPiece("e", 2, True), TextPiece("fg", 3, False), TextPiece("h", 3, True),
    )  # fmt: skip


def test_a_character_over_several_tokens_goes_to_the_piece_that_completes_it():
    text = "né€😀x"
    found = samples.pieces(answered(text, [0] * 10), decode)
    assert [piece.text for piece in found] == list(text)
    assert [piece.step for piece in found] == [0, 2, 5, 9, 10]


def test_a_clipped_step_has_no_bonus():
    whole = answered("abcdef", [1, 2])
    steps = replace(whole.steps, emitted=[2, 2])
    found = samples.pieces(replace(whole, output_ids=whole.output_ids[:5], output_text="abcde", steps=steps), decode)
    assert found[-1] == TextPiece("de", 2, False)


def test_a_text_that_the_tokenizer_does_not_give_back_is_not_cut():
    assert samples.pieces(replace(answered("abcd", [0, 1]), output_text="other"), decode) == (TextPiece("other", 0, False),)


def test_the_shipped_tokenizer_cuts_an_answer_and_nothing_is_lost(tmp_path):
    (run,) = load_runs([write_run(tmp_path / "run", [])])
    whole = samples.target_decoder(run.manifest)
    assert whole is not None
    ids = [46, 664, 3370, 263, 1037, 681, 290, 749, 343, 373, 500, 681, 19, 1]  # the last is the stop token, which has no text
    record = replace(turn("s4c", "1", [2, 1, 0, 2, 3], ids=ids), output_text=whole(ids))
    found = samples.pieces(record, whole)
    assert "".join(piece.text for piece in found) == record.output_text
    assert [piece.step for piece in found] == [0, 1, 1, 2, 2, 3, 4, 4, 5]
    assert samples.target_decoder(replace(run.manifest, settings=replace(run.manifest.settings, target=str(tmp_path)))) is None


def answers(question, category, text="abcdef", methods=("vanilla", "s4c")):
    accepted = {"vanilla": [0] * (len(text) - 1), "s4c": [2] + [0] * (len(text) - 4)}
    return [replace(turn(m, question, accepted[m], category=category, ids=list(text.encode())), output_text=text) for m in methods]


def shown(run_dir, show_prompts=False, decoder=decode):
    with patch.object(samples, "target_decoder", lambda manifest: decoder):
        return samples.blocks(load_runs([run_dir])[0], show_prompts)


def test_the_first_question_of_each_category_that_every_arm_answered(tmp_path):
    rows = [*answers("100", "rag"), *answers("99", "rag"), *answers("8", "qa", methods=["s4c"]), *answers("9", "qa", "abcd")]
    how, *found = shown(write_run(tmp_path / "run", rows, methods=TWO))
    assert isinstance(how, Paragraph)
    assert "A bar begins each step" in how.text
    assert [sample.title for sample in found] == ["QA, question 9", "RAG, question 99"]
    vanilla, ours = found[0].answers
    assert (vanilla.label, vanilla.note) == ("Vanilla", "4 tokens in 3 steps, cut by length")
    assert (ours.label, ours.note) == ("S4C (reconstruction)", "4 tokens in 1 steps, vanilla's tokens, cut by length")
    assert len(vanilla.pieces) == 1
    assert [piece.text for piece in ours.pieces] == ["a", "bc", "d"]
    assert ours.text == vanilla.text == "abcd"


def test_without_the_tokenizer_texts_are_not_cut_and_the_report_says_so(tmp_path):
    how, sample = shown(write_run(tmp_path / "run", answers("1", "qa"), methods=TWO), decoder=None)
    assert "not cut into steps" in how.text
    assert isinstance(sample, Sample)
    assert [len(answer.pieces) for answer in sample.answers] == [1, 1]
    assert shown(write_run(tmp_path / "one", answers("1", "qa", methods=["s4c"]), methods=TWO)) == []


def test_steps_and_bonus_tokens_are_seen_in_html_and_markdown(tmp_path):
    run = write_run(tmp_path / "run", answers("1", "qa", "a<b>d"), methods=TWO)
    with patch.object(samples, "target_decoder", lambda manifest: decode):
        page = build([run], tmp_path / "out", Console(record=True))
    assert '<p class="text"><i>a</i><i>&lt;b<b>&gt;</b></i><i><b>d</b></i></p>' in page.read_text(encoding="utf-8")
    assert "\n```text\na│<b>│d\n```\n" in page.with_suffix(".md").read_text(encoding="utf-8")


def test_prompts_of_our_own_suite_are_shown_if_it_is_the_same_suite(tmp_path):
    mini = suites.load("mini")
    question = mini.questions[0]
    rows = answers(question.id, question.category)
    for sha256, prompt in ((mini.sha256, question.turns[0]), ("0" * 64, None)):
        run = write_run(tmp_path / sha256, rows, methods=TWO, suite={"categories": {question.category: 1}, "sha256": sha256})
        assert shown(run)[1].prompt == prompt


def test_prompts_of_other_suites_need_the_option(tmp_path):
    file = tmp_path / "suite.jsonl"
    secret = "What is the colour of the third door?"
    file.write_text(json.dumps({"question_id": 1, "category": "qa", "turns": [secret]}) + "\n")
    sha256 = suites.load("file", suite_file=file).sha256
    rows = answers("1", "qa")
    settings = {"suite": "file", "suite_file": file}
    run = write_run(tmp_path / "run", rows, methods=TWO, settings=settings, suite={"name": "file", "sha256": sha256})
    with patch.object(samples, "target_decoder", lambda manifest: decode):
        for asked in (False, True):
            page = build([run], tmp_path / str(asked), Console(record=True), show_prompts=asked)
            for path in (page, page.with_suffix(".md")):
                assert (secret in path.read_text(encoding="utf-8")) == asked
    assert RunManifest.read(run).suite.sha256 == sha256
    file.write_text(file.read_text().replace("third", "fourth"))
    with pytest.raises(UserError, match=r"is not the run's.*leave --show-prompts out"):
        shown(run, show_prompts=True)
