"""The training batches of a drafter: a pure function of the optimizer step, in whichever process they are computed.

Shape letters: B rows, T tokens of a row, D width, P chosen positions, K offsets from a position.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from methods.core.training import Batch, positions, totals
from specbench.train.data.texts import Windows
from specbench.train.features import Features


class TrainingPhase(NamedTuple):
    """A stretch of the training that reads one text."""

    windows: Windows
    features: Callable[[np.ndarray], Features]  # from the numbers of windows
    steps: int


class TrainingBatches:
    """The batches of a training whose ``phases`` follow each other.

    An optimizer step has ``micro_batches`` of ``rows`` windows each. The drafter learns from
    ``at_most`` positions of each. All randomness in a micro-batch, that of the loss included, is seeded
    by the micro-batch's number in the whole training.
    """

    def __init__(self, model: PreTrainedModel, phases: Sequence[TrainingPhase], *, micro_batches: int, rows: int, at_most: int):
        self._model, self._phases = model, phases
        self._micro_batches, self._rows, self._at_most = micro_batches, rows, at_most

    def totals(self, step: int) -> Tensor:
        """Return ``Batch.totals_K`` of a step, over which its losses are averaged.

        The result is the same in every process and needs no communication.
        """
        drawn = [self._draw_positions(step, index) for index in range(self._micro_batches)]
        return torch.stack([totals(answer_BT, chosen_P) for answer_BT, chosen_P in drawn]).sum(dim=0)

    def batch(self, step: int, index: int, totals_K: Tensor) -> Batch:
        """Return a micro-batch on the target's device, and seed the random state for its loss."""
        phase, numbers_B = self._windows_of(step, index)
        features = phase.features(numbers_B)
        answer_BT, chosen_P = self._draw_positions(step, index)
        return make_batch(self._model, phase.windows.tokens(numbers_B), answer_BT, features, chosen_P, totals_K)

    def _draw_positions(self, step: int, index: int) -> tuple[Tensor, Tensor]:
        """Return a micro-batch's mask of the assistant's tokens and the positions drawn in it; sets the seed."""
        phase, numbers_B = self._windows_of(step, index)
        answer_BT = phase.windows.answers(numbers_B)
        torch.manual_seed(step * self._micro_batches + index)
        return answer_BT, positions(answer_BT, self._at_most)

    def _windows_of(self, step: int, index: int) -> tuple[TrainingPhase, np.ndarray]:
        for phase in self._phases:
            if step < phase.steps:
                return phase, phase.windows.numbers((step * self._micro_batches + index) * self._rows, self._rows)
            step -= phase.steps
        raise AssertionError("a step after the last")


def make_batch(
    model: PreTrainedModel,
    tokens_BT: Tensor,
    answer_BT: Tensor,
    features: Features,
    chosen_P: Tensor | None = None,
    totals_K: Tensor | None = None,
) -> Batch:
    """Return a batch with all its tensors on the target's device."""
    last_BTD, deep_BTD = features
    tokens_BT, last_BTD, answer_BT = (tensor.to(model.device) for tensor in (tokens_BT, last_BTD, answer_BT))
    optional = (None if tensor is None else tensor.to(model.device) for tensor in (deep_BTD, chosen_P, totals_K))
    return Batch(tokens_BT, last_BTD, answer_BT, model.get_input_embeddings(), model.get_output_embeddings(), *optional)
