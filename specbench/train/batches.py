"""What a drafter learns from at each step: a pure function of the step, whoever computes which part of it."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from methods.core.training import Batch, positions, totals
from specbench.train.data.texts import Windows
from specbench.train.features import Features


class Phase(NamedTuple):
    windows: Windows
    features: Callable[[np.ndarray], Features]  # of the windows so numbered
    steps: int


class Lessons:
    """``phases`` follow each other. A step has ``parts`` of ``rows`` windows each; ``at_most`` places of a part are learnt from.

    What is drawn at random in a part, the noise of its loss included, is seeded by its number in the whole training.
    """

    def __init__(self, model: PreTrainedModel, phases: Sequence[Phase], *, parts: int, rows: int, at_most: int):
        self._model, self._phases = model, phases
        self._parts, self._rows, self._at_most = parts, rows, at_most

    def totals(self, step: int) -> Tensor:
        """What a step's losses are averaged over, as ``Batch.totals_K``: the same in all processes, without a word between them."""
        drawn = [self._drawn(step, part) for part in range(self._parts)]
        return torch.stack([totals(answer_BT, chosen_P) for answer_BT, chosen_P in drawn]).sum(dim=0)

    def batch(self, step: int, part: int, totals_K: Tensor) -> Batch:
        """A part on the target's device; the random state is left as its loss has to find it."""
        phase, numbers_B = self._place(step, part)
        features = phase.features(numbers_B)
        answer_BT, chosen_P = self._drawn(step, part)
        return batch(self._model, phase.windows.tokens(numbers_B), answer_BT, features, chosen_P, totals_K)

    def _drawn(self, step: int, part: int) -> tuple[Tensor, Tensor]:
        """The assistant's tokens of a part and the places learnt from; seeds what follows."""
        phase, numbers_B = self._place(step, part)
        answer_BT = phase.windows.answers(numbers_B)
        torch.manual_seed(step * self._parts + part)
        return answer_BT, positions(answer_BT, self._at_most)

    def _place(self, step: int, part: int) -> tuple[Phase, np.ndarray]:
        for phase in self._phases:
            if step < phase.steps:
                return phase, phase.windows.numbers((step * self._parts + part) * self._rows, self._rows)
            step -= phase.steps
        raise AssertionError("a step after the last")


def batch(
    model: PreTrainedModel,
    tokens_BT: Tensor,
    answer_BT: Tensor,
    features: Features,
    chosen_P: Tensor | None = None,
    totals_K: Tensor | None = None,
) -> Batch:
    """All of it on the target's device."""
    last_BTD, deep_BTD = features
    tokens_BT, last_BTD, answer_BT = (each.to(model.device) for each in (tokens_BT, last_BTD, answer_BT))
    rest = (None if each is None else each.to(model.device) for each in (deep_BTD, chosen_P, totals_K))
    return Batch(tokens_BT, last_BTD, answer_BT, model.get_input_embeddings(), model.get_output_embeddings(), *rest)
