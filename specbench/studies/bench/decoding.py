"""The decode loop beside transformers' ``generate``, and the static back end beside both: same model and prompts."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.console import Console

from methods.core.acceptance import Sampling
from methods.core.clock import clock_for
from methods.core.decode import decode
from specbench.engines.hf_generate import Lookup, Plain, continued
from specbench.measure.session import Session
from specbench.studies.bench.finding import Finding
from specbench.studies.bench.setup import EAGER, LOOKUP, LOOKUP_NGRAM, LOOKUP_TOKENS, STATIC
from specbench.util.memory import unhindered

PAIRS = 32

Continuation = Callable[[list[int]], list[int]]  # prompt -> new tokens


class Comparison(NamedTuple):
    """``same_tokens``: only prompts on which both give vanilla's tokens count, since what is accepted sets a method's speed."""

    what: str
    ours: Continuation
    theirs: Continuation
    wanted: float
    same_tokens: bool = False


class Case(NamedTuple):
    """A prompt and what either side answers to it."""

    prompt: list[int]
    ours: list[int]
    theirs: list[int]


def decoding_findings(session: Session, console: Console, pairs: int = PAIRS) -> list[Finding]:
    """Vanilla on both back ends against ``generate``, and prompt lookup against ``generate``'s own: tokens/s, ours over theirs.

    Greedy, end-of-sequence ignored on both sides, so that every continuation has the session's ``max_new_tokens``. The
    session has the arms of ``setup.ARMS``.
    """
    eager, static, plain = loop(session, EAGER), loop(session, STATIC), generate(session, lookup=None)
    lookup = f"pld / generate's prompt lookup, {LOOKUP_TOKENS} drafts, {LOOKUP_NGRAM}-grams"
    compared = (
        Comparison("eager vanilla / generate", eager, plain, 0.97),
        Comparison(lookup, loop(session, LOOKUP), generate(session, lookup=LOOKUP_TOKENS), 1.0, same_tokens=True),
        Comparison("static vanilla / eager vanilla", static, eager, 1.3),
        Comparison("static vanilla / generate", static, plain, 1.3),
    )
    asked = [session.chat.encode(question.turns[:1], []) for question in session.suite.questions]
    console.print(f"measuring: what each loop answers to {len(asked)} prompts", markup=False)
    # Every prompt has a shape of its own, for which kernels are prepared once: these answers are warm-up and comparison in one.
    sides = dict.fromkeys(side for each in compared for side in (each.ours, each.theirs))
    answers = {side: [side(prompt) for prompt in asked] for side in sides}
    findings = []
    for each in compared:
        console.print(f"measuring: {each.what}, tokens/s", markup=False)
        findings.append(_finding(each, list(map(Case, asked, answers[each.ours], answers[each.theirs])), answers[eager], pairs))
    return findings


def _finding(compared: Comparison, cases: Sequence[Case], vanilla: Sequence[list[int]], pairs: int) -> Finding:
    alike = [case for case, tokens in zip(cases, vanilla, strict=True) if case.ours == case.theirs == tokens]
    remark = ""
    if len(alike) < len(cases):
        left_out = "; the others are left out" if compared.same_tokens else ""
        remark = f"same tokens on {len(alike)} of {len(cases)} prompts{left_out}"
    ratios = speed_ratios(compared, alike if compared.same_tokens else cases, pairs)
    return Finding(f"{compared.what}, tokens/s", ratios, compared.wanted, remark=remark)


def loop(session: Session, name: str) -> Continuation:
    """One of the session's arms in our decode loop, its back end made ready."""
    arm = next(arm for arm in session.arms if arm.name == name)
    sampling = Sampling(session.manifest.settings.max_new_tokens)
    arm.warm(sampling)
    return lambda prompt: decode(arm.target, arm.drafter, arm.accept, prompt, sampling, clock_for(arm.target.device)).tokens


def generate(session: Session, lookup: int | None) -> Continuation:
    """The target's own ``generate``; ``lookup`` drafts by prompt lookup unless None."""
    sampling = Sampling(session.manifest.settings.max_new_tokens)
    drafting = Plain() if lookup is None else Lookup(lookup, LOOKUP_NGRAM)
    return lambda prompt: continued(session.model, prompt, sampling, drafting.arguments)


def speed_ratios(compared: Comparison, cases: Sequence[Case], pairs: int) -> list[float]:
    """Seconds of theirs over seconds of ours, pair by pair.

    Two pairs in a row share a prompt and run in the orders A B and B A, so that drift of the machine cancels.
    """
    if not cases:
        return []
    ratios = []
    with unhindered():
        for pair in range(pairs):
            case = cases[pair // 2 % len(cases)]
            sides = ((compared.ours, case.ours), (compared.theirs, case.theirs))
            seconds = {arm: _timed(arm, case.prompt, tokens) for arm, tokens in (sides if pair % 2 == 0 else sides[::-1])}
            ratios.append(seconds[compared.theirs] / seconds[compared.ours])
    return ratios


def _timed(arm: Continuation, prompt: list[int], expected: list[int]) -> float:
    """Seconds of one continuation; tokens on the host mark its end on any device."""
    start = time.perf_counter()
    tokens = arm(prompt)
    seconds = time.perf_counter() - start
    assert tokens == expected, "tokens changed from one call to the next"
    return seconds
