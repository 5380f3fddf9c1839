"""How well a prediction holds: the chosen setting and the method's default, run on the tuning prompts as ``specbench run`` would."""

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from specbench.analysis import metrics
from specbench.analysis.frames import turns_frame
from specbench.config.options import Options
from specbench.measure import runner
from specbench.measure.progress import RunProgress
from specbench.measure.session import prepare
from specbench.store.records import Record
from specbench.studies.tune import prompts
from specbench.studies.tune.guess import Setting
from specbench.suites import Suite


def arm_of(method: str, setting: Setting) -> str:
    """The name of an arm that runs a method at a setting: ``s4c:nodes=8,depth=3,width=2``."""
    return f"{method}:{','.join(f'{name}={value}' for name, value in setting.options.items())}"


def measured(asked: Options, suite: Suite, console: Console) -> Mapping[str, Mapping[str, Any]]:
    """Each asked arm's row of the comparison with vanilla, arms interleaved question by question; see ``metrics.measure``."""
    with tempfile.TemporaryDirectory() as folder:
        suite_file = Path(folder) / "tuning.jsonl"
        prompts.write(suite, suite_file)
        session = prepare(replace(asked, suite_file=suite_file))
    runner.warm_up(session, console)
    records: list[Record] = []
    progress = RunProgress(console, session.manifest.settings.methods, session.manifest.units_total, [])
    with progress:
        runner.measure(session, [], records.append, progress)
    turns = turns_frame(records)
    return {name: metrics.measure(turns, name) for name in asked.methods}
