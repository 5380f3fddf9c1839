"""The training corpus: chat records in, split into those to train on and those held out.

A record is one line of JSON, ``{"id", "category", "source", "messages": [{"role", "content"}, ...]}`` or ShareGPT's
``{"conversations": [{"from", "value"}, ...]}``, plain or xz-compressed, or a row of a data set of the Hugging Face hub
(``hf:ID``). The split is by a hash of the first user message, so that two answers to one prompt never sit on both sides.
"""

import hashlib
import json
import lzma
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from methods.core.errors import UserError
from specbench.suites import hub
from specbench.targets.chat import Message

HELD_OUT_SHARE = 0.005
CATEGORY_WEIGHT = {"rag": 2.0, "summarization": 2.0}
SOURCE_WEIGHT = {"opentriviaqa": 0.3}
CATEGORY = "chat"  # of records that name none
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant", "system": "system"}

Record = dict[str, Any]
Source = Path | str  # a file, or hf:ID, hf:ID:CONFIG, hf:ID@SPLIT


def read(source: Source, *, held_out: bool, needs: Sequence[str] = ()) -> Iterator[Record]:
    """The training or the held-out records of a corpus, in its order, each with ``messages``.

    ShareGPT's often begin with an answer, which is left out; those of other speakers, or where nobody asks, are passed over.
    Raises UserError naming the first that is no chat record, or that lacks a text under one of the keys ``needs``.
    """
    for where, text in _rows(source):
        try:
            record = json.loads(text) if isinstance(text, str) else text
            messages = _messages(record)
            if not messages:
                continue
            prompt = next(m["content"] for m in messages if m["role"] == "user")
            texts = all(isinstance(m[key], str) for m in messages for key in ("role", "content"))
        except (ValueError, KeyError, TypeError, StopIteration):
            texts = False
        if not texts:
            raise UserError(
                f"{where}: not a chat record; each line is one record, with messages (role, content) or ShareGPT's conversations "
                "(from, value), and a user turn among them"
            )
        for key in needs:
            if not isinstance(record.get(key), str):
                raise UserError(f"{where}: the record has no {key!r}, a text; each line needs {', '.join(needs)} here")
        if (_uniform(prompt) < HELD_OUT_SHARE) == held_out:
            yield record | {"messages": messages}


def _messages(record: Record) -> list[Message]:
    """A record's turns; of ShareGPT's from the first user turn on, none where it has none or another speaker."""
    if "conversations" not in record:
        return list(record["messages"])
    turns = [(turn["from"], turn["value"]) for turn in record["conversations"]]
    if any(speaker not in SPEAKERS for speaker, _ in turns):
        return []
    messages = [{"role": SPEAKERS[speaker], "content": text} for speaker, text in turns]
    first = next((i for i, message in enumerate(messages) if message["role"] == "user"), len(messages))
    return [message for message in messages[:first] if message["role"] == "system"] + messages[first:] if first < len(messages) else []


def _rows(source: Source) -> Iterator[tuple[str, Any]]:
    """Each record with where it stands: a file's as a line of text, the hub's as what it is."""
    if not _on_hub(source):
        yield from _lines(Path(source))
        return
    for number, row in enumerate(hub.rows(str(source), "training data")):
        yield f"{source}, row {number}", row


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    _check_file(path)
    opener = lzma.open if path.suffix == ".xz" else open
    try:
        with opener(path, "rt", encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                yield f"{path}, line {number}", line
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError) as error:
        raise UserError(f"corpus file {path} cannot be read ({error}); it must be JSONL in UTF-8, plain or .xz") from None


def sha256(source: Source) -> str:
    """Of a corpus file's bytes, or of a data set's rows as JSON. Raises UserError when there is none."""
    if _on_hub(source):
        digest = hashlib.sha256()
        for _, row in _rows(source):
            digest.update(json.dumps(row, sort_keys=True, default=str).encode())
        return digest.hexdigest()
    path = Path(source)
    _check_file(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"corpus file {path} cannot be read ({error.strerror}); pass a file you may read") from None


def _on_hub(source: Source) -> bool:
    return str(source).startswith(hub.PREFIX)


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"corpus file {path} does not exist; pass --data FILE (JSONL, plain or .xz) or --data hf:OWNER/NAME")


def too_small(source: Source, lacks: str) -> UserError:
    """For a corpus in which something is looked for in vain."""
    return UserError(f"corpus file {source} has no {lacks}; one prompt in {1 / HELD_OUT_SHARE:.0f} is held out: give thousands of records")


def repeats(record: Record) -> int:
    """How often a record is seen in one epoch: its weight, a fractional part drawn by a hash of its id."""
    weight = CATEGORY_WEIGHT.get(record.get("category", ""), 1.0) * SOURCE_WEIGHT.get(record.get("source", ""), 1.0)
    return int(weight) + (_uniform(str(record.get("id"))) < weight % 1)


def chat_text(messages: list[Message]) -> str:
    """A conversation in the shipped chat format; equal to what the shipped tokenizer's own chat template gives (tested)."""
    return "<|bos|>" + "".join(f"<|{m['role']}|>{m['content'].strip()}<|end|>" for m in messages)


def prompts(source: Source, *, held_out: bool) -> dict[str, list[list[Message]]]:
    """Distinct conversations up to the assistant's last answer, by category, in an order that has nothing to do with content."""
    found: dict[str, dict[str, list[Message]]] = defaultdict(dict)
    for record in read(source, held_out=held_out):
        asked = _asked(record["messages"])
        by_hash = found[str(record.get("category") or CATEGORY)]
        by_hash[hashlib.sha256((chat_text(asked) + "<|assistant|>").encode()).hexdigest()] = asked
    return {category: [asked for _, asked in sorted(by_hash.items())] for category, by_hash in found.items()}


def _asked(messages: list[Message]) -> list[Message]:
    """Up to the last user turn, which is unanswered then."""
    return messages[: max(i for i, message in enumerate(messages) if message["role"] == "user") + 1]


def _uniform(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
