"""Divergences of a greedy run from vanilla, each judged a numeric tie or a violation.

Forwards of a tree and of one token round differently, so in bf16 two nearly equal logits can come out in either order.
The target is evaluated again, in fp32, after the tokens that both arms agree on. Its logits tell a tie from a bug.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from methods.core.errors import UserError
from specbench.analysis.agreement import arms_without_ids, first_divergence
from specbench.config.arm import BASELINE
from specbench.lossless.differences import LIKELIEST, REFERENCE_DTYPE, ROUNDINGS, ArmAgreement, Divergence, LosslessReport, rounding
from specbench.measure.resolve import suite_of
from specbench.measure.session import Session, prepare
from specbench.store.manifest import RunManifest
from specbench.store.records import Record
from specbench.store.rundir import read_run
from specbench.targets import chat

CONTEXT = 40  # characters of the outputs kept on either side of a divergence

RecordsByKey = Mapping[tuple[str, str, int, int], Record]
OnProgress = Callable[[int, int], None]  # forwards of the target that are done, and their total


def magnitude(logits_V: torch.Tensor) -> float:
    """Return the largest magnitude among the highest logits, to which their rounding is relative.

    Logits that rule a token out, such as -1e4, must not set the scale.
    """
    return float(logits_V.topk(min(LIKELIEST, len(logits_V))).values.abs().max())


def explain(run_dir: Path, on_progress: OnProgress = lambda done, total: None) -> LosslessReport:
    """Compare every arm of a greedy run with vanilla and judge each first difference by the target's logits.

    Servers that send text only are left out. The target is loaded only if an output differs.
    Raises UserError for a run that cannot be compared token by token: sampled, imported, without a turn that
    has vanilla's prompt, or one whose suite or target is no longer here.
    """
    run = read_run(run_dir)
    manifest, by_key = run.manifest, {record.key: record for record in run.records}
    text_only = arms_without_ids(by_key.values())
    if manifest.imported:
        raise UserError(f"{run_dir} holds imported answers, whose token ids are unknown; give a run made by `specbench run`")
    if manifest.settings.temperature:
        raise UserError(
            f"{run_dir} was sampled at temperature {manifest.settings.temperature}; only greedy runs can be compared token by token"
        )

    pairs = [pair for pair in _answered_pairs(by_key) if pair[0].arm not in text_only]
    partings = [parting for parting in map(_parting, pairs) if parting is not None]
    divergences = _judge(manifest, by_key, partings, on_progress) if partings else []

    arms = tuple(_arm_agreement(manifest, arm, pairs, divergences) for arm in manifest.arms if arm not in {BASELINE, *text_only})
    if not any(arm.compared for arm in arms):
        raise UserError(f"{run_dir} has no turn of another arm beside vanilla's with the same prompt; run vanilla and a method first")
    return LosslessReport(manifest.name, manifest.settings.dtype, arms, run.undigested)


def _arm_agreement(
    manifest: RunManifest, arm: str, pairs: Sequence[tuple[Record, Record]], divergences: Sequence[Divergence]
) -> ArmAgreement:
    same_prompt = [ours.prompt_sha256 == theirs.prompt_sha256 for ours, theirs in pairs if ours.arm == arm]
    compared, answered = sum(same_prompt), len(same_prompt)
    planned = manifest.units_total // len(manifest.arms)
    own = tuple(divergence for divergence in divergences if divergence.arm == arm)
    return ArmAgreement(arm, manifest.arms[arm].engine, compared, answered - compared, planned - answered, own)


class _Parting(NamedTuple):
    """Two answers to the same prompt, and the index of the first token that differs."""

    ours: Record
    theirs: Record
    position: int


def _answered_pairs(by_key: RecordsByKey) -> Iterator[tuple[Record, Record]]:
    for record in by_key.values():
        vanilla = by_key.get((BASELINE, *record.key[1:]))
        if record.arm != BASELINE and vanilla is not None and record.status == vanilla.status == "ok":
            yield record, vanilla


def _parting(pair: tuple[Record, Record]) -> _Parting | None:
    ours, theirs = pair
    if ours.prompt_sha256 != theirs.prompt_sha256:
        return None
    position = first_divergence(ours.output_ids, theirs.output_ids)
    return None if position is None else _Parting(ours, theirs, position)


def _judge(manifest: RunManifest, by_key: RecordsByKey, partings: Sequence[_Parting], on_progress: OnProgress) -> list[Divergence]:
    """Return the divergences in the order of ``partings``.

    One forward serves all arms and repeats that part from vanilla after the same tokens.
    """
    groups = defaultdict(list)
    for parting in partings:
        groups[parting.theirs.prompt_sha256, tuple(parting.theirs.output_ids[: parting.position])].append(parting)
    on_progress(0, len(groups))

    session, precision = load_reference_target(manifest), rounding(manifest.settings.dtype)
    questions = {question.id: question for question in session.suite.questions}
    divergences: dict[tuple[str, str, int, int], Divergence] = {}
    for done, ((prompt_sha256, common_ids), members) in enumerate(groups.items(), start=1):
        theirs = members[0].theirs
        earlier = [by_key[BASELINE, theirs.question_id, turn, theirs.repeat].output_text for turn in range(theirs.turn)]
        prompt = session.chat.encode(questions[theirs.question_id].turns[: theirs.turn + 1], earlier)
        if chat.ids_sha256(prompt) != prompt_sha256:
            raise UserError(f"the prompt of question {theirs.question_id} cannot be made again; use the tokenizer the run was made with")

        with torch.inference_mode():
            logits_V = session.target.prefill([*prompt, *common_ids]).logits_NV[-1]
        for parting in members:
            divergences[parting.ours.key] = _divergence(parting, logits_V, session.tokenizer, precision)
        on_progress(done, len(groups))
    return [divergences[parting.ours.key] for parting in partings]


def _divergence(parting: _Parting, logits_V: torch.Tensor, tokenizer: PreTrainedTokenizerBase, precision: float) -> Divergence:
    ours, theirs, position = parting
    first, second = logits_V.topk(2).values.tolist()

    rest_of_both = [record.output_ids[position:] for record in (theirs, ours)]
    tokens = [rest[0] if rest else None for rest in rest_of_both]
    lower = min(-inf if token is None else float(logits_V[token]) for token in tokens)
    texts = [str(tokenizer.decode(rest[:1])) for rest in rest_of_both]
    after = [str(tokenizer.decode(rest[1 : 1 + CONTEXT]))[:CONTEXT] for rest in rest_of_both]

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


def load_reference_target(manifest: RunManifest) -> Session:
    """Load the run's target without drafters, in fp32, on this machine's device.

    Raises UserError if the target or the suite is missing or is not the run's.
    """
    _check_same("suite", manifest.suite.sha256, _suite_sha256(manifest))
    vanilla_only = replace(
        manifest.settings,
        dtype=REFERENCE_DTYPE,
        device="",
        methods=[BASELINE],
        aa=None,
        overrides=[],
        drafters={},
        tuned=None,
        base_url=None,
    )
    session = prepare(vanilla_only)
    _check_same("target", str(manifest.target.weights_sha256), str(session.manifest.target.weights_sha256))
    return session


def _check_same(what: str, then: str, now: str) -> None:
    if then != now:
        raise UserError(f"the {what} of the run (sha256 {then[:12]}) is not the one here ({now[:12]}); restore it to judge divergences")


def _suite_sha256(manifest: RunManifest) -> str:
    """Return the checksum of the local suite.

    Replaces the hint in ``suites.load`` errors: it suggests a `run` option, useless for an existing run.
    """
    file = manifest.settings.suite_file
    try:
        return suite_of(replace(manifest.settings, limit=None, categories=[])).sha256
    except UserError as error:
        reason, _, advice = str(error).rpartition("; ")
        if file:
            advice = f"put the run's questions back at {file}, where its manifest has them"
        elif manifest.suite.name == "spec-bench":
            advice = "set SPECBENCH_DATA to a folder that holds an unchanged spec_bench/question.jsonl"
        raise UserError(f"{reason}; {advice}") from None
