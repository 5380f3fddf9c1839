"""Comparison of two arms' outputs, by token ids, or by text where a server sends no ids."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from specbench.store.records import Record

NGRAM = 4


class Agreement(NamedTuple):
    """How often an arm's output equals vanilla's.

    Only turns with equal prompts are compared: if the first answers differ, so do the second prompts.
    """

    agreement: float  # share of the comparable turns with identical output; NaN without any
    comparable_turns: int
    diverging_turns: int
    first_divergence: float  # mean index of the first differing output token, over the diverging turns; NaN without any
    compared_by_text: int  # comparable turns of which only the text is known


NOTHING_TO_COMPARE = Agreement(np.nan, 0, 0, np.nan, 0)


def agreement(ours: pd.DataFrame, vanilla: pd.DataFrame) -> Agreement:
    """Compare two arms' turns (rows of ``turns_frame``) with equal question, turn, repeat, and prompt."""
    key = ["question_id", "turn", "repeat", "prompt_sha256"]
    pairs = ours.merge(vanilla, on=key, suffixes=("", "_vanilla"))
    has_ids = pairs["output_ids"].map(len) > 0
    with_ids, with_text = pairs[has_ids], pairs[~has_ids]

    positions = [first_divergence(a, b) for a, b in zip(with_ids["output_ids"], with_ids["output_ids_vanilla"], strict=True)]
    diverging = [position for position in positions if position is not None]
    total_diverging = len(diverging) + int((with_text["output_text"] != with_text["output_text_vanilla"]).sum())

    share = 1 - total_diverging / len(pairs) if len(pairs) else np.nan
    mean_position = float(np.mean(diverging)) if diverging else np.nan
    return Agreement(share, len(pairs), total_diverging, mean_position, len(with_text))


def arms_without_ids(records: Iterable[Record]) -> set[str]:
    """Return the arms whose answers are known as text only."""
    return {record.arm for record in records if record.tokens is not None}


def first_divergence(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """Return the index of the first token that differs, or None if the outputs are equal.

    If one output is the beginning of the other, the index is its length.
    """
    if list(ours) == list(theirs):
        return None
    shorter = min(len(ours), len(theirs))
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), shorter)


def repetition(ids: Sequence[int]) -> float:
    """Return the share of 4-grams that occurred earlier in the same output; 0 below four tokens.

    Repeated text is easy to draft, so it raises the acceptance rate.
    """
    grams = [tuple(ids[i : i + NGRAM]) for i in range(len(ids) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
