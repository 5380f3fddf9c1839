"""The training corpus: chat records in, token streams out.

A record is one line of JSON, ``{"id", "category", "source", "messages": [{"role", "content"}, ...]}``, plain or
xz-compressed. The split into training and held-out records is by a hash of the first user message, so that two
answers to one prompt never sit on both sides.
"""

import hashlib
import json
import lzma
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from methods.core.errors import UserError

HELD_OUT_SHARE = 0.005
CATEGORY_WEIGHT = {"rag": 2.0, "summarization": 2.0}
SOURCE_WEIGHT = {"opentriviaqa": 0.3}

Record = dict[str, Any]


def read(path: Path, *, held_out: bool, needs: Sequence[str] = ()) -> Iterator[Record]:
    """The training or the held-out records of a corpus file, in file order.

    Raises UserError naming the first line that is no chat record, or that lacks a text under one of the keys ``needs``.
    """
    for number, line in _lines(path):
        try:
            record = json.loads(line)
            prompt = next(m["content"] for m in record["messages"] if m["role"] == "user")
            texts = all(isinstance(m[key], str) for m in record["messages"] for key in ("role", "content"))
        except (ValueError, KeyError, TypeError, StopIteration):
            texts = False
        if not texts:
            raise UserError(f"{path}, line {number}: not a chat record; each line needs messages with a user turn")
        for key in needs:
            if not isinstance(record.get(key), str):
                raise UserError(f"{path}, line {number}: the record has no {key!r}, a text; each line needs {', '.join(needs)} here")
        if (_uniform(prompt) < HELD_OUT_SHARE) == held_out:
            yield record


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    _check_file(path)
    opener = lzma.open if path.suffix == ".xz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            yield from enumerate(lines, start=1)
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError) as error:
        raise UserError(f"corpus file {path} cannot be read ({error}); it must be JSONL in UTF-8, plain or .xz") from None


def sha256(path: Path) -> str:
    """Of the corpus file. Raises UserError when there is none."""
    _check_file(path)
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"corpus file {path} cannot be read ({error.strerror}); pass a file you may read") from None


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"corpus file {path} does not exist; pass --corpus FILE (JSONL, plain or .xz)")


def too_small(path: Path, lacks: str) -> UserError:
    """For a corpus in which something is looked for in vain."""
    return UserError(f"corpus file {path} has no {lacks}; one prompt in {1 / HELD_OUT_SHARE:.0f} is held out: give thousands of records")


def repeats(record: Record) -> int:
    """How often a record is seen in one epoch: its weight, a fractional part drawn by a hash of its id."""
    weight = CATEGORY_WEIGHT.get(record.get("category", ""), 1.0) * SOURCE_WEIGHT.get(record.get("source", ""), 1.0)
    return int(weight) + (_uniform(str(record.get("id"))) < weight % 1)


def chat_text(messages: list[dict[str, str]]) -> str:
    """A conversation in the shipped chat format; equal to what the tokenizer's own chat template gives (tested)."""
    return "<|bos|>" + "".join(f"<|{m['role']}|>{m['content'].strip()}<|end|>" for m in messages)


def prompts(path: Path, *, held_out: bool) -> dict[str, list[list[dict[str, str]]]]:
    """Distinct conversations up to the assistant's last answer, by category, in an order that has nothing to do with content."""
    found: dict[str, dict[str, list[dict[str, str]]]] = defaultdict(dict)
    for record in read(path, held_out=held_out, needs=("category",)):
        asked = record["messages"][:-1]
        found[record["category"]][hashlib.sha256((chat_text(asked) + "<|assistant|>").encode()).hexdigest()] = asked
    return {category: [asked for _, asked in sorted(by_hash.items())] for category, by_hash in found.items()}


def token_stream(path: Path, tokenizer: Tokenizer, *, held_out: bool, seed: int = 0) -> np.ndarray:
    """Every record, weighted and shuffled, as one uint16 array of token ids."""
    documents: list[np.ndarray] = []
    batch: list[Record] = []

    def flush() -> None:
        texts = [chat_text(record["messages"]) for record in batch]
        for record, encoding in zip(batch, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
            ids = np.array(encoding.ids, dtype=np.uint16)
            documents.extend([ids] * (1 if held_out else repeats(record)))
        batch.clear()

    for record in read(path, held_out=held_out):
        batch.append(record)
        if len(batch) == 4096:
            flush()
    flush()
    if not documents:
        raise too_small(path, "held-out records" if held_out else "records to train on")
    order = np.random.default_rng(seed).permutation(len(documents))
    return np.concatenate([documents[i] for i in order])


def window_starts(length: int, seq: int) -> np.ndarray:
    """Where windows of ``seq`` tokens start in a stream, in a fixed random order. Raises UserError where not one fits."""
    if length < seq + 2:
        raise UserError(f"the corpus gives a text of {length} tokens, less than a window of {seq + 2}; give a larger corpus")
    return np.random.default_rng(seq).permutation(np.arange(0, length - seq - 1, seq))


def windows(stream_T: np.ndarray, starts: np.ndarray, seq: int) -> Tensor:
    """Windows of ``seq + 1`` tokens, int64: inputs and, one on, what follows them."""
    return torch.from_numpy(np.stack([stream_T[s : s + seq + 1] for s in starts]).astype(np.int64))


def _uniform(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
