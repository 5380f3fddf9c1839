"""Where an arm first left vanilla's greedy text, and whether the target was torn there: a numeric tie or a violation.

Tree and one-token forwards round differently, so in bf16 a near tie between two tokens can fall either way. The target is
asked again, in fp32, after the tokens both arms agree on: its logits tell a tie from a bug.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, nan
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from methods.core.errors import UserError
from specbench.analysis.agreement import first_divergence, without_ids
from specbench.lossless.reference import REFEREE, referee
from specbench.store import records
from specbench.store.manifest import RunManifest
from specbench.store.records import BASELINE, Record
from specbench.targets import DTYPES, chat

ROUNDINGS = 4  # a tie: within so many roundings, at the run's precision, of the likeliest tokens' logits
LIKELIEST = 10
CONTEXT = 40  # characters of the outputs kept on either side of a divergence

Found = Mapping[tuple[str, str, int, int], Record]
Told = Callable[[int, int], None]  # how many of how many forwards of the target are done


@dataclass(frozen=True)
class Divergence:
    """The first token an arm wrote differently. Pairs are vanilla's and the arm's; ``position`` counts output tokens from 0.

    A token is None (its text empty) where that answer had already ended. ``gap``, ``shortfall`` and ``tolerance`` are of the
    target's fp32 logits after the tokens both wrote.
    """

    method: str
    question_id: str
    turn: int
    repeat: int
    position: int
    tokens: tuple[int | None, int | None]
    texts: tuple[str, str]  # of the two tokens
    before: str  # the end of what both wrote, never of the prompt
    after: tuple[str, str]  # how each went on
    gap: float  # first choice less second
    shortfall: float  # first choice less the lower of the two tokens: the gap where they are the top two; inf without a token
    tolerance: float

    @property
    def is_tie(self) -> bool:
        """Rounding alone can have raised either token to the top."""
        return self.shortfall <= self.tolerance


@dataclass(frozen=True)
class ArmAgreement:
    """One arm beside vanilla, in turns.

    Only ``compared`` turns had vanilla's prompt; ``other_prompt`` turns followed an earlier answer that differed, and
    ``unanswered`` ones failed or are missing in one of the two arms.
    """

    method: str
    compared: int
    other_prompt: int
    unanswered: int
    divergences: tuple[Divergence, ...]

    @property
    def same(self) -> int:
        return self.compared - len(self.divergences)

    @property
    def share(self) -> float:
        """Of the compared turns, those with vanilla's output token for token; NaN without any."""
        return self.same / self.compared if self.compared else nan

    @property
    def ties(self) -> list[Divergence]:
        return [each for each in self.divergences if each.is_tie]

    @property
    def violations(self) -> list[Divergence]:
        return [each for each in self.divergences if not each.is_tie]

    @property
    def widest_tie(self) -> float:
        """The largest shortfall that still counts as a tie; NaN without ties."""
        return max((each.shortfall for each in self.ties), default=nan)

    @property
    def position_quartiles(self) -> tuple[float, float, float]:
        """Quartiles, the median in the middle, of where the first divergences lie; NaN without any."""
        if not self.divergences:
            return nan, nan, nan
        low, median, high = np.quantile([each.position for each in self.divergences], [0.25, 0.5, 0.75])
        return float(low), float(median), float(high)


@dataclass(frozen=True)
class Explained:
    """Every arm of a greedy run beside vanilla, each divergence judged by the target."""

    run: str
    dtype: str  # the run's
    arms: tuple[ArmAgreement, ...]

    @property
    def divergences(self) -> list[Divergence]:
        return [each for arm in self.arms for each in arm.divergences]

    @property
    def violations(self) -> list[Divergence]:
        return [each for arm in self.arms for each in arm.violations]

    @property
    def relative_tolerance(self) -> float:
        return ROUNDINGS * rounding(self.dtype)

    @property
    def rule(self) -> str:
        """The tolerance in words and numbers."""
        largest = [each.tolerance for each in self.divergences]
        found = f"; here {min(largest):.2g} to {max(largest):.2g}" if largest else ""
        return (
            f"A divergence is a numeric tie where both tokens' {REFEREE} logits lie within {self.relative_tolerance:.2g} "
            f"({ROUNDINGS} roundings of {self.dtype}, {rounding(self.dtype):.2g} each) times the largest magnitude among "
            f"the target's {LIKELIEST} highest logits below its first choice{found}. Every other one is a violation."
        )


def rounding(dtype: str) -> float:
    """The relative rounding of a run: its dtype's, fp32's at the finest, since transformers computes norms in fp32 even in fp64."""
    return max(torch.finfo(DTYPES[dtype]).eps, torch.finfo(torch.float32).eps)


def magnitude(logits_V: torch.Tensor) -> float:
    """The scale that a logit's rounding is relative to, of the tokens that can win: one ruled out by a logit of -1e4 has no say."""
    return float(logits_V.topk(min(LIKELIEST, len(logits_V))).values.abs().max())


