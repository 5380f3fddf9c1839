"""Training text in any chat template: which tokens are the assistant's; and corpora in other formats."""

import io
import json
from typing import Any

import numpy as np
import pytest
from helpers.chat_records import TEMPLATES, tokenizer_of, write_corpus
from helpers.consoles import printed

from methods.core.errors import UserError
from specbench.suites import hub
from specbench.targets.chat import Chat
from specbench.train.data import corpus, texts
from specbench.train.data.chat import ChatFormat
from specbench.util.terminal import Console

MESSAGES = [
    {"role": "user", "content": "Was ist 12 + 30?"},
    {"role": "assistant", "content": "42, Ünïcode <b>"},
    {"role": "user", "content": "And once more?"},
    {"role": "assistant", "content": "Still 42."},
]
ANSWERS = {
    "chatml": ["42, Ünïcode <b><|im_end|>", "Still 42.<|im_end|>"],
    "thinking": ["42, Ünïcode <b><|im_end|>", "<think>\n\n</think>\n\nStill 42.<|im_end|>"],
    "vicuna": [" 42, Ünïcode <b></s>", " Still 42.</s>"],
    "strict": [" 42, Ünïcode <b> </s>", " Still 42. </s>"],
}


def format_of(name):
    tokenizer = tokenizer_of(name, [m["content"] for m in MESSAGES] * 9 + ["USER ASSISTANT"] * 9)
    return tokenizer, ChatFormat(Chat(tokenizer), frozenset({tokenizer.eos_token_id}))


def runs(tokenizer, tokens):
    """Return the text of each run of the assistant's tokens."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], tokens.answer_T, [False]]).astype(int)))
    return [tokenizer.decode(tokens.tokens_T[a:b].tolist()) for a, b in edges.reshape(-1, 2)]


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_are_found_in_every_template(name):
    tokenizer, chat = format_of(name)
    [tokens] = chat.encode([chat.render(MESSAGES, prompt=False)])
    assert runs(tokenizer, tokens) == ANSWERS[name]
    whole = tokenizer.apply_chat_template(MESSAGES, tokenize=False)
    assert tokens.tokens_T.tolist() == tokenizer(whole, add_special_tokens=False).input_ids


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_ends_where_the_answer_starts_and_includes_the_earlier_one(name):
    tokenizer, chat = format_of(name)
    [asked] = chat.encode([chat.render(MESSAGES[:3], prompt=True)])
    text = tokenizer.apply_chat_template(MESSAGES[:3], tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(asked.tokens_T.tolist()) == text
    assert runs(tokenizer, asked) == ANSWERS[name][:1]
    answered = chat.append_answer(asked, [7, 8, tokenizer.eos_token_id])
    assert answered.tokens_T.tolist() == [*asked.tokens_T.tolist(), 7, 8, tokenizer.eos_token_id]
    assert answered.answer_T[-4:].tolist() == [False, True, True, True]


BEFORE = "A chat between a curious user and an artificial intelligence assistant. "
BEFORE += "The assistant gives helpful, detailed, and polite answers to the user's questions."


def test_the_vicuna_template_gives_the_same_text_in_training_as_in_a_run():
    tokenizer, _ = format_of("vicuna")
    chat = Chat(tokenizer, "vicuna_v1.1")
    transcriber: Any = ChatFormat(chat, frozenset({tokenizer.eos_token_id}))
    [tokens] = transcriber.encode([transcriber.render(MESSAGES, prompt=False)])
    told = f"{BEFORE} USER: {MESSAGES[0]['content']} ASSISTANT: {MESSAGES[1]['content']}</s>"
    assert tokenizer.decode(tokens.tokens_T.tolist()) == f"{told}USER: {MESSAGES[2]['content']} ASSISTANT: {MESSAGES[3]['content']}</s>"
    assert runs(tokenizer, tokens) == ANSWERS["vicuna"]
    [asked] = transcriber.encode([transcriber.render(MESSAGES[:3], prompt=True)])
    turns = [message["content"] for message in MESSAGES]
    assert asked.tokens_T.tolist() == chat.encode([turns[0], turns[2]], [turns[1]])
    [said] = transcriber.encode([ChatFormat(Chat(tokenizer, "vicuna_v1.1", "Be brief."), transcriber.stops).render(MESSAGES, prompt=False)])
    assert tokenizer.decode(said.tokens_T.tolist()).startswith("Be brief. USER:")


def test_an_answer_whose_prompt_is_rendered_differently_later_does_not_count():
    tokenizer, chat = format_of("chatml")
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ m.role }}", "{{ m.role }}{{ ' alone' if messages | length == 1 }}")
    [tokens] = chat.encode([chat.render(MESSAGES, prompt=False)])
    assert runs(tokenizer, tokens) == ANSWERS["chatml"][1:]


def test_a_token_across_the_start_of_an_answer_belongs_to_it():
    """A prompt that ends in ``ASSISTANT:`` is followed by a token that starts with the blank."""
    tokenizer, chat = format_of("vicuna")
    [tokens] = chat.encode([chat.render(MESSAGES[:2], prompt=False)])
    first = int(np.flatnonzero(tokens.answer_T)[0])
    assert tokenizer.decode(tokens.tokens_T[:first].tolist()).endswith("ASSISTANT:")
    assert tokenizer.decode([int(tokens.tokens_T[first])]).startswith(" ")


def test_records_that_the_template_refuses_are_left_out_and_reported(tmp_path):
    _, chat = format_of("strict")
    file = write_corpus(tmp_path / "c.jsonl", 50)  # every fifth has a system turn
    console = Console(file=io.StringIO(), width=200)
    text = texts.of_corpus(file, chat, held_out=False, console=console)
    assert "left out 10 records whose turns the target's chat template does not take" in printed(console)
    assert text.answer_T.any()


def test_a_tokenizer_without_a_stop_token_or_character_offsets_is_refused():
    tokenizer, _ = format_of("chatml")
    with pytest.raises(UserError, match="nothing ends an answer of this target"):
        ChatFormat(Chat(tokenizer), frozenset())
    slow = Chat(tokenizer)
    object.__setattr__(slow, "tokenizer", object())
    with pytest.raises(UserError, match="tokenizer, object, tells no places of characters"):
        ChatFormat(slow, frozenset({1}))


def test_a_vocabulary_above_16_bits_is_stored_in_32(monkeypatch):
    tokenizer, _ = format_of("chatml")
    monkeypatch.setattr(type(tokenizer), "__len__", lambda self: 2**16 + 1)
    chat: Any = ChatFormat(Chat(tokenizer), frozenset({tokenizer.eos_token_id}))
    asked, *_ = chat.encode([chat.render(MESSAGES, prompt=False)])
    assert chat.append_answer(asked, [2**16]).tokens_T[-1] == 2**16
    assert texts.pack([asked, asked]).tokens_T.dtype == np.uint32


def test_packing_counts_the_token_after_an_answer():
    """A step may draft past an answer's end, so the first token after it has to be guessed too."""
    _, chat = format_of("vicuna")
    [whole], [asked] = chat.encode([chat.render(MESSAGES, prompt=False)]), chat.encode([chat.render(MESSAGES[:3], prompt=True)])
    for documents in ([whole, whole], [asked, asked]):
        packed, size = texts.pack(documents), len(documents[0].tokens_T)
        assert packed.answer_T[size] == documents[0].answer_T[-1] == (documents[0] is whole)
        assert packed.answer_T[size + 1 :].tolist() == documents[0].answer_T[1:].tolist()


