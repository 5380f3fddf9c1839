"""From chat records to packed text and its windows, and the target's own answers."""

import json
import lzma

import numpy as np
import pytest
import torch
from helpers.small_models import SHAPE, spread
from transformers import LlamaConfig, LlamaForCausalLM

from methods.core.errors import UserError
from specbench.targets.chat import Chat
from specbench.train.data import corpus, generate, texts
from specbench.train.data.chat import ChatFormat
from specbench.train.data.texts import Windows
from specbench.train.distributed import SINGLE_PROCESS
from specbench.train.target import train_tokenizer
from specbench.util.terminal import Console

MESSAGES = [
    {"role": "system", "content": "  Be brief. "},
    {"role": "user", "content": "Was ist 12 + 30?\n"},
    {"role": "assistant", "content": "\n 42 <b>"},
    {"role": "user", "content": "Ünïcode?"},
]


@pytest.fixture
def corpus_file(tmp_path):
    """Write a corpus of sixty prompts, every third of which is answered twice."""
    records = []
    for i in range(60):
        for copy_number in range(2 if i % 3 == 0 else 1):
            turns = [{"role": "user", "content": f"Question {i}: what is {i} + {i}?"}, {"role": "assistant", "content": f"{2 * i}."}]
            records.append({"id": f"{i}-{copy_number}", "category": "rag" if i % 2 else "qa", "source": "own", "messages": turns})
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_chat_text_equals_the_rendered_chat_template(corpus_file):
    tok = train_tokenizer(corpus_file, 300)
    assert corpus.chat_text(MESSAGES) == tok.apply_chat_template(MESSAGES, tokenize=False)
    prompt = tok.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert corpus.chat_text(MESSAGES) + "<|assistant|>" == prompt
    assert tok.decode(tok(corpus.chat_text(MESSAGES)).input_ids) == corpus.chat_text(MESSAGES)


def test_both_answers_to_a_prompt_are_on_one_side_of_the_split(corpus_file, monkeypatch):
    monkeypatch.setattr(corpus, "HELD_OUT_SHARE", 0.3)
    sides = [[(r["messages"][0]["content"], r["id"]) for r in corpus.read_records(corpus_file, held_out=held)] for held in (False, True)]
    training, held_out = ({prompt for prompt, _ in side} for side in sides)
    assert not training & held_out
    assert len(sides[0]) + len(sides[1]) == 80
    assert 8 < len(held_out) < 28


def test_a_compressed_corpus_reads_the_same(corpus_file):
    packed = corpus_file.with_suffix(".jsonl.xz")
    packed.write_bytes(lzma.compress(corpus_file.read_bytes()))
    assert list(corpus.read_records(packed, held_out=False)) == list(corpus.read_records(corpus_file, held_out=False))


@pytest.mark.parametrize("line", ["{", '{"messages": ["x"]}', '{"id": 1}', "[]", "3"])
def test_the_error_names_a_bad_corpus_line(line, corpus_file):
    corpus_file.write_text(corpus_file.read_text().splitlines()[0] + f"\n{line}\n")
    with pytest.raises(UserError, match="line 2: not a chat record"):
        list(corpus.read_records(corpus_file, held_out=False))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("c.jsonl.xz", b"{}\n"),
        ("c.jsonl.xz", lzma.compress(b'{"messages": [{"role": "user", "content": "x"}]}\n' * 99)[:-20]),
        ("c.jsonl", b'{"messages": "\xe9"}\n'),
        ("c.jsonl", b"\x00\xff"),
    ],
)
def test_a_file_that_is_not_text_is_refused_in_one_line(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=r"c\.jsonl.* cannot be read .*it must be JSONL in UTF-8, plain or \.xz") as refused:
        list(corpus.read_records(tmp_path / name, held_out=False))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("key", ["category", "license"])
def test_the_error_names_a_required_key_that_is_missing(key, corpus_file):
    records = [json.loads(line) | {"license": "MIT"} for line in corpus_file.read_text().splitlines()]
    del records[4][key]
    corpus_file.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert len(list(corpus.read_records(corpus_file, held_out=False))) > 70
    with pytest.raises(UserError, match=f"line 5: the record has no '{key}'"):
        list(corpus.read_records(corpus_file, held_out=False, needs=("license", "category")))


