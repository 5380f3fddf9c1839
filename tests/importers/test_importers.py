"""Imported Spec-Bench answer files give the numbers of Spec-Bench's ``speed.py``, whose arithmetic is repeated here."""

import dataclasses
import io
import json
import random

import pytest
import typer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from methods.core.errors import UserError
from specbench.analysis.frames import OVERALL, of_category, pair, turns_frame
from specbench.analysis.metrics import comparison, tokens_per_s
from specbench.cli.import_answers import import_answers
from specbench.importers.run import import_spec_bench
from specbench.lossless import divergence
from specbench.report import compose
from specbench.store import records
from specbench.store.manifest import RunManifest, differences
from specbench.suites import schema
from specbench.util.terminal import Console

MT_BENCH = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
SINGLE = ("translation", "summarization", "qa", "math_reasoning", "rag")
WORDS = ("one", "two", "three", "four")
EXACT = 1e-9


def row(question_id, category, turns, steps, new_tokens, wall_time, lengths, model="m-7b"):
    choice = {
        "index": 0,
        "turns": turns,
        "decoding_steps": steps,
        "new_tokens": new_tokens,
        "wall_time": wall_time,
        "accept_lengths": lengths,
    }
    return {"question_id": question_id, "category": category, "answer_id": "x", "model_id": model, "choices": [choice], "tstamp": 1.7e9}


def answers(draft, seed):
    """Return a question of each raw category, two where answers have one turn; ``draft`` tokens a step at most."""
    rng = random.Random(seed)
    rows = []
    for question_id, category in enumerate((*MT_BENCH, *SINGLE, *SINGLE), start=81):
        lengths = [[rng.randint(1, draft) for _ in range(rng.randint(3, 9))] for _ in range(2 if category in MT_BENCH else 1)]
        texts = [" ".join(rng.choices(WORDS, k=sum(each))) for each in lengths]
        steps, tokens = [len(each) for each in lengths], [sum(each) for each in lengths]
        wall_time = [rng.uniform(0.02, 0.03) * count for count in steps]
        rows.append(row(question_id, category, texts, steps, tokens, wall_time, [n for each in lengths for n in each]))
    return rows


