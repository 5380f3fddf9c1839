"""A target folder small enough for tests (a random Llama with a byte-level tokenizer), and a suite for it."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from helpers.small_models import trained
from methods import registry
from methods.core import weights
from specbench.targets import checkpoint

TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>"]
CONTEXT = 512
QUESTIONS = [
    ("a1", "letters", ["Say a b c.", "And once more?"]),
    ("a2", "letters", ["abc abc abc abc"]),
    ("n1", "numbers", ["1 2 3 4 5", "6 7 8", "9?"]),
    ("n2", "numbers", ["How much is 2 and 2?"]),
]


def write_target(folder: Path, context: int = CONTEXT, layers: int = 2) -> Path:
    """Write a target's checkpoint and tokenizer into a folder."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({sign: i for i, sign in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=SPECIAL[0], additional_special_tokens=SPECIAL[1:])
    wrapped.chat_template = TEMPLATE
    wrapped.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(wrapped),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=wrapped.eos_token_id,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.3)  # the default is so small that near ties are everywhere
    model.save_pretrained(folder)
    return folder


def write_drafters(target: Path, draft: Path) -> None:
    """Put random drafters of every kind beside the target, and a model that is nearly the target into the folder ``draft``."""
    model, facts = AutoModelForCausalLM.from_pretrained(target), {"target_sha256": checkpoint.sha256(target)}
    (target / "drafters").mkdir()
    for kind in dict.fromkeys(row.weights for row in registry.METHODS.values() if row.weights and not row.model):
        drafter = trained(kind, model)
        path = target / "drafters" / f"{kind}.safetensors"
        weights.save(path, kind, drafter.module, drafter.module.architecture, drafter.rank_accuracy, facts)
    for parameter in model.parameters():
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(draft)
    AutoTokenizer.from_pretrained(target).save_pretrained(draft)


def write_suite(path: Path, questions: list[tuple[str, str, list[str]]] = QUESTIONS) -> Path:
    """Write a suite file."""
    lines = [json.dumps({"question_id": i, "category": category, "turns": turns}) for i, category, turns in questions]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