def test_a_record_that_is_no_dialogue_of_texts_is_passed_over_and_counted(corpus_file, capsys):
    before = list(corpus.read_records(corpus_file, held_out=False))
    asked = {"role": "user", "content": "x"}
    called = [asked, {"role": "assistant", "content": None, "tool_calls": []}, {"role": "tool", "content": "8"}]
    images = [{"role": "user", "content": [{"type": "image"}]}]
    for turns in (called, images, [asked, {"role": "assistant", "content": 3}], [{"role": "assistant", "content": "x"}], []):
        corpus_file.write_text(corpus_file.read_text() + json.dumps({"messages": turns}) + "\n")
    assert capsys.readouterr().err == ""
    for _ in range(2):
        assert list(corpus.read_records(corpus_file, held_out=False)) == before
    assert capsys.readouterr().err == f"{corpus_file}: passed over 5 records that are no dialogue of texts with a user turn\n"


def test_a_corpus_is_read_as_suites_are(corpus_file, tmp_path):
    """With a byte order mark, blank lines, Windows' line ends, contents in parts, and as one array."""
    plain = list(corpus.read_records(corpus_file, held_out=False))
    records = [json.loads(line) for line in corpus_file.read_text().splitlines()]
    (tmp_path / "lines.jsonl").write_bytes(b"\xef\xbb\xbf\r\n" + b"\r\n\r\n".join(json.dumps(record).encode() for record in records))
    (tmp_path / "array.json").write_text(json.dumps(records, indent=1), encoding="utf-8-sig")
    for record in records:
        for turn in record["messages"]:
            turn["content"] = [{"type": "text", "text": part} for part in (turn["content"][:3], turn["content"][3:])]
    (tmp_path / "parts.json").write_text(json.dumps(records))
    for name in ("lines.jsonl", "array.json", "parts.json"):
        assert list(corpus.read_records(tmp_path / name, held_out=False)) == plain
    (tmp_path / "array.json").write_text("[{},")
    with pytest.raises(UserError, match=r"array\.json begins as a JSON array but is none"):
        list(corpus.read_records(tmp_path / "array.json", held_out=False))


def shipped_format(corpus_file):
    tok = train_tokenizer(corpus_file, 300)
    return tok, ChatFormat(Chat(tok), frozenset({tok.eos_token_id}))


def test_a_corpus_that_is_too_small_is_refused(corpus_file, monkeypatch):
    _, chat = shipped_format(corpus_file)
    monkeypatch.setattr(corpus, "HELD_OUT_SHARE", 0.0001)
    with pytest.raises(UserError, match="has no held-out records; one prompt in 10000 is held out"):
        texts.of_corpus(corpus_file, chat, held_out=True)
    with pytest.raises(UserError, match="has no held-out prompts of at most 60 tokens"):
        generate.choose_prompts(chat, corpus_file, held_out=True, per_category=4, max_prompt=60)
    with pytest.raises(UserError, match="has no training prompts of at most 3 tokens"):
        generate.choose_prompts(chat, corpus_file, held_out=False, per_category=4, max_prompt=3)
    with pytest.raises(UserError, match="a text of 11 tokens, less than a window of 12"):
        Windows(texts.Tokens(np.zeros(11), np.zeros(11)), 10)


def test_the_error_names_a_missing_corpus(tmp_path):
    with pytest.raises(UserError, match=r"none\.jsonl does not exist"):
        list(corpus.read_records(tmp_path / "none.jsonl", held_out=False))


def test_the_text_repeats_each_record_by_its_weight(corpus_file):
    tok, chat = shipped_format(corpus_file)
    told = tok.decode(texts.of_corpus(corpus_file, chat, held_out=False).tokens_T.tolist()).split("<|bos|>")[1:]
    expected = []
    for record in corpus.read_records(corpus_file, held_out=False):
        expected += [corpus.chat_text(record["messages"]).removeprefix("<|bos|>")] * (2 if record["category"] == "rag" else 1)
    assert sorted(told) == sorted(expected)
    assert told != expected  # shuffled


def test_windows_cover_the_text_without_overlap():
    text = texts.Tokens(np.arange(103, dtype=np.uint16), np.ones(103, bool))
    windows = Windows(text, 10)
    rows = windows.tokens(windows.numbers(0, 10), extra=1)
    assert sorted(rows[:, 0].tolist()) == list(range(0, 100, 10))
    assert rows.dtype == torch.int64
    assert all(row.tolist() == list(range(row[0], row[0] + 11)) for row in rows)
    assert windows.numbers(8, 4).tolist() == [8, 9, 0, 1]