def explain(run_dir: Path, told: Told = lambda done, total: None) -> Explained:
    """Compare every arm of a greedy run with vanilla, but for servers that send text alone.

    The target is loaded only where they differ, and ``told`` hears of its work.
    Raises UserError for what cannot be compared token by token: a sampled run, imported answers, no turn of another arm with
    vanilla's prompt, or a run whose suite or target is not here any more.
    """
    manifest = RunManifest.read(run_dir)
    found = {record.key: record for record in records.read(run_dir)[0]}
    texts = without_ids(found.values())
    if texts & manifest.own.keys():
        raise UserError(f"{run_dir} holds imported answers, whose token ids are unknown; give a run made by `specbench run`")
    if manifest.settings.temperature:
        raise UserError(
            f"{run_dir} was sampled at temperature {manifest.settings.temperature}; only greedy runs can be compared token by token"
        )
    pairs = [pair for pair in _pairs(found) if pair[0].method not in texts]
    partings = [parting for parting in map(_parting, pairs) if parting is not None]
    judged = _judge(manifest, found, partings, told) if partings else []
    arms = tuple(_arm(manifest, method, pairs, judged) for method in manifest.settings.methods if method not in {BASELINE, *texts})
    if not any(arm.compared for arm in arms):
        raise UserError(f"{run_dir} has no turn of another arm beside vanilla's with the same prompt; run vanilla and a method first")
    return Explained(manifest.name, manifest.settings.dtype, arms)


def _arm(manifest: RunManifest, method: str, pairs: Sequence[tuple[Record, Record]], judged: Sequence[Divergence]) -> ArmAgreement:
    same_prompt = [ours.prompt_sha256 == theirs.prompt_sha256 for ours, theirs in pairs if ours.method == method]
    compared, answered = sum(same_prompt), len(same_prompt)
    asked = manifest.units_total // len(manifest.settings.methods)
    return ArmAgreement(method, compared, answered - compared, asked - answered, tuple(each for each in judged if each.method == method))


class _Parting(NamedTuple):
    ours: Record
    theirs: Record
    position: int


def _pairs(found: Found) -> Iterator[tuple[Record, Record]]:
    for record in found.values():
        vanilla = found.get((BASELINE, *record.key[1:]))
        if record.method != BASELINE and vanilla is not None and record.status == vanilla.status == "ok":
            yield record, vanilla


def _parting(pair: tuple[Record, Record]) -> _Parting | None:
    ours, theirs = pair
    if ours.prompt_sha256 != theirs.prompt_sha256:
        return None
    position = first_divergence(ours.output_ids, theirs.output_ids)
    return None if position is None else _Parting(ours, theirs, position)


def _judge(manifest: RunManifest, found: Found, partings: Sequence[_Parting], told: Told) -> list[Divergence]:
    """In the order of ``partings``. One forward serves all arms and repeats that part from vanilla after the same tokens."""
    places = defaultdict(list)
    for parting in partings:
        places[parting.theirs.prompt_sha256, tuple(parting.theirs.output_ids[: parting.position])].append(parting)
    told(0, len(places))
    session, precision = referee(manifest), rounding(manifest.settings.dtype)
    questions = {question.id: question for question in session.suite.questions}
    judged: dict[tuple[str, str, int, int], Divergence] = {}
    for done, ((prompt_sha256, both_wrote), members) in enumerate(places.items(), start=1):
        theirs = members[0].theirs
        earlier = [found[BASELINE, theirs.question_id, turn, theirs.repeat].output_text for turn in range(theirs.turn)]
        prompt = session.chat.encode(questions[theirs.question_id].turns[: theirs.turn + 1], earlier)
        if chat.ids_sha256(prompt) != prompt_sha256:
            raise UserError(f"the prompt of question {theirs.question_id} cannot be made again; use the tokenizer the run was made with")
        with torch.inference_mode():
            logits_V = session.target.prefill([*prompt, *both_wrote]).logits_NV[-1]
        for parting in members:
            judged[parting.ours.key] = _divergence(parting, logits_V, session.tokenizer, precision)
        told(done, len(places))
    return [judged[parting.ours.key] for parting in partings]


def _divergence(parting: _Parting, logits_V: torch.Tensor, tokenizer: PreTrainedTokenizerBase, precision: float) -> Divergence:
    ours, theirs, position = parting
    first, second = logits_V.topk(2).values.tolist()
    sides = [record.output_ids[position:] for record in (theirs, ours)]
    tokens = [ids[0] if ids else None for ids in sides]
    lower = min(-inf if token is None else float(logits_V[token]) for token in tokens)
    texts = [str(tokenizer.decode(ids[:1])) for ids in sides]
    after = [str(tokenizer.decode(ids[1 : 1 + CONTEXT]))[:CONTEXT] for ids in sides]
    return Divergence(
        *ours.key,
        position,
        tokens=(tokens[0], tokens[1]),
        texts=(texts[0], texts[1]),
        before=str(tokenizer.decode(theirs.output_ids[:position]))[-CONTEXT:],
        after=(after[0], after[1]),
        gap=first - second,
        shortfall=first - lower,
        tolerance=ROUNDINGS * precision * magnitude(logits_V),
    )
