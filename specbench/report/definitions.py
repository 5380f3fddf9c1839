"""Definitions of the columns and metrics in the report. Those of metrics are the docstrings of the code."""

import inspect

from specbench.analysis.metrics import DEFINITIONS

COLUMNS = (
    (
        "Speedup",
        "Definition speedup below. The 95 % bootstrap interval is over questions, stratified by category.",
    ),
    (
        "As Spec-Bench",
        "Definition speedup_specbench_legacy, the arithmetic of that benchmark. Use it only beside its leaderboard. "
        "A dash means that the run did not record text_tokens.",
    ),
    ("Decode speedup", "Definition speedup_decode: the time of the steps alone. It equals MAT / R."),
    ("MAT", "Definition mat. The target's own next token counts, so vanilla has 1."),
    ("R", "Definition step_cost: the time of a step in vanilla steps."),
    (
        "Tokens/s",
        "Mean over questions, end to end. Tokens/s decode: all emitted tokens divided by all step time.",
    ),
    (
        "Same as vanilla",
        "Share of turns with identical output token ids, among turns with the same prompt. “First at”: mean index of the "
        "first differing token in the other turns. “By text”: a server sent no ids, so texts are compared.",
    ),
    (
        "Repeated 4-grams",
        "Share of 4-grams seen earlier in the same output, averaged over turns. Repetition is easy to draft and raises MAT.",
    ),
    ("Cut by length", "Share of turns that ended at the token limit."),
    (
        "Peak MiB",
        "Largest peak memory of a turn, with the weights of all arms loaded: the allocator's on CUDA, the process's on a CPU.",
    ),
    (
        "Questions",
        "Questions compared. Left out: questions with a failed turn in either arm, which are left out of both.",
    ),
    (
        "Different engine",
        "A row that another program answered: transformers' generate on the same weights, or a server. Prompts, settings, and clock "
        "are the same. A dash is a number that it does not report. A server's prefill is the time to its first token. Its MAT is "
        "1 + accepted drafts / steps by its own counters, read before and after each request.",
    ),
    (
        "Acceptance by depth",
        "Marginal: share of all steps that accepted at least d drafts; 1 + its sum over depths is MAT before the last step of an answer "
        "is clipped. Conditional: the same share among steps that accepted d - 1 drafts and whose tree reaches depth d. Drafted: share "
        "of all steps whose tree reaches depth d.",
    ),
)


def definitions() -> list[tuple[str, str]]:
    """Return the columns of the tables, then every metric of ``metrics.DEFINITIONS`` with its docstring."""
    metrics = ((name, " ".join((inspect.getdoc(metric) or "").replace("`", "").split())) for name, metric in DEFINITIONS.items())
    return [*COLUMNS, *metrics]
