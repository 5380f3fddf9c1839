"""Chat records to train on, and tokenizers with the kinds of chat template that real targets have."""

import json

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

TEMPLATES = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "<|im_end|>",
        ["<|im_start|>"],
    ),
    "thinking": (  # as Qwen3's: only the last answer has a thinking part
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "<|im_end|>",
        ["<|im_start|>"],
    ),
    "vicuna": (  # as Vicuna's: no special tokens at the start of turns
        "{% for m in messages if m.role != 'system' %}{{ 'USER: ' + m.content + ' ' if m.role == 'user' else 'ASSISTANT: ' + m.content "
        "+ '</s>' }}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
        "</s>",
        [],
    ),
    "strict": (  # as Llama 2's: roles must alternate
        "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif %}"
        "{{ '<s>[INST] ' + m.content + ' [/INST]' if m.role == 'user' else ' ' + m.content + ' </s>' }}{% endfor %}",
        "</s>",
        ["<s>"],
    ),
}


def tokenizer_of(name, texts, vocab=400):
    """Return a byte-level BPE tokenizer trained on ``texts``, so that tokens are longer than a character."""
    template, end, special = TEMPLATES[name]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\d"), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab, special_tokens=[end, *special], initial_alphabet=alphabet, show_progress=False)
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=end, additional_special_tokens=special, chat_template=template)


def write_corpus(path, count=120):
    """Write records of one and of two questions, some with a system turn, in two categories and two sources."""
    records = []
    for i in range(count):
        turns = [{"role": "system", "content": " Be brief. "}] if i % 5 == 0 else []
        for turn in range(1 + (i % 3 == 0)):
            turns.append({"role": "user", "content": f"Question {i}-{turn}: what is {i} + {i}?\n"})
            turns.append({"role": "assistant", "content": f" It is {2 * i}, as ever. "})
        names = {"category": "rag" if i % 2 else "qa", "source": "opentriviaqa" if i % 7 == 0 else "own"}
        records.append({"id": str(i), **names, "messages": turns})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path
