"""How to read the tables: each column and each definition in a sentence or two, the latter from the code's own docstrings."""

import inspect

from specbench.metrics import DEFINITIONS

COLUMNS = (
    ("Speedup", "definition speedup below, with a 95 % bootstrap interval over questions, stratified by category."),
    ("As Spec-Bench", "definition speedup_specbench: that benchmark's arithmetic, only to stand beside published tables."),
    ("Decode speedup", "definition speedup_decode: the time of the steps alone."),
    ("MAT", "definition mat. The target's own next token counts, so vanilla has 1."),
    ("R", "definition round_cost."),
    ("Tokens/s", "mean over questions, end to end; decode: all emitted tokens over all step time."),
    (
        "Same as vanilla",
        "share of the turns with an equal prompt whose output ids are identical; first at: mean index of the first differing token "
        "among the others.",
    ),
    ("Repeated 4-grams", "mean share per turn of 4-grams seen earlier in the same output; loops are easy to draft and raise MAT."),
    ("Cut by length", "turns that ended at the token limit."),
    ("Peak MiB", "the allocator's on CUDA, the process' on a CPU, with every arm's weights loaded."),
    ("Questions", "those compared; left out: those with a failed turn in either arm, left out of both."),
    (
        "Acceptance by depth",
        "marginal: share of the steps whose tree reached depth d that accepted at least d drafts; conditional: of those of them that "
        "accepted d - 1.",
    ),
)


def definitions() -> list[tuple[str, str]]:
    """Columns of the tables, then every definition of ``metrics.DEFINITIONS`` with its docstring."""
    return [*COLUMNS, *((name, " ".join((inspect.getdoc(each) or "").replace("`", "").split())) for name, each in DEFINITIONS.items())]
