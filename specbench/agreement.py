"""Whether two arms said the same, and whether an arm repeats itself; from token ids."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

NGRAM = 4


class Agreement(NamedTuple):
    """How often a method's output equals vanilla's.

    Only turns whose prompts are equal compare: after differing first answers the second prompts differ too.
    """

    agreement: float  # share of the comparable turns with identical output ids; NaN without any
    comparable_turns: int
    diverging_turns: int
    first_divergence: float  # mean index of the first differing output token over the diverging turns; NaN without any


NOTHING_TO_COMPARE = Agreement(np.nan, 0, 0, np.nan)


def agreement(method: pd.DataFrame, vanilla: pd.DataFrame) -> Agreement:
    """Compare two arms' turns (``turns_frame`` rows) on equal (question, turn, repeat)."""
    key = ["question_id", "turn", "repeat"]
    pairs = method.merge(vanilla, on=[*key, "prompt_sha256"], suffixes=("", "_vanilla"))
    places = [first_divergence(a, b) for a, b in zip(pairs["output_ids"], pairs["output_ids_vanilla"], strict=True)]
    apart = [place for place in places if place is not None]
    share = 1 - len(apart) / len(places) if places else np.nan
    return Agreement(share, len(places), len(apart), float(np.mean(apart)) if apart else np.nan)


def first_divergence(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """Index of the first token that differs, or None; where one output is the other's beginning, its length."""
    if list(ours) == list(theirs):
        return None
    return next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))


def repetition(ids: Sequence[int]) -> float:
    """The share of 4-grams that occurred before in the same output; 0 below four tokens.

    Loops are easy to draft, so they inflate acceptance.
    """
    grams = [tuple(ids[i : i + NGRAM]) for i in range(len(ids) - NGRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
