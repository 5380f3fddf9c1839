"""Chat templates: the built-in one byte for byte, the tokenizer's own with its options."""

import hashlib
import json

import pytest
from helpers.tiny_target import TEMPLATE, write_target
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
        (None, {}, "has no single chat template; .* or name a template: --template vicuna_v1.1"),
    ],
)
def test_options_that_a_template_does_not_support_are_refused(own, tmp_path, template, options, message):
    tokenizer = with_template(own, template, tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        Chat(tokenizer, **options)
    assert "\n" not in str(caught.value)
