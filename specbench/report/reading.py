"""How to read the tables: each column and each definition in a sentence or two, the latter from the code's own docstrings."""

import inspect

from specbench.analysis.metrics import DEFINITIONS

COLUMNS = (
    ("Speedup", "definition speedup below, with a 95 % bootstrap interval over questions, stratified by category."),
    (
        "As Spec-Bench",
        "definition speedup_specbench_legacy: that benchmark's arithmetic to the letter, only to stand beside its leaderboard's numbers; "
        "a dash where the run did not record text_tokens.",
    ),
    ("Decode speedup", "definition speedup_decode: the time of the steps alone; exactly MAT / R."),
    ("MAT", "definition mat. The target's own next token counts, so vanilla has 1."),
    ("R", "definition round_cost: what a round costs in vanilla steps."),
    ("Tokens/s", "mean over questions, end to end; decode: all emitted tokens over all step time."),
    (
        "Same as vanilla",
        "share of the turns with an equal prompt whose output ids are identical; first at: mean index of the first differing token "
        "among the others; by text: a server that sends no ids is compared by the text of its answers.",
    ),
    ("Repeated 4-grams", "mean share per turn of 4-grams seen earlier in the same output; loops are easy to draft and raise MAT."),
    ("Cut by length", "turns that ended at the token limit."),
    ("Peak MiB", "the allocator's on CUDA, the process' on a CPU, with every arm's weights loaded."),
    ("Questions", "those compared; left out: those with a failed turn in either arm, left out of both."),
    (
        "Different engine",
        "a row that another program answered, at the same prompts and settings, timed by the same clock: transformers' generate on the "
        "same weights, or a server. A dash is what it does not tell. A server's prefill is the time to its first token; its MAT is "
        "1 + accepted drafts over rounds by its own counters, differenced around each request, where no other request came between.",
    ),
    (
        "Acceptance by depth",
        "marginal: share of all rounds that accepted at least d drafts, so that 1 + its sum over depths is MAT before the last step "
        "of an answer is clipped; conditional: the same among the rounds that accepted d - 1 and whose tree goes to d; drafted: share "
        "of all rounds whose tree goes to d.",
    ),
)


def definitions() -> list[tuple[str, str]]:
    """Columns of the tables, then every definition of ``metrics.DEFINITIONS`` with its docstring."""
    return [*COLUMNS, *((name, " ".join((inspect.getdoc(each) or "").replace("`", "").split())) for name, each in DEFINITIONS.items())]
