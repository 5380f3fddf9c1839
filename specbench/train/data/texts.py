"""Packed text: the tokens of many conversations end to end, and the windows of it that training reads.

Shape letters: T tokens, B windows of a batch.
"""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from methods.core.errors import UserError
from specbench.train.data import corpus
from specbench.train.data.chat import ChatFormat, Tokens
from specbench.util import files
from specbench.util.terminal import Console

RENDERED_AT_ONCE = 4096


def pack(documents: Sequence[Tokens], seed: int = 0) -> Tokens:
    """Return conversations end to end, shuffled.

    The first token after an answer counts as part of it, since a step may draft past an answer's end.
    """
    order = np.random.default_rng(seed).permutation(len(documents))
    tokens_T = np.concatenate([documents[i].tokens_T for i in order])
    answer_T = np.concatenate([documents[i].answer_T for i in order])
    starts = np.cumsum([len(documents[i].tokens_T) for i in order])[:-1]
    answer_T[starts] |= answer_T[starts - 1]
    return Tokens(tokens_T, answer_T)


def of_corpus(source: corpus.Source, chat: ChatFormat, *, held_out: bool, console: Console | None = None) -> Tokens:
    """Return all records of a corpus as a text, weighted and shuffled.

    Records that the template refuses are left out; many templates refuse roles that do not alternate.
    """
    documents: list[Tokens] = []
    left_out, all_records = 0, corpus.read_records(source, held_out=held_out)
    while records := list(islice(all_records, RENDERED_AT_ONCE)):
        rendered = [chat.render(record["messages"], prompt=False) for record in records]
        left_out += rendered.count(None)
        kept = [(record, text) for record, text in zip(records, rendered, strict=True) if text is not None]
        for (record, _), tokens in zip(kept, chat.encode([text for _, text in kept]), strict=True):
            documents.extend([tokens] * (1 if held_out else corpus.repeats(record)))

    if left_out and console:
        console.print(f"left out {left_out:,} records whose turns the target's chat template does not take")
    if not documents:
        raise corpus.too_small_error(source, "held-out records" if held_out else "records to train on")
    return pack(documents)


def is_saved(folder: Path, name: str) -> bool:
    """Return whether the text ``name`` is completely saved in a folder."""
    return _answers_file(folder, name).is_file()  # written last


def load_or_make(folder: Path, name: str, make: Callable[[], Tokens], console: Console) -> Tokens:
    """Return the text ``name`` of a folder, memory-mapped; it is made and saved first if necessary."""
    if not is_saved(folder, name):
        console.print(f"making the {name} text")
        made = make()
        save_array(folder / f"{name}.npy", made.tokens_T)
        save_array(_answers_file(folder, name), made.answer_T)
    return Tokens(np.load(folder / f"{name}.npy", mmap_mode="r"), np.load(_answers_file(folder, name), mmap_mode="r"))


def save_array(path: Path, array: np.ndarray) -> None:
    """Write the array as a .npy file."""
    with files.atomic_write(path) as partial, partial.open("wb") as file:
        np.save(file, array)


def _answers_file(folder: Path, name: str) -> Path:
    return folder / f"{name}.answers.npy"


class Windows:
    """The windows of ``seq`` tokens of a text, without overlap, in a fixed random order that repeats without end."""

    def __init__(self, text: Tokens, seq: int):
        self.text, self.seq = text, seq
        length = len(text.tokens_T)
        if length < seq + 2:
            raise UserError(f"the corpus gives a text of {length} tokens, less than a window of {seq + 2}; give a larger corpus")
        self._starts = np.random.default_rng(seq).permutation(np.arange(0, length - seq - 1, seq))

    def __len__(self) -> int:
        return len(self._starts)

    def numbers(self, first: int, count: int) -> np.ndarray:
        """Return the numbers of the windows at ``first`` to ``first + count - 1`` of the endless order."""
        return np.arange(first, first + count) % len(self)

    def tokens(self, numbers_B: np.ndarray, extra: int = 0) -> Tensor:
        """Return the tokens of the windows with these numbers, BT, with the ``extra`` tokens after each."""
        rows = [self.text.tokens_T[s : s + self.seq + extra] for s in self._starts[numbers_B]]
        return torch.from_numpy(np.stack(rows).astype(np.int64))

    def answers(self, numbers_B: np.ndarray) -> Tensor:
        """Return which tokens are the assistant's, BT; an answer that the window begins in does not count, as its question is cut off."""
        answer_BT = np.stack([self.text.answer_T[s : s + self.seq] for s in self._starts[numbers_B]])
        return torch.from_numpy(answer_BT & np.logical_or.accumulate(~answer_BT, axis=1))