def write(path, rows):
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """Return a tokenizer with one token a word and one before each text, as Vicuna's adds one."""
    words = Tokenizer(models.WordLevel({"<s>": 0, "?": 1, **{word: i for i, word in enumerate(WORDS, start=2)}}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    folder = tmp_path_factory.mktemp("tokenizer")
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", unk_token="?").save_pretrained(folder)
    return folder


@pytest.fixture
def files(tmp_path):
    return write(tmp_path / "eagle2.jsonl", answers(4, seed=1)), write(tmp_path / "base.jsonl", answers(1, seed=2))


def imported(files, tmp_path, **options):
    options = {"name": None, "tokenizer": None, "out": tmp_path / "run", **options}
    return import_spec_bench(files[0], files[1], **options)


def frame_of(done):
    return turns_frame(records.read(done.run_dir)[0], RunManifest.read(done.run_dir).arms)


def mean(values):
    return sum(values) / len(values)


def of_task(rows, task):
    return [each for each in rows if task == OVERALL or each["category"] == task or (task == "mt_bench" and each["category"] in MT_BENCH)]


def speed_py(rows, count=lambda choice: sum(choice["new_tokens"])):
    return mean([count(each["choices"][0]) / sum(each["choices"][0]["wall_time"]) for each in rows])


def words(choice):
    """Return the tokenizer's count of the answers' tokens, without the one it adds before each."""
    return sum(len(text.split()) for text in choice["turns"])


@pytest.mark.parametrize("task", ["mt_bench", *SINGLE, OVERALL])
def test_tables_of_an_import_reproduce_speed_py(files, tmp_path, tokenizer, task):
    ours, base = (of_task([json.loads(line) for line in path.read_text().splitlines()], task) for path in files)
    turns = frame_of(imported(files, tmp_path, tokenizer=tokenizer))
    table = comparison(turns, ["vanilla", "eagle2"], ["mt_bench", *SINGLE]).set_index(["arm", "category"])
    found = table.loc["eagle2", task]
    lengths = [n for each in ours for n in each["choices"][0]["accept_lengths"]]
    assert found["mat"] == pytest.approx(mean(lengths), rel=EXACT)
    assert found["tokens_per_s"] == pytest.approx(speed_py(ours), rel=EXACT)
    assert found["speedup_specbench_legacy"] == pytest.approx(speed_py(ours) / speed_py(base, words), rel=EXACT)
    assert found["speedup_specbench"] == pytest.approx(speed_py(ours) / speed_py(base), rel=EXACT)
    assert table.loc["vanilla", task]["tokens_per_s"] == pytest.approx(speed_py(base), rel=EXACT)
    assert table.loc["vanilla", task]["mat"] == 1
    vanilla = of_category(turns, task).query("method == 'vanilla'")
    assert tokens_per_s(vanilla.assign(tokens=vanilla["text_tokens"])) == pytest.approx(speed_py(base, words), rel=EXACT)


def test_a_lost_stop_token_raises_the_legacy_speedup(files, tmp_path, tokenizer):
    """The two definitions differ, as in Spec-Bench, if the baseline counts a stop token that its text does not show."""
    base = [json.loads(line) for line in files[1].read_text().splitlines()]
    for each in base:
        each["choices"][0]["new_tokens"] = [n + 1 for n in each["choices"][0]["new_tokens"]]
    write(files[1], base)
    found = comparison(frame_of(imported(files, tmp_path, tokenizer=tokenizer)), ["eagle2"], []).iloc[0]
    assert found["speedup_specbench_legacy"] / found["speedup_specbench"] == pytest.approx(
        speed_py(base) / speed_py(base, words), rel=EXACT
    )
    assert found["speedup_specbench_legacy"] > found["speedup_specbench"]


def test_values_missing_from_the_files_are_nan(files, tmp_path):
    turns = frame_of(imported(files, tmp_path))
    found = comparison(turns, ["eagle2"], []).iloc[0]
    unknown = ["speedup_decode", "step_cost", "speedup_specbench_legacy", "tokens_per_s_decode", "peak_mib"]
    unknown += ["agreement", "repetition"]
    assert found[unknown].isna().all()
    assert found["comparable_turns"] == 0
    assert not found["accounting_error"]
    assert turns[["prefill_s", "decode_s", "verify_s", "other_s", "prompt_tokens"]].isna().all().all()
    assert found[["speedup", "speedup_specbench", "speedup_micro", "latency_ratio", "mat_per_question"]].notna().all()


def test_accept_lengths_are_split_by_turn(files, tmp_path):
    write(files[0], [row(81, "writing", ["a", "b"], [2, 3], [4, 6], [1.0, 2.0], [3, 1, 1, 2, 3])])
    one, two = (each for each in records.read(imported(files, tmp_path).run_dir)[0] if each.arm == "eagle2")
    assert (one.steps.emitted, one.steps.accepted, one.tokens, one.total_s, one.output_text) == ([3, 1], [2, 0], 4, 1.0, "a")
    assert (two.steps.emitted, two.turn, two.category, two.question_id) == ([1, 2, 3], 1, "mt_bench", "81")
    assert one.steps.tree_size == one.steps.depth == one.steps.verify_s == one.output_ids == []


@pytest.mark.parametrize(
    ("steps", "cut", "notice"),
    [([1, 2], [[3, 1], [1, 2, 3]], ""), ([9, 9], [[3, 1, 1, 2, 3], []], "do not add up")],
    ids=["index of the last step", "something else"],
)
def test_decoding_steps_with_another_meaning(files, tmp_path, steps, cut, notice):
    write(files[0], [row(81, "writing", ["a", "b"], steps, [4, 6], [1.0, 2.0], [3, 1, 1, 2, 3])])
    done = imported(files, tmp_path)
    assert [each.steps.emitted for each in records.read(done.run_dir)[0] if each.arm == "eagle2"] == cut
    assert any("eagle2.jsonl: 1 question(s) whose decoding_steps do not add up" in each for each in done.notices) == bool(notice)
    assert comparison(frame_of(done), ["eagle2"], [])["mat"].item() == 2


def test_a_question_with_an_error_turn_is_left_out_of_both_arms(files, tmp_path):
    rows = [json.loads(line) for line in files[0].read_text().splitlines()]
    rows[0]["choices"][0]["turns"][1] = "ERROR"
    write(files[0], rows)
    done = imported(files, tmp_path)
    [failed] = [each for each in records.read(done.run_dir)[0] if each.status == "error"]
    assert (failed.arm, failed.question_id, failed.turn, failed.steps.emitted, failed.total_s) == ("eagle2", "81", 1, [], 0.0)
    assert any("eagle2.jsonl: 1 question(s) with an ERROR turn" in each for each in done.notices)
    found = comparison(frame_of(done), ["eagle2"], []).iloc[0]
    base = [json.loads(line) for line in files[1].read_text().splitlines()]
    assert found["excluded_questions"] == 1
    assert found["speedup_specbench"] == pytest.approx(speed_py(rows[1:]) / speed_py(base[1:]), rel=EXACT)


def test_a_later_line_replaces_an_earlier_one_of_the_same_question(files, tmp_path):
    rows = [json.loads(line) for line in files[0].read_text().splitlines()]
    stale = {**rows[3], "choices": [{**rows[3]["choices"][0], "wall_time": [99.0, 99.0]}]}
    write(files[0], [stale, *rows])
    done = imported(files, tmp_path)
    assert any("eagle2.jsonl: 1 line(s) replaced by a later one" in each for each in done.notices)
    assert comparison(frame_of(done), ["eagle2"], [])["tokens_per_s"].item() == pytest.approx(speed_py(rows), rel=EXACT)


def test_questions_of_one_file_only_are_not_compared(files, tmp_path):
    rows = [json.loads(line) for line in files[0].read_text().splitlines()]
    write(files[0], rows[2:])
    done = imported(files, tmp_path)
    assert "2 question(s) are in one of the files only and left out of every comparison." in done.notices
    assert set(pair(frame_of(done), "eagle2").reference["question_id"]) == {str(each["question_id"]) for each in rows[2:]}


@pytest.mark.parametrize("longer", [0, 1], ids=["the method's", "the baseline's"])
def test_a_question_with_more_turns_in_one_file_is_left_out_of_both_arms(files, tmp_path, longer):
    rows = [[json.loads(line) for line in path.read_text().splitlines()] for path in files]
    rows[1 - longer][0] = row(81, "writing", ["a"], [1], [1], [0.5], [1])
    for path, content in zip(files, rows, strict=True):
        write(path, content)
    done = imported(files, tmp_path)
    assert "1 question(s) have more turns in one file than in the other and are left out of both arms." in done.notices
    assert "81" not in {each.question_id for each in records.read(done.run_dir)[0]}
    manifest = RunManifest.read(done.run_dir)
    assert (manifest.units_total, manifest.suite.categories["mt_bench"]) == (done.turns, 7) == (48, 7)
    assert "1 question(s) have more turns" in manifest.target.note
    found = comparison(frame_of(done), ["eagle2"], []).iloc[0]
    assert found["speedup_specbench"] == pytest.approx(speed_py(rows[0][1:]) / speed_py(rows[1][1:]), rel=EXACT)


def test_files_without_a_comparable_question_are_refused(files, tmp_path):
    write(files[0], [row(81, "writing", ["a"], [1], [1], [0.5], [1])])
    with pytest.raises(UserError, match=r"no question has the same number of turns in .*base\.jsonl and .*eagle2\.jsonl; give"):
        imported(files, tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_question_with_two_categories_is_refused(files, tmp_path):
    rows = [json.loads(line) for line in files[0].read_text().splitlines()]
    write(files[0], [{**rows[0], "category": "math"}, *rows[1:]])
    assert imported(files, tmp_path, out=tmp_path / "topics").turns == 52  # both are topics of MT-bench
    write(files[0], [*rows[:-1], {**rows[-1], "category": "qa"}])
    with pytest.raises(UserError) as refusal:
        imported(files, tmp_path)
    assert str(refusal.value).startswith(f"question '98' is 'rag' in {files[1]} and 'qa' in {files[0]}; give")
    assert not (tmp_path / "run").exists()


def test_the_category_name_overall_is_reserved():
    question = {"question_id": 1, "category": OVERALL, "turns": ["a"]}
    with pytest.raises(UserError, match=r"^s, line 1: field 'category' must be any name but 'overall', found \"overall\"; correct"):
        schema.questions_from_jsonl(json.dumps(question).encode(), "s")


def test_an_unknown_temperature_is_null_in_the_manifest_and_equals_itself(files, tmp_path):
    one, other = (RunManifest.read(imported(files, tmp_path, out=tmp_path / name).run_dir) for name in ("one", "other"))
    assert json.loads((tmp_path / "one" / "manifest.json").read_text(), parse_constant=pytest.fail)["settings"]["temperature"] is None
    assert differences(one, other) == []
    greedy = dataclasses.replace(other, settings=dataclasses.replace(other.settings, temperature=0.0))
    assert differences(one, greedy) == ["temperature none -> 0.0"]


def test_a_baseline_that_counts_no_tokens_gives_only_the_legacy_speedup(files, tmp_path, tokenizer):
    base = [json.loads(line) for line in files[1].read_text().splitlines()]
    for each in base:
        each["choices"][0]["new_tokens"] = [0] * len(each["choices"][0]["new_tokens"])
    write(files[1], base)
    done = imported(files, tmp_path, tokenizer=tokenizer)
    found = comparison(frame_of(done), ["eagle2"], []).iloc[0]
    assert any("base.jsonl: 18 question(s) with a turn of 0 new_tokens" in each for each in done.notices)
    assert found[["speedup", "speedup_specbench", "speedup_micro"]].isna().all()
    ours = [json.loads(line) for line in files[0].read_text().splitlines()]
    assert found["speedup_specbench_legacy"] == pytest.approx(speed_py(ours) / speed_py(base, words), rel=EXACT)


def test_the_manifest_has_unknown_settings_and_names_the_files(files, tmp_path):
    done = imported(files, tmp_path, name="eagle-two")
    manifest = RunManifest.read(done.run_dir)
    asked, origin = manifest.settings, manifest.imported
    assert asked.methods == ["vanilla", "eagle-two"]
    assert {asked.target, asked.suite, manifest.suite.sha256, asked.dtype, asked.device, asked.attention} == {"unknown"}
    assert (asked.max_new_tokens, manifest.arms["eagle-two"].lossless) == (0, None)
    assert asked.temperature != asked.temperature  # NaN: unknown
    assert [(source.arm, source.file, len(source.sha256)) for source in origin] == [
        ("vanilla", "base.jsonl", 64),
        ("eagle-two", "eagle2.jsonl", 64),
    ]
    assert origin[1].model_ids == ["m-7b"]
    assert "Imported from Spec-Bench's answer files base.jsonl" in manifest.target.note
    assert str(tmp_path) not in json.dumps(dataclasses.asdict(dataclasses.replace(manifest, argv=[])), default=str)
    assert manifest.suite.categories == {"mt_bench": 8, **dict.fromkeys(SINGLE, 2)}
    assert manifest.units_total == done.turns == 52


def test_an_import_can_be_reported_but_not_compared_token_by_token(files, tmp_path):
    done = imported(files, tmp_path)
    compose.build([done.run_dir], tmp_path / "report", Console(file=io.StringIO(), width=200))
    text = (tmp_path / "report" / "report.md").read_text()
    assert "Imported from Spec" in text
    assert "100.0 % of" not in text
    with pytest.raises(UserError, match="holds imported answers, whose token ids are unknown"):
        divergence.explain(done.run_dir)


GOOD = row(81, "qa", ["a"], [1], [1], [0.5], [1])


def broken(**choice):
    return {**GOOD, "choices": [{**GOOD["choices"][0], **choice}]}


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "not JSON"),
        ("[1]", "an object is needed, found [1]"),
        ({**GOOD, "question_id": None}, "field 'question_id' must be a number or a string, found nothing"),
        ({**GOOD, "category": 3}, "field 'category' must be a non-empty string other than 'overall', found 3"),
        ({**GOOD, "choices": []}, "field 'choices' must be a non-empty list of objects, found []"),
        (broken(turns=[]), "field 'turns' must be a non-empty list of strings, found []"),
        (broken(turns=[1]), "field 'turns' must be"),
        (broken(new_tokens=[1, 2]), "field 'new_tokens' must be a list of 1 counts, one a turn, found [1, 2]"),
        (broken(new_tokens=[-1]), "field 'new_tokens' must be"),
        (broken(decoding_steps=None), "field 'decoding_steps' must be a list of 1 counts, one a turn, found nothing"),
        (broken(wall_time=[0]), "field 'wall_time' must be a list of 1 positive seconds, one a turn, found [0]"),
        (broken(wall_time=[float("nan")]), "not JSON"),
        (broken(accept_lengths=[1.5]), "field 'accept_lengths' must be a non-empty list of counts, found [1.5]"),
        ({**GOOD, "category": OVERALL}, "field 'category' must be a non-empty string other than 'overall', found \"overall\""),
        (broken(turns=["so \ud83d"]), "half of a surrogate pair in its text"),
        ({**GOOD, "question_id": "\udc80"}, "half of a surrogate pair"),
        ({**GOOD, "model_id": "\ud800"}, "half of a surrogate pair"),
        (broken(wall_time=[10**400]), "field 'wall_time' must be a list of 1 positive seconds, one a turn, found [1000000"),
        (broken(wall_time=[float("inf")]), "not JSON"),
        (broken(new_tokens=[10**400]), "field 'new_tokens' must be a list of 1 counts, one a turn, found [1000000"),
        (broken(accept_lengths=[10**400]), "field 'accept_lengths' must be"),
        ("[" * 100_000, "nested too deeply"),
        ('{"question_id": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        (broken(accept_lengths=None), "field 'accept_lengths' must be a non-empty list of counts, found nothing"),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 99 else "",
)
def test_a_malformed_line_is_named(files, tmp_path, line, complaint):
    text = line if isinstance(line, str) else json.dumps(line)
    files[1].write_text(json.dumps(GOOD) + "\n\n" + text + "\n")
    with pytest.raises(UserError) as refusal:
        imported(files, tmp_path)
    assert str(refusal.value).startswith(f"{files[1]}, line 3: ")
    assert complaint in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_other_misuse_is_refused_in_one_line(files, tmp_path):
    empty, binary = write(tmp_path / "empty.jsonl", []), tmp_path / "binary.jsonl"
    binary.write_bytes(json.dumps(GOOD).encode() + b"\n\xff\n")
    for file, complaint in {
        empty: "no answers in it",
        binary: "line 2: not a question's answers (not UTF-8 text)",
        tmp_path / "absent": "cannot be read (No such file or directory)",
    }.items():
        with pytest.raises(UserError) as refusal:
            imported((file, files[1]), tmp_path)
        assert complaint in str(refusal.value)
    for options, complaint in (
        ({"name": "vanilla"}, "arm name 'vanilla' is reserved"),
        ({"name": "pld#2"}, "arm name 'pld#2' is reserved"),
        ({"tokenizer": tmp_path / "absent"}, "tokenizer folder .* does not exist"),
        ({"tokenizer": tmp_path}, "tokenizer folder .* cannot be loaded"),
    ):
        with pytest.raises(UserError, match=complaint):
            imported(files, tmp_path, **options)
    imported(files, tmp_path)
    with pytest.raises(UserError, match="already holds a run; choose another --out"):
        imported(files, tmp_path)


def test_the_import_command(files, tmp_path):
    app = typer.Typer()
    app.command("import")(import_answers)
    arguments = [str(files[0]), "--baseline", str(files[1]), "--out", str(tmp_path / "run")]
    wrong = CliRunner().invoke(app, [*arguments, "--format", "specbench"])
    assert isinstance(wrong.exception, UserError)
    assert str(wrong.exception) == "unknown format 'specbench'; did you mean 'spec-bench'? choices: spec-bench"
    done = CliRunner().invoke(app, [*arguments, "--format", "spec-bench", "--name", "eagle2"])
    assert done.exit_code == 0
    assert done.output.endswith(f"imported 52 turns; next: specbench report {tmp_path / 'run'}\n")
    assert list(RunManifest.read(tmp_path / "run").arms) == ["vanilla", "eagle2"]
