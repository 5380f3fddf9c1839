"""Whether two arms said the same, and whether an arm repeats itself; from token ids, or from text where a server sends no ids."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from specbench.store.records import Record

NGRAM = 4


class Agreement(NamedTuple):
    """How often a method's output equals vanilla's.

    Only turns whose prompts are equal compare: after differing first answers the second prompts differ too.
    """

    agreement: float  # share of the comparable turns with identical output; NaN without any
    comparable_turns: int
    diverging_turns: int
    first_divergence: float  # mean index of the first differing output token over the diverging turns; NaN without any
    compared_by_text: int  # of the comparable turns, those of which only the text is known


NOTHING_TO_COMPARE = Agreement(np.nan, 0, 0, np.nan, 0)


def agreement(method: pd.DataFrame, vanilla: pd.DataFrame) -> Agreement:
    """Compare two arms' turns (``turns_frame`` rows) on equal (question, turn, repeat)."""
    key = ["question_id", "turn", "repeat"]
    pairs = method.merge(vanilla, on=[*key, "prompt_sha256"], suffixes=("", "_vanilla"))
    known = pairs["output_ids"].map(len) > 0
    told, texts = pairs[known], pairs[~known]
    places = [first_divergence(a, b) for a, b in zip(told["output_ids"], told["output_ids_vanilla"], strict=True)]
    apart = [place for place in places if place is not None]
    diverging = len(apart) + int((texts["output_text"] != texts["output_text_vanilla"]).sum())
    share = 1 - diverging / len(pairs) if len(pairs) else np.nan
    return Agreement(share, len(pairs), diverging, float(np.mean(apart)) if apart else np.nan, len(texts))


def without_ids(records: Iterable[Record]) -> set[str]:
    """The arms whose answers came as text alone."""
    return {record.method for record in records if record.tokens is not None}


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
