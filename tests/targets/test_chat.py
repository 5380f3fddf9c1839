"""Chat templates: the built-in one byte for byte, the tokenizer's own with its options."""

import hashlib
import json
from typing import Any

import pytest
from helpers.tiny_target import TEMPLATE, write_target
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, LlamaTokenizer

from methods.core.errors import UserError
from specbench.targets import checkpoint
from specbench.targets.chat import Chat, conversation

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
BOS, EOS = 1, 2
THINKS = TEMPLATE + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"


@pytest.fixture(scope="module")
def llama():
    """Return a Llama tokenizer of single characters, with special tokens at the ids that Vicuna uses."""
    signs = sorted({*SYSTEM, *"USERASSISTANT: Hi there? nd ow oe.1"} - {" "})
    vocabulary = {token: i for i, token in enumerate(["<unk>", "<s>", "</s>", "▁", *signs])}
    return LlamaTokenizer(vocab=vocabulary, merges=[], add_bos_token=True)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    return AutoTokenizer.from_pretrained(write_target(tmp_path_factory.mktemp("target")))


def with_template(tokenizer, template, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    changed = AutoTokenizer.from_pretrained(tmp_path)
    changed.chat_template = template
    return changed


@pytest.mark.parametrize(
    ("turns", "answers", "text"),
    [
        (["Hi there"], [], f"{SYSTEM} USER: Hi there ASSISTANT:"),
        (["Hi there", "And now?"], ["Hello."], f"{SYSTEM} USER: Hi there ASSISTANT: Hello.</s>USER: And now? ASSISTANT:"),
        (["Hi there", "And now?"], [""], f"{SYSTEM} USER: Hi there ASSISTANT:USER: And now? ASSISTANT:"),
    ],
)
def test_the_vicuna_template_equals_fastchats_byte_for_byte(llama, turns, answers, text):
    chat = Chat(llama, "vicuna_v1.1")
    assert chat.text(conversation(turns, answers)).encode() == text.encode()
    ids = chat.encode(turns, answers)
    assert ids == llama(text).input_ids
    assert ids[0] == BOS
    assert ids.count(BOS) == 1
    assert ids.count(EOS) == text.count("</s>")


def test_a_whole_conversation_ends_with_its_last_answer(llama):
    talk = [*conversation(["Hi there"], []), {"role": "assistant", "content": "Hello."}]
    assert Chat(llama, "vicuna_v1.1").text(talk, prompt=False) == f"{SYSTEM} USER: Hi there ASSISTANT: Hello.</s>"


def test_a_system_prompt_replaces_vicunas_own(llama):
    assert Chat(llama, "vicuna_v1.1", system="Be brief.").text(conversation(["Hi"], [])) == "Be brief. USER: Hi ASSISTANT:"


def test_template_syntax_in_user_text_is_not_rendered(llama):
    assert "USER: {{ 1 + 1 }}{% x %} ASSISTANT:" in Chat(llama, "vicuna_v1.1").text(conversation(["{{ 1 + 1 }}{% x %}"], []))


def test_a_legacy_tokenizer_puts_a_space_after_a_special_token(llama, tmp_path):
    """Spec-Bench's second turns read `</s>` and then `▁USER`. A folder's own setting is kept."""
    llama.save_pretrained(tmp_path)
    config = tmp_path / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    assert "legacy" not in settings
    space = llama.convert_tokens_to_ids("▁")
    for own_setting, legacy, spaces in (({}, True, 2), ({}, False, 1), ({"legacy": False}, True, 1)):
        config.write_text(json.dumps(settings | own_setting))
        assert checkpoint.load_tokenizer(tmp_path, legacy=legacy)("Hi</s>USER").input_ids.count(space) == spaces


def test_the_tokenizers_own_template_is_applied_by_apply_chat_template(own):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    expected = own.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    assert Chat(own).encode(["a", "c"], ["b"]) == list(expected)


def test_a_system_prompt_replaces_a_conversations_own(own):
    put = "<|system|>S<|end|><|user|>a<|end|><|assistant|>"
    assert Chat(own, system="S").text(conversation(["a"], [])) == put
    assert Chat(own, system="S").text([{"role": "system", "content": "its own"}, *conversation(["a"], [])]) == put


def test_the_thinking_mode_is_passed_to_the_template(own, tmp_path):
    thinks = with_template(own, THINKS, tmp_path)
    assert Chat(thinks).text(conversation(["a"], [])) == Chat(thinks, thinking="on").text(conversation(["a"], []))
    assert Chat(thinks, thinking="off").text(conversation(["a"], [])).endswith("<think></think>")


def test_a_template_with_the_date_gives_the_same_prompt_every_day(own, tmp_path):
    dated = "{% if date_string is not defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}{{ date_string }}: " + TEMPLATE
    assert Chat(with_template(own, dated, tmp_path)).text(conversation(["a"], [])).startswith("26 Jul 2024: <|user|>a")


def test_the_hash_covers_everything_but_the_conversation(own, tmp_path):
    """The hash without options is the template's own, as in runs made before there were options."""
    thinks = with_template(own, THINKS, tmp_path)
    chats = [
        Chat(own),
        Chat(own, "vicuna_v1.1"),
        Chat(own, system="S"),
        Chat(own, system=""),
        Chat(thinks),
        Chat(thinks, thinking="on"),
        Chat(thinks, thinking="off"),
    ]
    assert len({chat.sha256 for chat in chats}) == len(chats)
    assert Chat(own).sha256 == hashlib.sha256(TEMPLATE.encode()).hexdigest()
    assert Chat(own, system="S").sha256 == Chat(own, system="S").sha256


PARTS = TEMPLATE.replace("{{ m.content }}", "{% for part in m.content %}{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}")


def test_a_template_that_takes_contents_in_parts_is_given_parts(own, tmp_path):
    in_parts = Chat(with_template(own, PARTS, tmp_path))
    assert in_parts.text(conversation(["a", "c"], ["b"])) == Chat(own).text(conversation(["a", "c"], ["b"]))


@pytest.mark.parametrize(
    ("template", "lost"),
    [
        ("{{ messages[-1].content }}", "the user said, 'A question[?]'"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "the earlier answer said, 'An answer[.]'"),
        (TEMPLATE.replace("m.content", "m.content[:18]"), "the user said, 'A question that is long'"),
        (TEMPLATE.replace("m.content", "(m.content | replace('x', ''))"), "the earlier answer said, 'x y'"),
    ],
)
def test_a_prompt_without_what_was_said_is_refused(own, tmp_path, template, lost):
    chat = Chat(with_template(own, template, tmp_path))
    chat.encode(["A question"], [])  # of a single turn nothing is lost
    with pytest.raises(UserError, match=f"leaves out what {lost}"):
        chat.encode(["A question that is long", "And?"], ["x y"])


def test_the_thoughts_of_an_earlier_answer_may_be_left_out(own, tmp_path):
    template = TEMPLATE.replace("m.content", "m.content.split('</think>')[-1]")
    chat = Chat(with_template(own, template, tmp_path))
    assert (
        chat.encode(["a", "c"], ["<think>hm</think>\nb"])
        == own("<|user|>a<|end|><|assistant|>\nb<|end|><|user|>c<|end|><|assistant|>").input_ids
    )


def test_a_template_that_reads_the_clock_gives_the_same_prompt_at_any_time(own, tmp_path):
    clock = Chat(with_template(own, "{{ strftime_now( '%Y-%m-%d %H:%M:%S' ) }}" + TEMPLATE, tmp_path))
    assert clock.text(conversation(["a"], [])).startswith("2024-07-26 00:00:00<|user|>a")
    assert clock.note == "The template writes the date or time: in every prompt it is 26 Jul 2024, 00:00:00."
    assert clock.sha256 != hashlib.sha256(clock.source.encode()).hexdigest(), "a run made by the clock is another one"
    assert Chat(own).note == ""


def test_of_named_templates_the_default_is_taken(own, tmp_path):
    named = with_template(own, {"default": TEMPLATE, "tool_use": "{{ tools[0] }}"}, tmp_path)
    assert Chat(named).encode(["a"], []) == Chat(own).encode(["a"], [])
    assert Chat(named).sha256 == Chat(own).sha256


def test_a_tokenizer_that_appends_an_end_does_not_end_the_prompt(llama, tmp_path):
    llama.save_pretrained(tmp_path)
    appends: Any = AutoTokenizer.from_pretrained(tmp_path)
    appends._tokenizer.post_processor = TemplateProcessing("<s> $A </s>", "<s> $A $B </s>", [("<s>", BOS), ("</s>", EOS)])
    assert appends("Hi").input_ids[-1] == EOS
    assert Chat(appends, "vicuna_v1.1").encode(["Hi"], []) == Chat(llama, "vicuna_v1.1").encode(["Hi"], [])


def test_the_token_after_an_assistants_turn_is_found(own, llama, tmp_path):
    assert Chat(own).turn_end == own.convert_tokens_to_ids("<|end|>")
    assert Chat(llama, "vicuna_v1.1").turn_end == EOS
    assert Chat(with_template(own, TEMPLATE.replace("<|end|>", "\n\n"), tmp_path)).turn_end is None
    assert Chat(with_template(own, TEMPLATE.replace("{% for", "{{ 1 / (2 - messages | length) }}{% for"), tmp_path)).turn_end is None


def test_a_stop_is_a_single_token(own):
    chat = Chat(own)
    assert chat.token_id("<|end|>") == own.eos_token_id
    assert chat.token_id("\n") == chat.token_id("Ċ") == own.convert_tokens_to_ids("Ċ")
    with pytest.raises(UserError, match=r"--stop 'no' is 2 tokens of .*; name one token"):
        chat.token_id("no")


def test_a_token_that_the_model_does_not_have_is_refused_in_a_prompt(own):
    chat = Chat(own, rows=own.convert_tokens_to_ids("<|assistant|>") + 1)
    chat.encode(["a"], [])
    own_end = Chat(own, rows=own.convert_tokens_to_ids("<|assistant|>"))
    with pytest.raises(UserError, match=r"token '<\|assistant\|>' has the id 258 .* whose model has 258 tokens"):
        own_end.encode(["a"], [])


@pytest.mark.parametrize(
    ("template", "options", "message"),
    [
        (TEMPLATE, {"template": "vicuna"}, "unknown template 'vicuna'; did you mean 'vicuna_v1.1'"),
        (TEMPLATE, {"thinking": "maybe"}, "unknown value of --thinking 'maybe'"),
        (TEMPLATE, {"thinking": "on"}, "the template chat of .* knows no thinking mode; leave --thinking out"),
        (TEMPLATE, {"thinking": "off", "template": "vicuna_v1.1"}, "the template vicuna_v1.1 of .* knows no thinking mode"),
        ("{{ messages[-1].content }}", {"system": "S"}, "has no place for a system prompt; leave --system-prompt out"),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('users only') }}{% endif %}",
            {"system": "S"},
            r"cannot be rendered \(users only\); repair it there, or leave --system-prompt out",
        ),
        (None, {}, "has no chat template; .* or name a template: --template vicuna_v1.1"),
        ({"tool_use": TEMPLATE}, {}, r"has only templates for other uses \(tool_use\); .* or name a template: --template vicuna_v1.1"),
        ("Hello!", {}, "leaves out what the user said, 'A question[?]'; repair it there"),
        ("{{ strftime_now(form) }}" + TEMPLATE, {}, "writes the time in a format that is not written out"),
    ],
)
def test_options_that_a_template_does_not_support_are_refused(own, tmp_path, template, options, message):
    tokenizer = with_template(own, template, tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        Chat(tokenizer, **options)
    assert "\n" not in str(caught.value)
