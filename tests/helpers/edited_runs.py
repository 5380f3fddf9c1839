"""Runs whose files a test edits."""

import json
import re
from pathlib import Path

from specbench.store import manifest, records


def without_digests(run_dir: Path) -> Path:
    """Take every digest out of a run, as if it were older than they are, so that its files may be edited."""
    path = run_dir / records.FILE
    if path.exists():
        path.write_bytes(re.sub(rb',"digest":"\w+"}', b"}", path.read_bytes()))
    path = run_dir / manifest.FILE
    facts = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({name: fact for name, fact in facts.items() if name not in ("digest", "ending")}), encoding="utf-8")
    return run_dir
