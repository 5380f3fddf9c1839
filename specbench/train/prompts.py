"""Held-out corpus prompts as a suite: what options are chosen on, since Spec-Bench itself is never tuned on."""

import hashlib
import itertools
import json
from collections import defaultdict
from pathlib import Path

from rich.console import Console

from specbench.train import corpus


def write(corpus_file: Path, out: Path, per_category: int, console: Console) -> None:
    """Write ``per_category`` held-out first turns of each corpus category to ``out``, in Spec-Bench's schema."""
    by_category: dict[str, dict[str, str]] = defaultdict(dict)
    for record in corpus.read(corpus_file, held_out=True):
        if [message["role"] for message in record["messages"][:-1]] == ["user"]:
            text = record["messages"][0]["content"]
            by_category[record["category"]][hashlib.sha256(text.encode()).hexdigest()] = text
    rows = []
    for category, texts in sorted(by_category.items()):
        for number, (_, text) in enumerate(itertools.islice(sorted(texts.items()), per_category)):
            rows.append({"question_id": f"{category}-{number}", "category": category, "turns": [text]})
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    console.print(f"wrote {len(rows)} prompts to {out}")
