"""Room for the next target where one process loads several: two would not fit."""

import gc

import torch


def make_room() -> None:
    """Free the targets that nothing refers to any more.

    A target, its captured graphs and the pieces they came of refer to each other, so that only a collection frees them.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
