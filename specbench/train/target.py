"""Train the shipped target: a small Llama on the chat corpus, from its own tokenizer up."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from methods.core.errors import unknown
from specbench.targets.chat import Chat
from specbench.train import loop, tokenizer
from specbench.train.data import corpus, texts
from specbench.train.data.chat import ChatFormat, Tokens
from specbench.train.data.texts import Windows
from specbench.util import files
from specbench.util.environment import environment

FACTS = "training.json"  # beside the weights: how they were trained


@dataclass(frozen=True)
class Preset:
    """The shape and the token budget of a target trained here."""

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
    long_seq: int = 3072  # the last tenth of the steps: Spec-Bench's longest prompts come to about that
    long_share: float = 0.1
    lr: float = 3e-3


PRESETS = {
    "micro": Preset(hidden=128, layers=12, heads=2, head_dim=64, intermediate=384, tokens=16_000_000),
    "tiny": Preset(hidden=256, layers=12, heads=2, head_dim=128, intermediate=768, tokens=400_000_000, batch_tokens=65536),
}


def train(preset_name: str, source: corpus.Source, out: Path, *, device: str, console: Console) -> None:
    """Train tokenizer and model of a preset and save both in ``out`` as a transformers checkpoint.

    Work in progress (tokenizer, token streams, optimiser state) is kept beneath ``out``: the same command resumes.
    """
    if preset_name not in PRESETS:
        raise unknown("target preset", preset_name, PRESETS)
    preset = PRESETS[preset_name]
    corpus_sha256 = corpus.sha256(source)
    work = files.folder(out / f"work-{loop.identity({'corpus': corpus_sha256, **asdict(preset)})}")
    tok, text, held = _data(preset, source, work, console)
    torch.manual_seed(0)
    model = LlamaForCausalLM._from_config(config(preset, tok), attn_implementation="sdpa").to(device)
    steps = preset.tokens // preset.batch_tokens
    windows = {seq: Windows(text, seq) for seq in (preset.seq, preset.long_seq)}
    held_out = Windows(held, preset.seq)
    long_from = int(steps * (1 - preset.long_share))

    def batch(step: int) -> Tensor:
        seq = preset.long_seq if step >= long_from else preset.seq
        rows = max(1, preset.batch_tokens // seq)
        return windows[seq].tokens(windows[seq].numbers(step * rows, rows), extra=1).to(device)

    language_loss = _loss(model)
    compiler = device != "cpu" or shutil.which("c++")  # inductor needs one on a CPU
    fast_loss = torch.compile(language_loss, dynamic=False) if compiler else language_loss

    def evaluate(step: int) -> str:
        return f"held-out loss {held_out_loss(language_loss, held_out, device):.4f}"

    loop.fit(
        model,
        loop.optimizers(model, preset.lr),
        lambda step: [fast_loss(batch(step))],
        steps=steps,
        tokens_per_step=preset.batch_tokens,
        state_file=work / "state.pt",
        evaluate=evaluate,
        evaluate_every=max(1, steps // 40),
        console=console,
    )
    model.to(torch.bfloat16).save_pretrained(out)
    tok.save_pretrained(out)
    machine = environment(torch.device(device))
    hardware = machine["gpu"] or f"{machine['cores']} cores of {machine['cpu']}"
    facts = {"preset": preset_name, "steps": steps, "batch_tokens": preset.batch_tokens, "hardware": hardware}
    facts["corpus_sha256"] = corpus_sha256
    (out / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def config(preset: Preset, tok: tokenizer.PreTrainedTokenizerFast) -> LlamaConfig:
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
        bos_token_id=tok.bos_token_id,
        eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id,
    )


def held_out_loss(language_loss: Callable[[Tensor], Tensor], held_out: Windows, device: str, rows: int = 64) -> float:
    """Mean cross-entropy a token over ``rows`` held-out windows."""
    chosen = held_out.numbers(0, min(rows, len(held_out)))
    with torch.no_grad():
        losses = [
            language_loss(held_out.tokens(part, extra=1).to(device)).item() for part in np.array_split(chosen, max(1, len(chosen) // 8))
        ]
    return float(np.mean(losses))


def _loss(model: LlamaForCausalLM) -> Callable[[Tensor], Tensor]:
    def language_loss(rows_BT: Tensor) -> Tensor:
        with torch.autocast(rows_BT.device.type, torch.bfloat16):
            logits_BTV = model.lm_head(model.model(input_ids=rows_BT[:, :-1], use_cache=False).last_hidden_state)
        return F.cross_entropy(logits_BTV.flatten(0, 1).float(), rows_BT[:, 1:].flatten())

    return language_loss


def _data(preset: Preset, source: corpus.Source, work: Path, console: Console) -> tuple[tokenizer.PreTrainedTokenizerFast, Tokens, Tokens]:
    if (work / "tokenizer.json").is_file():
        tok = tokenizer.PreTrainedTokenizerFast.from_pretrained(work)
    else:
        console.print("training the tokenizer")
        tok = tokenizer.train(source, preset.vocab)
        tok.save_pretrained(work)
    chat = ChatFormat(Chat(tok), frozenset({tok.eos_token_id}))
    streams = []
    for name, held_out in (("train", False), ("held_out", True)):
        streams.append(texts.kept(work, name, partial(texts.of_corpus, source, chat, held_out=held_out), console))
        console.print(f"{name}: {len(streams[-1].tokens_T):,} tokens")
    text, held = streams
    return tok, text, held
