"""What tuning found, as tables: the best few settings of each method, and what was predicted beside what was measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from specbench.report.tables import with_interval
from specbench.studies.tune import check
from specbench.studies.tune.choose import Prediction
from specbench.studies.tune.cost import SIZES
from specbench.studies.tune.run import Choice, Tuning
from specbench.studies.tune.settings import CANDIDATES
from specbench.util.table import TextTable, number

SHOWN = 4  # candidates of each method
HOW = (
    f"Every method had the same budget: the same recorded tokens and up to {CANDIDATES} candidate settings of at most 64 nodes. "
    "Predicted are decoding speedups over vanilla on the same back end (prefill left out): rounds replayed on the recorded answers at "
    f"measured costs. T(n) is measured at {', '.join(map(str, SIZES))} nodes, the rest of a round (drafting, acceptance, commit) at four "
    "settings of each method; both are taken to be linear in between. Trees narrower than the recorded ones are replayed as far as their "
    "guesses were recorded."
)


def settings_table(choices: Sequence[Choice]) -> TextTable:
    headers = ["Method and setting", "MAT", "Draft ms", "Verify ms", "R", "Speedup"]
    rows = []
    for choice in choices:
        rows += [[shown(choice, each), *_numbers(each)] for each in choice.ranked[:SHOWN]]
        rows.append([f"{shown(choice, choice.default)} (default)", *_numbers(choice.default)])
    return TextTable(f"The best {SHOWN} of up to {CANDIDATES} settings of each method, predicted", headers, rows)


def check_table(tuning: Tuning) -> TextTable:
    headers = ["Method and setting", "MAT", "R", "Speedup", "Measured speedup [95 %]"]
    rows = []
    for choice in tuning.choices:
        best = tuning.measured[check.arm_of(choice.method, choice.best.setting)]
        rows.append([f"{shown(choice, choice.best)} (chosen)", *_beside(choice.best, best)])
        rows.append([f"{shown(choice, choice.default)} (default)", *_beside(choice.default, tuning.measured[choice.method])])
    return TextTable("Predicted / measured, on the tuning prompts", headers, rows)


def comments(choice: Choice, tuning: Tuning) -> list[str]:
    """What the config file says of a choice."""
    best, own = tuning.measured[check.arm_of(choice.method, choice.best.setting)], tuning.measured[choice.method]
    return [
        f"predicted: MAT {number(choice.best.mat)}, R {number(choice.best.round_cost)}, decode speedup {number(choice.best.speedup)}",
        f"measured: MAT {number(best['mat'])}, R {number(best['round_cost'])}, decode speedup {with_interval(best, 'speedup_decode')}",
        f"measured with the default ({_options(choice.default)}): decode speedup {with_interval(own, 'speedup_decode')}",
    ]


def shown(choice: Choice, prediction: Prediction) -> str:
    return f"{choice.title} {_options(prediction)}"


def _options(prediction: Prediction) -> str:
    return ", ".join(f"{name}={value}" for name, value in prediction.setting.options.items())


def _numbers(each: Prediction) -> list[str]:
    times = [number(1e3 * each.draft_s), number(1e3 * each.verify_s)]
    return [number(each.mat), *times, number(each.round_cost), number(each.speedup, unit="x")]


def _beside(each: Prediction, row: Mapping[str, Any]) -> list[str]:
    pairs = ((each.mat, row["mat"]), (each.round_cost, row["round_cost"]))
    both = [f"{number(predicted)} / {number(measured)}" for predicted, measured in pairs]
    return [*both, number(each.speedup, unit="x"), with_interval(row, "speedup_decode")]
