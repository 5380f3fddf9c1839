"""Packed text: the tokens of many conversations end to end, and the windows of it that training reads."""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from methods.core.errors import UserError
from specbench.train.data import corpus
from specbench.train.data.chat import ChatFormat, Tokens
from specbench.util import files

RENDERED_AT_ONCE = 4096


def packed(documents: Sequence[Tokens], seed: int = 0) -> Tokens:
    """Conversations end to end, shuffled. What follows an answer counts as part of it: a round may draft past its end."""
    order = np.random.default_rng(seed).permutation(len(documents))
    tokens_T = np.concatenate([documents[i].tokens_T for i in order])
    answer_T = np.concatenate([documents[i].answer_T for i in order])
    starts = np.cumsum([len(documents[i].tokens_T) for i in order])[:-1]
    answer_T[starts] |= answer_T[starts - 1]
    return Tokens(tokens_T, answer_T)


def of_corpus(source: corpus.Source, chat: ChatFormat, *, held_out: bool, console: Console | None = None) -> Tokens:
    """Every record, weighted and shuffled; those the template refuses, as many do whose roles do not alternate, are left out."""
    documents: list[Tokens] = []
    left_out, found = 0, corpus.read(source, held_out=held_out)
    while records := list(islice(found, RENDERED_AT_ONCE)):
        rendered = [chat.render(record["messages"], prompt=False) for record in records]
        left_out += rendered.count(None)
        kept = [(record, each) for record, each in zip(records, rendered, strict=True) if each is not None]
        for (record, _), tokens in zip(kept, chat.encode([each for _, each in kept]), strict=True):
            documents.extend([tokens] * (1 if held_out else corpus.repeats(record)))
    if left_out and console:
        console.print(f"left out {left_out:,} records whose turns the target's chat template does not take")
    if not documents:
        raise corpus.too_small(source, "held-out records" if held_out else "records to train on")
    return packed(documents)


def complete(folder: Path, name: str) -> bool:
    """Whether the text ``name`` is in a folder, whole."""
    return _answers(folder, name).is_file()  # written last


def kept(folder: Path, name: str, make: Callable[[], Tokens], console: Console) -> Tokens:
    """The text ``name`` in a folder, memory-mapped; made and saved first where it is not there."""
    if not complete(folder, name):
        console.print(f"making the {name} text")
        made = make()
        files.save(folder / f"{name}.npy", made.tokens_T)
        files.save(_answers(folder, name), made.answer_T)
    return Tokens(np.load(folder / f"{name}.npy", mmap_mode="r"), np.load(_answers(folder, name), mmap_mode="r"))


def _answers(folder: Path, name: str) -> Path:
    return folder / f"{name}.answers.npy"


class Windows:
    """The windows of ``seq`` tokens of a text, without overlap, in a fixed random order; after the last comes the first again."""

    def __init__(self, text: Tokens, seq: int):
        self.text, self.seq = text, seq
        length = len(text.tokens_T)
        if length < seq + 2:
            raise UserError(f"the corpus gives a text of {length} tokens, less than a window of {seq + 2}; give a larger corpus")
        self._starts = np.random.default_rng(seq).permutation(np.arange(0, length - seq - 1, seq))

    def __len__(self) -> int:
        return len(self._starts)

    def numbers(self, first: int, count: int) -> np.ndarray:
        """Which windows come ``first``-th to ``first + count - 1``-th."""
        return np.arange(first, first + count) % len(self)

    def tokens(self, numbers_B: np.ndarray, extra: int = 0) -> Tensor:
        """B x T of the windows so numbered, with ``extra`` tokens that follow each."""
        rows = [self.text.tokens_T[s : s + self.seq + extra] for s in self._starts[numbers_B]]
        return torch.from_numpy(np.stack(rows).astype(np.int64))

    def answers(self, numbers_B: np.ndarray) -> Tensor:
        """Which of B x T are the assistant's, but for an answer that a window begins in: its question is not there to read."""
        answer_BT = np.stack([self.text.answer_T[s : s + self.seq] for s in self._starts[numbers_B]])
        return torch.from_numpy(answer_BT & np.logical_or.accumulate(~answer_BT, axis=1))
