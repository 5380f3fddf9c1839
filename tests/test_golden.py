"""A small run of every method under a scripted clock, compared byte for byte with what the last change produced.

`python -m pytest tests/test_golden.py --update-golden` rewrites the files; review the difference before committing it.
"""

import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_target import write_drafters, write_suite, write_target

from methods import registry
from specbench.cli import app
from specbench.measure import session
from specbench.util.memory import PeakMemory

GOLDEN = Path(__file__).parent / "golden"
TICK_S = 2.0**-10  # a power of two, so that differences of clock readings are exact
VOLATILE = ("created", "argv", "prepared", "weights_sha256", "digest")  # of the manifest; a drafter file's header is in no fixed order


@pytest.fixture
def measured(tmp_path, monkeypatch) -> Path:
    """Run every method and return the folder of the finished run."""
    monkeypatch.chdir(tmp_path)
    write_suite(Path("suite.jsonl"))
    write_drafters(write_target(Path("target")), Path("draft"))
    ticks = itertools.count()
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks) * TICK_S)
    monkeypatch.setattr(PeakMemory, "peak", lambda self: 2**20)
    monkeypatch.setattr(session, "environment", lambda device: {"cpu": "a scripted CPU", "threads": 1})
    monkeypatch.setattr(session, "git_state", lambda: {})
    monkeypatch.setattr(session, "device_id", lambda device: "a scripted CPU #cpu")
    arguments = ["--target", "target", "--suite-file", "suite.jsonl", "--device", "cpu", "--dtype", "fp64", "--max-new-tokens", "16"]
    arms = [option for name in registry.METHODS for option in ("--method", name)]
    with pytest.raises(SystemExit) as end:
        app.main(["run", *arguments, *arms, "--aa", "s4c", "--drafter", "sps=draft", "--out", "run"])
    assert not end.value.code
    return Path("run")


def settled(value: Any) -> Any:
    """Return the manifest's fields without those that differ from call to call."""
    return {key: settled(inner) for key, inner in value.items() if key not in VOLATILE} if isinstance(value, dict) else value


def contents(run_dir: Path) -> dict[str, str]:
    """Return the text of each compared file, by the name of its golden file."""
    manifest = json.loads((run_dir / "manifest.json").read_text())
    (folder,) = [path for path in (run_dir / "report").iterdir() if path.is_dir()]
    return {
        "records.jsonl": (run_dir / "records.jsonl").read_text(),
        "manifest.json": json.dumps(settled(manifest), indent=1).replace(f"{Path.cwd()}/", "") + "\n",
        **{name: (folder / name).read_text() for name in ("comparison.csv", "acceptance.csv", "time_split.csv")},
    }


def test_a_run_of_every_method_is_what_it_was(measured, request):
    found = contents(measured)
    if request.config.getoption("--update-golden"):
        GOLDEN.mkdir(exist_ok=True)
        for name, text in found.items():
            (GOLDEN / name).write_text(text)
    for name, text in found.items():
        assert text == (GOLDEN / name).read_text(), f"{name} differs from tests/golden/{name}"
