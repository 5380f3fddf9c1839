"""Text the target itself writes: what drafters are trained on last, since it is what they will have to guess."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from specbench.train import corpus

BATCH = 64


def conversations(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    corpus_file: Path,
    *,
    held_out: bool,
    per_category: int,
    max_prompt: int,
    max_new: int,
    console: Console,
) -> np.ndarray:
    """Greedy answers to ``per_category`` prompts of every corpus category, as one uint16 token stream.

    Prompts longer than ``max_prompt`` tokens are passed over; categories count alike, as they do in the benchmark.
    """
    asked = prompts(tokenizer, corpus_file, held_out=held_out, per_category=per_category, max_prompt=max_prompt)
    answered = answers(model, asked, max_new, console)
    texts = [np.array(prompt + answer, dtype=np.uint16) for prompt, answer in zip(asked, answered, strict=True)]
    return np.concatenate([texts[i] for i in np.random.default_rng(0).permutation(len(texts))])


def prompts(tokenizer: Tokenizer, corpus_file: Path, *, held_out: bool, per_category: int, max_prompt: int) -> list[list[int]]:
    """Token ids of prompts up to the assistant's turn, shortest first (so that batches pad little)."""
    chosen = []
    for conversations in corpus.prompts(corpus_file, held_out=held_out).values():
        encoded = (tokenizer.encode(corpus.chat_text(asked) + "<|assistant|>", add_special_tokens=False).ids for asked in conversations)
        chosen += list(itertools.islice((ids for ids in encoded if len(ids) <= max_prompt), per_category))
    if not chosen:
        raise corpus.too_small(corpus_file, f"{'held-out' if held_out else 'training'} prompts of at most {max_prompt} tokens")
    return sorted(chosen, key=len)


def answers(model: PreTrainedModel, asked: list[list[int]], max_new: int, console: Console) -> list[list[int]]:
    """The target's greedy answers, end token included where it came."""
    found: list[list[int]] = []
    for start in range(0, len(asked), BATCH):
        found += _batch(model, asked[start : start + BATCH], max_new)
        console.print(f"generated {len(found)}/{len(asked)} answers, {sum(map(len, found)):,} tokens")
    return found


def _batch(model: Any, asked: list[list[int]], max_new: int) -> list[list[int]]:
    pad, end = model.config.pad_token_id, model.config.eos_token_id
    longest = max(map(len, asked))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in asked], device=model.device)
    out = model.generate(ids, attention_mask=(ids != pad).long(), do_sample=False, max_new_tokens=max_new, pad_token_id=pad)
    rows = out[:, longest:].tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in rows]
