"""Held-out corpus prompts as a suite: what options are chosen on, since Spec-Bench itself is never tuned on."""

import json
from pathlib import Path

from rich.console import Console

from specbench.train.data import corpus
from specbench.util import files


def write(source: corpus.Source, out: Path, per_category: int, console: Console) -> None:
    """Write ``per_category`` held-out prompts of one turn for each corpus category to ``out``, in Spec-Bench's schema."""
    files.writable(out)
    rows = []
    for category, conversations in sorted(corpus.prompts(source, held_out=True).items()):
        asked = [messages[0]["content"] for messages in conversations if [m["role"] for m in messages] == ["user"]]
        for number, text in enumerate(asked[:per_category]):
            rows.append({"question_id": f"{category}-{number}", "category": category, "turns": [text]})
    if not rows:
        raise corpus.too_small(source, "held-out prompts of one user turn")
    with files.whole(out) as partial:
        partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    console.print(f"wrote {len(rows)} prompts to {out}")
