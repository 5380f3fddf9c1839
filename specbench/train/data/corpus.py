"""The training corpus: chat records, split into those to train on and those held out.

A record is ``{"id", "category", "source", "messages": [{"role", "content"}, ...]}`` or ShareGPT's
``{"conversations": [{"from", "value"}, ...]}``: one line of JSON, or an item of one JSON array, in a file that is plain or
xz-compressed, or a row of a data set of the Hugging Face hub (``hf:ID``). The split is by a hash of the first user message, so
that two answers to the same prompt are always on the same side.
"""

import functools
import hashlib
import json
import lzma
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from methods.core.errors import UserError
from specbench.suites import hub
from specbench.targets.chat import Message
from specbench.util import files
from specbench.util.terminal import Console, tell

HELD_OUT_SHARE = 0.005
PROMPTS_PER_CATEGORY = 20  # of a held-out suite
CATEGORY_WEIGHT = {"rag": 2.0, "summarization": 2.0}
SOURCE_WEIGHT = {"opentriviaqa": 0.3}
DEFAULT_CATEGORY = "chat"  # of records without a category
TURNS = ("messages", "conversations")  # the key of a record's turns: as chat models are asked, and ShareGPT's
SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "assistant": "assistant", "system": "system"}
LONE_SURROGATE = re.compile("[\ud800-\udfff]")

ChatRecord = dict[str, Any]
Source = Path | str  # a file, or hf:ID, hf:ID:CONFIG, hf:ID@SPLIT


def read_records(source: Source, *, held_out: bool, needs: Sequence[str] = ()) -> Iterator[ChatRecord]:
    """Yield the training or the held-out records of a corpus in its order, each with ``messages``.

    ShareGPT's records often begin with an answer, which is left out. Records that are no dialogue of texts
    with a user turn, such as calls of tools, are passed over, and their number is printed at the end. Raises
    UserError naming the first row that is not a chat record, or whose value for one of the keys ``needs`` is
    not a text.
    """
    passed_over = 0
    for where, text in _rows(source):
        try:
            record = json.loads(text) if isinstance(text, str) else text
            messages = _messages(record)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(
                f"{where}: not a chat record; each has messages (role, content) or ShareGPT's conversations (from, value)"
            ) from None
        if not messages:
            passed_over += 1
            continue
        prompt = next(m["content"] for m in messages if m["role"] == "user")
        for key in needs:
            if not isinstance(record.get(key), str):
                raise UserError(f"{where}: the record has no {key!r}, a text; each line needs {', '.join(needs)} here")
        if (_uniform(prompt) < HELD_OUT_SHARE) == held_out:
            yield record | {"messages": messages}
    if passed_over:
        _report_passed_over(source, passed_over)


@functools.cache
def _report_passed_over(source: Source, count: int) -> None:
    """Print once, for a corpus that is read several times, how many of its records are passed over."""
    tell(f"{source}: passed over {count:,} records that are no dialogue of texts with a user turn")


def _messages(record: ChatRecord) -> list[Message]:
    """Return a record's turns; for ShareGPT's, its system turn and those from the first user turn on.

    The list is empty where the record has no user turn, another speaker, or a turn that is no text.
    """
    shared = "conversations" in record
    turns = [(turn["from"], turn["value"]) if shared else (turn["role"], turn.get("content")) for turn in record[TURNS[shared]]]
    messages: list[Message] = []
    for speaker, content in turns:
        text = _text(content)
        if speaker not in SPEAKERS or text is None:
            return []
        messages.append({"role": SPEAKERS[speaker], "content": text})
    first = next((i for i, message in enumerate(messages) if message["role"] == "user"), len(messages))
    if first == len(messages) or not shared:
        return messages if first < len(messages) else []
    return [message for message in messages[:first] if message["role"] == "system"] + messages[first:]


def _text(content: Any) -> str | None:
    """Return the text of a turn, which may be a list of parts; None where it holds anything else, or half of a surrogate pair."""
    if isinstance(content, str):
        return None if LONE_SURROGATE.search(content) else content
    if not isinstance(content, list) or not content:
        return None
    parts = [part["text"] for part in content if isinstance(part, dict) and part.get("type") == "text" and isinstance(part["text"], str)]
    return _text("".join(parts)) if len(parts) == len(content) else None


