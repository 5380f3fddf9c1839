"""The plan of the run: the arms and tokens that fit the time there is, from how fast each arm is on this device."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from methods.core.acceptance import Sampling
from specbench.engines.own import OwnEngine
from specbench.measure.measurer import WARMUP_TOKENS
from specbench.measure.session import Session
from specbench.studies.base import decoded, first_prompts

LADDER = (16, 24, 32, 48, 64, 96, 128, 192)  # choices for the most tokens a turn
ENOUGH = 64  # with fewer tokens, the eager arms beside vanilla's are dropped first; no method and no baseline is lost with them
SAMPLE = 6  # questions: one of each of Spec-Bench's categories, whose prompts differ most in length
SAMPLE_TOKENS = 12
SPARE = 1.25  # factor on the estimate, for records, later turns, and answers unlike the sample's


class Pace(NamedTuple):
    """The seconds of an arm on this device."""

    prefill_s: float
    token_s: float

    def turn_s(self, tokens: int) -> float:
        """Return the seconds of a turn of ``tokens``."""
        return self.prefill_s + tokens * self.token_s


class RunPlan(NamedTuple):
    """The arms and tokens of the run, and why they were chosen."""

    arms: list[str]
    max_new_tokens: int
    seconds: float  # estimated
    why: str


def paces(session: Session) -> dict[str, Pace]:
    """Return the pace of every arm of a warm session, measured on a few of the suite's questions."""
    questions = session.suite.questions
    places = [round((i + 0.5) * len(questions) / SAMPLE - 0.5) for i in range(SAMPLE)]
    prompts = first_prompts(session.chat, [questions[place] for place in places])
    return {engine.name: _pace(engine, prompts, session.stop_ids) for engine in session.own}


def plan(paces: Mapping[str, Pace], spare: Sequence[str], turns: int, warmups: int, seconds: float) -> RunPlan:
    """Return the plan with the most tokens that fits ``seconds`` with all arms, or with few tokens, without the ``spare`` ones.

    Every arm answers ``turns`` turns and ``warmups`` short ones. If nothing fits, the plan is the
    smallest there is, and the next call continues it.
    """

    def needed(arms: Sequence[str], tokens: int) -> float:
        return SPARE * sum(turns * paces[arm].turn_s(tokens) + warmups * paces[arm].turn_s(min(tokens, WARMUP_TOKENS)) for arm in arms)

    every, fewer = list(paces), [arm for arm in paces if arm not in spare]
    for arms, least in ((every, ENOUGH), (fewer, LADDER[0])):
        fitting = [tokens for tokens in LADDER if tokens >= least and needed(arms, tokens) <= seconds]
        if fitting:
            return _plan(arms, max(fitting), needed(arms, max(fitting)), seconds, [arm for arm in every if arm not in arms])
    return _plan(fewer, LADDER[0], needed(fewer, LADDER[0]), seconds, [arm for arm in every if arm in spare])


def _plan(arms: list[str], tokens: int, needed: float, seconds: float, dropped: Sequence[str]) -> RunPlan:
    without = f"; left out for that: {', '.join(dropped)}" if dropped else ""
    later = "; it will not be done in this time and continues at the next call" if needed > seconds else ""
    why = f"{len(arms)} arms, at most {tokens} tokens a turn: about {needed:.0f} s of {seconds:.0f} s{without}{later}"
    return RunPlan(arms, tokens, needed, why)


def _pace(engine: OwnEngine, prompts: Sequence[list[int]], stop_ids: frozenset[int]) -> Pace:
    sampling = Sampling(SAMPLE_TOKENS, 0.0, stop_ids)
    results = [decoded(engine, prompt, sampling) for prompt in prompts]
    steps = [step for result in results for step in result.steps]
    seconds, emitted = sum(step.total_s for step in steps), sum(step.emitted for step in steps)
    return Pace(sum(result.prefill_s for result in results) / len(results), seconds / max(emitted, 1))
