"""A comparison of the decode loop, transformers' ``generate``, and the static back end, on the same model and prompts."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

from methods.core.acceptance import Sampling
from specbench.config.arm import BASELINE
from specbench.config.options import RunConfig
from specbench.engines.hf_generate import LookupOptions, PlainOptions, generate_tokens
from specbench.measure.session import Session, prepare
from specbench.studies.base import decoded, first_prompts
from specbench.studies.bench.finding import Finding
from specbench.util.memory import gc_paused
from specbench.util.terminal import Console

PAIRS = 32
MAX_NEW_TOKENS = 64
QUESTIONS = 2  # in each category
LOOKUP_TOKENS, LOOKUP_NGRAM = LookupOptions.nodes, LookupOptions.max_ngram
EAGER, STATIC, LOOKUP = BASELINE, f"{BASELINE}:backend=static", "pld"
ARMS = (EAGER, STATIC, LOOKUP)

Continuation = Callable[[list[int]], list[int]]  # prompt -> new tokens


class Comparison(NamedTuple):
    """Two loops to compare, and the speed ratio that is wanted.

    ``same_tokens``: count only prompts on which both give vanilla's tokens, because a method's speed
    depends on what is accepted.
    """

    what: str
    ours: Continuation
    theirs: Continuation
    wanted: float
    same_tokens: bool = False


class Case(NamedTuple):
    """A prompt and both loops' answers to it."""

    prompt: list[int]
    ours: list[int]
    theirs: list[int]


def bench_config(config: RunConfig) -> RunConfig:
    """Return the benchmark's settings: vanilla on both back ends and prompt lookup, on a few questions of the mini suite."""
    overrides = [f"pld.nodes={LOOKUP_TOKENS}", f"pld.max_ngram={LOOKUP_NGRAM}"]
    return replace(config, methods=list(ARMS), limit=QUESTIONS, max_new_tokens=MAX_NEW_TOKENS, backend="eager", overrides=overrides)


def prepared(config: RunConfig) -> Session:
    """Return the benchmark's session. Raises UserError as ``prepare`` does."""
    return prepare(bench_config(config))


def decoding_findings(session: Session, console: Console, pairs: int = PAIRS) -> list[Finding]:
    """Return tokens/s, ours over theirs: vanilla on both back ends and prompt lookup, beside ``generate``.

    Decoding is greedy and ignores end-of-sequence on both sides, so that every answer has the session's
    ``max_new_tokens``. The session needs the arms ``ARMS``.
    """
    eager, static, plain = loop(session, EAGER), loop(session, STATIC), generate(session, lookup=None)
    lookup = f"pld / generate's prompt lookup, {LOOKUP_TOKENS} drafts, {LOOKUP_NGRAM}-grams"
    comparisons = (
        Comparison("eager vanilla / generate", eager, plain, 0.97),
        Comparison(lookup, loop(session, LOOKUP), generate(session, lookup=LOOKUP_TOKENS), 1.0, same_tokens=True),
        Comparison("static vanilla / eager vanilla", static, eager, 1.3),
        Comparison("static vanilla / generate", static, plain, 1.3),
    )
    prompts = first_prompts(session.chat, session.suite.questions)

    console.print(f"measuring: the answers of each loop to {len(prompts)} prompts", markup=False)
    # Kernels are prepared for every new prompt shape: these answers warm up, and are compared.
    sides = dict.fromkeys(side for comparison in comparisons for side in (comparison.ours, comparison.theirs))
    answers = {side: [side(prompt) for prompt in prompts] for side in sides}

    findings = []
    for comparison in comparisons:
        console.print(f"measuring: {comparison.what}, tokens/s", markup=False)
        cases = list(map(Case, prompts, answers[comparison.ours], answers[comparison.theirs]))
        findings.append(_finding(comparison, cases, answers[eager], pairs))
    return findings


def _finding(comparison: Comparison, cases: Sequence[Case], vanilla: Sequence[list[int]], pairs: int) -> Finding:
    alike = [case for case, tokens in zip(cases, vanilla, strict=True) if case.ours == case.theirs == tokens]
    remark = ""
    if len(alike) < len(cases):
        left_out = "; the others are left out" if comparison.same_tokens else ""
        remark = f"same tokens on {len(alike)} of {len(cases)} prompts{left_out}"
    ratios = speed_ratios(comparison, alike if comparison.same_tokens else cases, pairs)
    return Finding(f"{comparison.what}, tokens/s", ratios, comparison.wanted, remark=remark)


def loop(session: Session, arm: str) -> Continuation:
    """Return one of the session's arms in our decode loop, warmed up."""
    engine = next(engine for engine in session.own if engine.name == arm)
    sampling = Sampling(session.manifest.settings.max_new_tokens)
    engine.warm_up(sampling)
    return lambda prompt: decoded(engine, prompt, sampling).tokens


def generate(session: Session, lookup: int | None) -> Continuation:
    """Return the target's own ``generate``, with prompt lookup of ``lookup`` drafts unless None."""
    sampling = Sampling(session.manifest.settings.max_new_tokens)
    drafting = PlainOptions() if lookup is None else LookupOptions(lookup, LOOKUP_NGRAM)
    return lambda prompt: generate_tokens(session.model, prompt, sampling, drafting.arguments)


def speed_ratios(comparison: Comparison, cases: Sequence[Case], pairs: int) -> list[float]:
    """Return their seconds over ours, pair by pair.

    Two pairs in a row share a prompt and run in the orders A B and B A, so that drift of the machine cancels.
    """
    if not cases:
        return []
    ratios = []
    with gc_paused():
        for pair in range(pairs):
            case = cases[pair // 2 % len(cases)]
            sides = ((comparison.ours, case.ours), (comparison.theirs, case.theirs))
            seconds = {side: _timed(side, case.prompt, tokens) for side, tokens in (sides if pair % 2 == 0 else sides[::-1])}
            ratios.append(seconds[comparison.theirs] / seconds[comparison.ours])
    return ratios


def _timed(side: Continuation, prompt: list[int], expected: list[int]) -> float:
    """Return the seconds of one answer. Its tokens are on the host, so no device needs to be synchronised."""
    start = time.perf_counter()
    tokens = side(prompt)
    seconds = time.perf_counter() - start
    assert tokens == expected, "tokens changed from one call to the next"
    return seconds
