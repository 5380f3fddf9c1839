"""The result of tuning as tables: the best settings of each method, and predictions beside measurements."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specbench.config import tuned
from specbench.report.tables import with_interval
from specbench.studies.base import ms, table
from specbench.studies.tune.cost import TREE_SIZES
from specbench.studies.tune.replay import Prediction
from specbench.studies.tune.run import TunedMethod, Tuning
from specbench.studies.tune.settings import CANDIDATES, MOST
from specbench.util.text import TextTable, number

SHOWN = 4  # candidates of each method
HOW = (
    f"Every method had the same budget: the same recorded tokens and up to {CANDIDATES} candidate settings of at most {MOST} nodes. "
    "Predictions are decode speedups over vanilla on the same back end, without prefill: steps replayed on the recorded answers at "
    f"measured costs. T(n) is measured at tree sizes {', '.join(map(str, TREE_SIZES))}, the rest of a step (drafting, acceptance, commit) "
    "at four settings of each method; both are linear in between. Trees narrower than the recorded ones are replayed as far as their "
    "guesses were recorded."
)


def settings_table(methods: Sequence[TunedMethod]) -> TextTable:
    """Return the predictions for the best settings of each method and for its default."""
    rows = []
    for method in methods:
        rows += [{"Method and setting": shown(method, one), **_predicted(one)} for one in method.ranked[:SHOWN]]
        rows.append({"Method and setting": f"{shown(method, method.default)} (default)", **_predicted(method.default)})
    return table(f"The best {SHOWN} of up to {CANDIDATES} settings of each method, predicted", rows)


def check_table(tuning: Tuning) -> TextTable:
    """Return predictions beside measurements, for the chosen setting and the default of each method."""
    rows = []
    for method in tuning.methods:
        for prediction, arm, remark in ((method.best, method.arm, "chosen"), (method.default, method.method, "default")):
            name = f"{shown(method, prediction)} ({remark})"
            rows.append({"Method and setting": name, **_beside(prediction, tuning.measured[arm])})
    return table("Predicted / measured, on the tuning prompts", rows)


def comments(method: TunedMethod, tuning: Tuning) -> list[str]:
    """Return the lines that the config file has on a method."""
    best, own = tuning.measured[method.arm], tuning.measured[method.method]
    return [
        f"predicted: MAT {number(method.best.mat)}, R {number(method.best.step_cost)}, decode speedup {number(method.best.speedup)}",
        f"measured: MAT {number(best['mat'])}, R {number(best['step_cost'])}, decode speedup {with_interval(best, 'speedup_decode')}",
        f"measured with the default ({_options(method.default)}): decode speedup {with_interval(own, 'speedup_decode')}",
    ]


def write(tuning: Tuning, path: Path) -> None:
    """Write the config file for ``specbench run --config``. Raises UserError if it cannot be written."""
    chosen = {method.method: method.best.setting.options for method in tuning.methods}
    tuned.write(path, chosen, tuning.tuned_on, {method.method: comments(method, tuning) for method in tuning.methods})


def shown(method: TunedMethod, prediction: Prediction) -> str:
    """Return a method's title with a setting's options."""
    return f"{method.title} {_options(prediction)}"


def _options(prediction: Prediction) -> str:
    return ", ".join(f"{name}={value}" for name, value in prediction.setting.options.items())


def _predicted(prediction: Prediction) -> dict[str, str]:
    return {
        "MAT": number(prediction.mat),
        "Draft ms": ms(prediction.draft_s),
        "Verify ms": ms(prediction.verify_s),
        "R": number(prediction.step_cost),
        "Speedup": number(prediction.speedup, unit="x"),
    }


def _beside(prediction: Prediction, row: Mapping[str, Any]) -> dict[str, str]:
    return {
        "MAT": f"{number(prediction.mat)} / {number(row['mat'])}",
        "R": f"{number(prediction.step_cost)} / {number(row['step_cost'])}",
        "Speedup": number(prediction.speedup, unit="x"),
        "Measured speedup [95 %]": with_interval(row, "speedup_decode"),
    }
