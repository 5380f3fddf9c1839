"""Which setting makes most tokens a second: replayed rounds at measured costs."""

from collections.abc import Sequence
from dataclasses import dataclass

from specbench.studies.tune.cost import Drafting, Verifying
from specbench.studies.tune.guess import Setting
from specbench.studies.tune.replay import Replay


@dataclass(frozen=True)
class Prediction:
    """A setting's replayed rounds at the device's prices; ``plain_s`` is a round of vanilla."""

    setting: Setting
    mat: float
    draft_s: float  # of a round beside verifying: drafting, acceptance, commit
    verify_s: float  # of a round, the mean over the sizes that came up
    plain_s: float

    @property
    def round_cost(self) -> float:
        """R, in vanilla rounds."""
        return (self.draft_s + self.verify_s) / self.plain_s

    @property
    def speedup(self) -> float:
        """Of decoding, prefill left out."""
        return self.mat / self.round_cost


@dataclass(frozen=True)
class Prices:
    """What everything costs that a method's round is made of."""

    verifying: Verifying
    drafting: Drafting
    plain_s: float


def predict(replay: Replay, setting: Setting, prices: Prices) -> Prediction:
    rounds = replay.of(setting)
    verify_s = sum(count * prices.verifying.of(size) for size, count in rounds.sizes.items()) / rounds.rounds
    return Prediction(setting, rounds.mat, prices.drafting.of(setting), verify_s, prices.plain_s)


def ranked(replay: Replay, candidates: Sequence[Setting], prices: Prices) -> list[Prediction]:
    """Every candidate, the fastest first."""
    return sorted((predict(replay, each, prices) for each in candidates), key=lambda each: -each.speedup)