def test_an_answer_cut_by_the_start_of_a_window_does_not_count():
    answer_T = np.array([0, 1, 1, 1, 1, 0, 1, 1, 0, 0, 1, 1, 1, 0], bool)
    windows = Windows(texts.Tokens(np.arange(14, dtype=np.uint16), answer_T), 4)
    by_start = {int(row[0]): i for i, row in enumerate(windows.tokens(windows.numbers(0, 3)))}
    assert {start: windows.answers(np.array([i]))[0].int().tolist() for start, i in by_start.items()} == {
        0: [0, 1, 1, 1],
        4: [0, 0, 1, 1],
        8: [0, 0, 1, 1],
    }


def test_answers_generated_in_batches_equal_those_of_single_prompts(corpus_file, monkeypatch, tmp_path):
    """Prompts of different lengths share a batch, padded on the left; the padding must have no effect.

    Batches that are saved already are not generated again.
    """
    monkeypatch.setattr(generate, "BATCH", 3)
    tok, chat = shipped_format(corpus_file)
    ids = {"bos_token_id": tok.bos_token_id, "eos_token_id": tok.eos_token_id, "pad_token_id": None}
    model = LlamaForCausalLM(LlamaConfig(**{**SHAPE, **ids, "vocab_size": len(tok)}))
    model = spread(model, seed=0).double()
    model.lm_head.weight[tok.eos_token_id] *= 4  # some answers end by themselves
    prompts = generate.choose_prompts(chat, corpus_file, held_out=False, per_category=4, max_prompt=60)
    how = {"max_new": 12, "temperature": 0.0, "folder": tmp_path / "own", "world": SINGLE_PROCESS, "console": Console(quiet=True)}
    generate.write_answers(model, chat, prompts, **how)
    told = generate.collect_text(chat, prompts, tmp_path / "own").tokens_T.tolist()
    conversations = [[tok.bos_token_id, *part] for part in split_at(told, tok.bos_token_id)]
    assert len(conversations) == 8
    assert len({text[-1] == tok.eos_token_id for text in conversations}) == 2
    for text in conversations:
        prompt = text[: text.index(tok.convert_tokens_to_ids("<|assistant|>")) + 1]
        alone = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12, pad_token_id=2)[0].tolist()
        assert text == alone
    (tmp_path / "own" / "00001.json").unlink()
    written = []

    def repeated(ids, **options):
        written.append(len(ids))
        return torch.cat([ids, ids[:, -1:]], dim=1)

    monkeypatch.setattr(model, "generate", repeated)
    generate.write_answers(model, chat, prompts, **how)
    assert written == [3]


def test_prompts_that_do_not_fit_memory_are_answered_half_by_half(corpus_file, monkeypatch):
    tok, chat = shipped_format(corpus_file)
    model = spread(LlamaForCausalLM(LlamaConfig(**{**SHAPE, "vocab_size": len(tok)})), seed=0).double()
    prompts = generate.choose_prompts(chat, corpus_file, held_out=False, per_category=4, max_prompt=60)
    whole, together, sizes = generate.generate_answers(model, chat, prompts, 8), model.generate, []

    def small(ids, **options):
        sizes.append(len(ids))
        if len(ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return together(ids, **options)

    monkeypatch.setattr(model, "generate", small)
    assert generate.generate_answers(model, chat, prompts, 8) == whole
    assert sizes == [8, 4, 2, 2, 4, 2, 2]
    monkeypatch.setattr(model, "generate", lambda ids, **options: small(ids.expand(3, -1)))
    with pytest.raises(torch.OutOfMemoryError):
        generate.generate_answers(model, chat, prompts[:1], 8)


def test_answers_at_a_temperature_are_sampled_with_a_seed(corpus_file, monkeypatch):
    tok, chat = shipped_format(corpus_file)
    model = spread(LlamaForCausalLM(LlamaConfig(**{**SHAPE, "vocab_size": len(tok)})), seed=0)
    # A checkpoint's own generation settings must have no effect.
    model.generation_config.repetition_penalty, model.generation_config.top_k = 1.5, 1
    prompts = generate.choose_prompts(chat, corpus_file, held_out=False, per_category=4, max_prompt=60)
    greedy = generate.generate_answers(model, chat, prompts, 12)
    model.generation_config.repetition_penalty = None
    assert greedy == generate.generate_answers(model, chat, prompts, 12)
    drawn = [generate.generate_answers(model, chat, prompts, 12, temperature=2.0, seed=seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] != greedy


def split_at(tokens, marker):
    parts: list[list[int]] = []
    for token in tokens:
        if token == marker:
            parts.append([])
        else:
            parts[-1].append(token)
    return parts