def _rows(source: Source) -> Iterator[tuple[str, Any]]:
    """Yield (location, row) pairs; a file's row is a line of text or an item of its array, the hub's a dict."""
    if not _on_hub(source):
        yield from _lines(Path(source))
        return

    for number, row in enumerate(hub.read_rows(str(source), "training data")):
        yield f"{source}, row {number}", row


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    """Yield the lines of a file that are not blank, or, where it is one JSON array as ShareGPT's, the items of that."""
    _check_file(path)
    opener = lzma.open if path.suffix == ".xz" else open
    try:
        with opener(path, "rt", encoding="utf-8-sig") as lines:
            first = True
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                if first and line.lstrip().startswith("["):
                    yield from _items(path, line + lines.read())
                    return
                first = False
                yield f"{path}, line {number}", line
    except (OSError, EOFError, UnicodeDecodeError, lzma.LZMAError) as error:
        raise UserError(f"corpus file {path} cannot be read ({error}); it must be JSONL in UTF-8, plain or .xz") from None


def _items(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    try:
        items = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"corpus file {path} begins as a JSON array but is none ({error}); give one array, or one record a line") from None
    for number, item in enumerate(items, start=1):
        yield f"{path}, record {number}", item


def sha256(source: Source) -> str:
    """Return the hash of a corpus file's bytes, or of a data set's rows as JSON. Raises UserError without one."""
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


def too_small_error(source: Source, missing: str) -> UserError:
    """Return the error for a corpus that lacks what ``missing`` names."""
    return UserError(
        f"corpus file {source} has no {missing}; one prompt in {1 / HELD_OUT_SHARE:.0f} is held out: give thousands of records"
    )


def repeats(record: ChatRecord) -> int:
    """Return how often a record occurs in an epoch: its weight, whose fractional part is drawn by a hash of its id."""
    weight = CATEGORY_WEIGHT.get(record.get("category", ""), 1.0) * SOURCE_WEIGHT.get(record.get("source", ""), 1.0)
    return int(weight) + (_uniform(str(record.get("id"))) < weight % 1)


def chat_text(messages: list[Message]) -> str:
    """Return a conversation in the shipped chat format, as the shipped tokenizer's own chat template gives it."""
    return "<|bos|>" + "".join(f"<|{m['role']}|>{m['content'].strip()}<|end|>" for m in messages)


def prompts(source: Source, *, held_out: bool) -> dict[str, list[list[Message]]]:
    """Return distinct conversations, each up to its last user turn, by category and in the order of their hashes."""
    conversations: dict[str, dict[str, list[Message]]] = defaultdict(dict)
    for record in read_records(source, held_out=held_out):
        prompt = _up_to_last_user_turn(record["messages"])
        by_hash = conversations[str(record.get("category") or DEFAULT_CATEGORY)]
        by_hash[hashlib.sha256((chat_text(prompt) + "<|assistant|>").encode()).hexdigest()] = prompt
    return {category: [prompt for _, prompt in sorted(by_hash.items())] for category, by_hash in conversations.items()}


def write_held_out_suite(source: Source, out: Path, console: Console, per_category: int = PROMPTS_PER_CATEGORY) -> None:
    """Write ``per_category`` held-out prompts of one turn of each category to ``out``, in Spec-Bench's schema.

    Options are chosen on these, since Spec-Bench itself is never tuned on.
    """
    files.check_writable(out, inputs=[source])
    rows = []
    for category, conversations in sorted(prompts(source, held_out=True).items()):
        texts = [messages[0]["content"] for messages in conversations if [m["role"] for m in messages] == ["user"]]
        for number, text in enumerate(texts[:per_category]):
            rows.append({"question_id": f"{category}-{number}", "category": category, "turns": [text]})
    if not rows:
        raise too_small_error(source, "held-out prompts of one user turn")

    with files.atomic_write(out) as partial:
        partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    console.print(f"wrote {len(rows)} prompts to {out}")


def _up_to_last_user_turn(messages: list[Message]) -> list[Message]:
    return messages[: max(i for i, message in enumerate(messages) if message["role"] == "user") + 1]


def _uniform(text: str) -> float:
    """Return a number in [0, 1) drawn by the text's hash."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