SHAREGPT = [
    {"id": "a", "conversations": [{"from": "gpt", "value": "Hello!"}, {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
    {"id": "b", "conversations": [{"from": "system", "value": "S"}, {"from": "user", "value": "Q"}, {"from": "chatgpt", "value": "A"}]},
    {"id": "c", "conversations": []},
    {"id": "d", "conversations": [{"from": "gpt", "value": "alone"}]},
    {"id": "e", "conversations": [{"from": "human", "value": "Q"}, {"from": "function_call", "value": "{}"}]},
]


def test_sharegpt_records_start_at_the_first_user_turn(tmp_path):
    path = tmp_path / "c.json"
    path.write_text("".join(json.dumps(record) + "\n" for record in SHAREGPT))
    found = {record["id"]: record["messages"] for record in corpus.read_records(path, held_out=False)}
    asked = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]
    assert found == {"a": asked, "b": [{"role": "system", "content": "S"}, *asked]}
    assert sorted(map(len, corpus.prompts(path, held_out=False)["chat"])) == [1, 2]
    path.write_text('{"conversations": [{"from": "human"}]}\n')
    with pytest.raises(UserError, match="line 1: not a chat record"):
        list(corpus.read_records(path, held_out=False))


def test_a_corpus_is_read_from_a_data_set_of_the_hub(monkeypatch, tmp_path):
    asked = []

    def download(identity, config, what):
        asked.append((identity, config, what))
        return {"train": SHAREGPT, "test": []}

    monkeypatch.setattr(hub, "download", download)
    source = "hf:owner/chats:small@train"
    assert [record["id"] for record in corpus.read_records(source, held_out=False)] == ["a", "b"]
    assert corpus.sha256(source) == corpus.sha256(source)
    assert set(asked) == {("owner/chats", "small", "training data")}
    with pytest.raises(
        UserError, match=r"training data 'hf:owner/chats' has the splits train, test; choose one, as in hf:owner/chats@train"
    ):
        list(corpus.read_records("hf:owner/chats", held_out=False))
    monkeypatch.setattr(hub, "download", lambda *_: {"train": [{"text": "x"}]})
    with pytest.raises(UserError, match="hf:owner/chats, row 0: not a chat record"):
        list(corpus.read_records("hf:owner/chats", held_out=False))
