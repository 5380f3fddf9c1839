"""The decode loop beside transformers' ``generate``: same model, prompt and tokens, so only the loops differ."""

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console

from methods.core.acceptance import Sampling
from methods.core.clock import clock_for
from methods.core.decode import decode
from specbench import prompts
from specbench.bench.finding import Finding
from specbench.bench.setup import LOOKUP_NGRAM, LOOKUP_TOKENS
from specbench.runner import Session

PAIRS = 32
VANILLA_WANTED = 0.97
LOOKUP_WANTED = 1.0

Continuation = Callable[[list[int]], list[int]]  # prompt -> new tokens


def decoding_findings(session: Session, console: Console, pairs: int = PAIRS) -> list[Finding]:
    """Vanilla against ``generate``, and prompt lookup against ``generate``'s own, as ratios of tokens/s, ours over theirs.

    Greedy, end-of-sequence ignored on both sides, so that every continuation has the session's ``max_new_tokens``.
    """
    asked = [prompts.encode(session.tokenizer, question.turns[:1], []) for question in session.suite.questions]
    vanilla = loop(session, "vanilla")
    references = [vanilla(prompt) for prompt in asked]
    compared = (
        ("loop's vanilla / generate, tokens/s", vanilla, generate(session, lookup=None), VANILLA_WANTED),
        (
            f"pld / generate's prompt lookup, {LOOKUP_TOKENS} drafts, {LOOKUP_NGRAM}-grams, tokens/s",
            loop(session, "pld"),
            generate(session, lookup=LOOKUP_TOKENS),
            LOOKUP_WANTED,
        ),
    )
    findings = []
    for what, ours, theirs, wanted in compared:
        console.print(f"measuring: {what}", markup=False)
        # Every prompt has a shape of its own, for which kernels are prepared once: this pass warms up as it compares.
        answers = zip(asked, references, strict=True)
        alike = [(prompt, expected) for prompt, expected in answers if ours(prompt) == expected == theirs(prompt)]
        ratios = speed_ratios(ours, theirs, alike, pairs)
        remark = f"{len(alike)} of {len(asked)} prompts: on the others the tokens differ from vanilla's" if len(alike) < len(asked) else ""
        findings.append(Finding(what, ratios, wanted, remark=remark))
    return findings


def loop(session: Session, method: str) -> Continuation:
    """One of the session's methods in our decode loop."""
    arm = next(arm for arm in session.arms if arm.name == method)
    target, sampling = session.target, Sampling(session.manifest.settings.max_new_tokens)
    return lambda prompt: decode(target, arm.drafter, arm.accept, prompt, sampling, clock_for(target.device)).tokens


def generate(session: Session, lookup: int | None) -> Continuation:
    """The target's own ``generate``; ``lookup`` drafts by prompt lookup unless None."""
    model: Any = session.target.model  # transformers types generate's self as a protocol that no model class satisfies

    def continuation(prompt: list[int]) -> list[int]:
        ids = torch.tensor([prompt], device=model.device)
        continued = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=session.manifest.settings.max_new_tokens,
            eos_token_id=None,
            prompt_lookup_num_tokens=lookup,
            max_matching_ngram_size=LOOKUP_NGRAM,
        )
        return continued[0, len(prompt) :].tolist()

    return continuation


def speed_ratios(ours: Continuation, theirs: Continuation, cases: Sequence[tuple[list[int], list[int]]], pairs: int) -> list[float]:
    """Seconds of theirs over seconds of ours, pair by pair; cases are prompts with the tokens both have to give.

    Two pairs in a row share a prompt and run in the orders A B and B A, so that drift of the machine cancels.
    """
    if not cases:
        return []
    ratios = []
    with unhindered():
        for pair in range(pairs):
            prompt, expected = cases[pair // 2 % len(cases)]
            arms = (ours, theirs) if pair % 2 == 0 else (theirs, ours)
            seconds = {arm: _timed(arm, prompt, expected) for arm in arms}
            ratios.append(seconds[theirs] / seconds[ours])
    return ratios


def _timed(arm: Continuation, prompt: list[int], expected: list[int]) -> float:
    """Seconds of one continuation; tokens on the host mark its end on any device."""
    start = time.perf_counter()
    tokens = arm(prompt)
    seconds = time.perf_counter() - start
    assert tokens == expected, "tokens changed from one call to the next"
    return seconds


@contextmanager
def unhindered() -> Iterator[None]:
    """Without full collections over everything imported, which would be charged to whichever arm they hit."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
