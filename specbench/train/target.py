"""The trainer of the shipped target: a small Llama, trained on the chat corpus with its own tokenizer."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from methods.core.errors import unknown
from specbench.targets.chat import Chat
from specbench.train import loop
from specbench.train.data import corpus, texts
from specbench.train.data.chat import ChatFormat, Tokens
from specbench.train.data.texts import Windows
from specbench.util import files
from specbench.util.environment import environment
from specbench.util.terminal import Console

FACTS = "training.json"  # beside the weights: how they were trained
SPECIAL_TOKENS = ["<|bos|>", "<|end|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = (
    "<|bos|>{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] | trim }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@dataclass(frozen=True)
class Preset:
    """The shape and the token budget of a target."""

    hidden: int
    layers: int
    heads: int
    head_dim: int
    intermediate: int
    tokens: int
    batch_tokens: int = 8192
    vocab: int = 4096
    context: int = 4096
    seq: int = 1024
    long_seq: int = 3072  # about the length of Spec-Bench's longest prompts
    long_share: float = 0.1  # of the steps, at the end, with windows of ``long_seq``
    lr: float = 3e-3


PRESETS = {
    "micro": Preset(hidden=128, layers=12, heads=2, head_dim=64, intermediate=384, tokens=16_000_000),
    "tiny": Preset(hidden=256, layers=12, heads=2, head_dim=128, intermediate=768, tokens=400_000_000, batch_tokens=65536),
}


def train(preset_name: str, source: corpus.Source, out: Path, *, device: str, console: Console) -> None:
    """Train the tokenizer and the model of a preset and save both in ``out`` as a transformers checkpoint.

    Work in progress (tokenizer, texts, optimizer state) is kept in a folder of ``out``, from which the
    same command resumes.
    """
    if preset_name not in PRESETS:
        raise unknown("target preset", preset_name, PRESETS)
    preset = PRESETS[preset_name]
    corpus_sha256 = corpus.sha256(source)
    work = files.make_folder(out / f"work-{loop.settings_hash({'corpus': corpus_sha256, **asdict(preset)})}")
    tokenizer, text, held_out_text = _load_data(preset, source, work, console)

    torch.manual_seed(0)
    model = LlamaForCausalLM._from_config(llama_config(preset, tokenizer), attn_implementation="sdpa").to(device)
    steps = preset.tokens // preset.batch_tokens
    windows = {seq: Windows(text, seq) for seq in (preset.seq, preset.long_seq)}
    held_out = Windows(held_out_text, preset.seq)
    long_from = int(steps * (1 - preset.long_share))

    def batch(step: int) -> Tensor:
        seq = preset.long_seq if step >= long_from else preset.seq
        rows = max(1, preset.batch_tokens // seq)
        return windows[seq].tokens(windows[seq].numbers(step * rows, rows), extra=1).to(device)

    loss = _language_loss(model)
    can_compile = device != "cpu" or shutil.which("c++")  # inductor needs a compiler on a CPU
    compiled_loss = torch.compile(loss, dynamic=False) if can_compile else loss

    def evaluate(step: int) -> str:
        return f"held-out loss {held_out_loss(loss, held_out, device):.4f}"

    loop.fit(
        model,
        loop.optimizers(model, preset.lr),
        lambda step: [compiled_loss(batch(step))],
        steps=steps,
        tokens_per_step=preset.batch_tokens,
        state_file=work / "state.pt",
        evaluate=evaluate,
        evaluate_every=max(1, steps // 40),
        console=console,
    )

    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)
    machine = environment(torch.device(device))
    hardware = machine.gpu or f"{machine.cores} cores of {machine.cpu}"
    facts = {"preset": preset_name, "steps": steps, "batch_tokens": preset.batch_tokens, "hardware": hardware}
    facts["corpus_sha256"] = corpus_sha256
    (out / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def llama_config(preset: Preset, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    """Return the model config of a preset."""
    return LlamaConfig(
        vocab_size=preset.vocab,
        hidden_size=preset.hidden,
        intermediate_size=preset.intermediate,
        num_hidden_layers=preset.layers,
        num_attention_heads=preset.heads,
        num_key_value_heads=preset.heads,
        head_dim=preset.head_dim,
        max_position_embeddings=preset.context,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def held_out_loss(loss: Callable[[Tensor], Tensor], held_out: Windows, device: str, rows: int = 64) -> float:
    """Return the mean cross-entropy a token over ``rows`` held-out windows."""
    chosen = held_out.numbers(0, min(rows, len(held_out)))
    with torch.no_grad():
        parts = np.array_split(chosen, max(1, len(chosen) // 8))
        losses = [loss(held_out.tokens(part, extra=1).to(device)).item() for part in parts]
    return float(np.mean(losses))


def _language_loss(model: LlamaForCausalLM) -> Callable[[Tensor], Tensor]:
    def loss(rows_BT: Tensor) -> Tensor:
        with torch.autocast(rows_BT.device.type, torch.bfloat16):
            logits_BTV = model.lm_head(model.model(input_ids=rows_BT[:, :-1], use_cache=False).last_hidden_state)
        return F.cross_entropy(logits_BTV.flatten(0, 1).float(), rows_BT[:, 1:].flatten())

    return loss


def _load_data(preset: Preset, source: corpus.Source, work: Path, console: Console) -> tuple[PreTrainedTokenizerFast, Tokens, Tokens]:
    """Return the tokenizer, the training text and the held-out text, which are made and saved first if necessary."""
    if (work / "tokenizer.json").is_file():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(work)
    else:
        console.print("training the tokenizer")
        tokenizer = train_tokenizer(source, preset.vocab)
        tokenizer.save_pretrained(work)

    chat = ChatFormat(Chat(tokenizer), frozenset({tokenizer.eos_token_id}))
    loaded = []
    for name, held_out in (("train", False), ("held_out", True)):
        loaded.append(texts.load_or_make(work, name, partial(texts.of_corpus, source, chat, held_out=held_out), console))
        console.print(f"{name}: {len(loaded[-1].tokens_T):,} tokens")
    text, held_out_text = loaded
    return tokenizer, text, held_out_text


def train_tokenizer(source: corpus.Source, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the corpus' training records.

    It is a byte-level BPE with one token for each chat role; digits are single tokens, as in Llama.
    """
    bpe = Tokenizer(models.BPE())
    digits = pre_tokenizers.Split(Regex(r"\d"), "isolated")
    bpe.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=SPECIAL_TOKENS, initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(_message_texts(source), trainer)

    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _message_texts(source: corpus.Source) -> Iterator[str]:
    for record in corpus.read_records(source, held_out=False):
        for message in record["messages"]:
            yield message["content"]
