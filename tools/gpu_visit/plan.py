"""How much of the run fits the time there is: how fast each arm is here, and what follows for arms and tokens."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from methods.core.acceptance import Sampling
from methods.core.clock import clock_for
from methods.core.decode import decode
from specbench.engines.own import Arm
from specbench.measure.runner import WARMUP_TOKENS
from specbench.measure.session import Session

LADDER = (16, 24, 32, 48, 64, 96, 128, 192)  # tokens a turn at the most
ENOUGH = 64  # with fewer, eager arms beside vanilla's go first: no method is lost with them, nor the other baseline
SAMPLE = 6  # questions: one of each of Spec-Bench's categories, whose prompts differ most in length
SAMPLE_TOKENS = 12
SPARE = 1.25  # of the estimate: records, later turns, answers unlike the sample's


class Pace(NamedTuple):
    """Seconds of an arm on this device."""

    prefill_s: float
    token_s: float

    def turn_s(self, tokens: int) -> float:
        return self.prefill_s + tokens * self.token_s


class Plan(NamedTuple):
    arms: list[str]
    max_new_tokens: int
    seconds: float  # estimated
    why: str


def paces(session: Session) -> dict[str, Pace]:
    """Of every arm of a warm session, on a few of the suite's questions."""
    questions = session.suite.questions
    places = [round((i + 0.5) * len(questions) / SAMPLE - 0.5) for i in range(SAMPLE)]
    asked = [session.chat.encode(questions[place].turns[:1], []) for place in places]
    return {arm.name: _pace(arm, asked, session.stop_ids) for arm in session.arms}


def plan(found: Mapping[str, Pace], spare: Sequence[str], turns: int, warmups: int, seconds: float) -> Plan:
    """The most tokens that fit ``seconds`` with all arms; where those are few, without the arms in ``spare``.

    Every arm answers ``turns`` turns and ``warmups`` short ones. Where nothing fits, the least there is: it goes on next time.
    """

    def needed(arms: Sequence[str], tokens: int) -> float:
        return SPARE * sum(turns * found[arm].turn_s(tokens) + warmups * found[arm].turn_s(min(tokens, WARMUP_TOKENS)) for arm in arms)

    every, fewer = list(found), [arm for arm in found if arm not in spare]
    for arms, least in ((every, ENOUGH), (fewer, LADDER[0])):
        fitting = [tokens for tokens in LADDER if tokens >= least and needed(arms, tokens) <= seconds]
        if fitting:
            return _plan(arms, max(fitting), needed(arms, max(fitting)), seconds, [arm for arm in every if arm not in arms])
    return _plan(fewer, LADDER[0], needed(fewer, LADDER[0]), seconds, [arm for arm in every if arm in spare])


def _plan(arms: list[str], tokens: int, needed: float, seconds: float, dropped: Sequence[str]) -> Plan:
    without = f"; left out for that: {', '.join(dropped)}" if dropped else ""
    later = "; it will not be done in this time and goes on at the next call" if needed > seconds else ""
    why = f"{len(arms)} arms, at most {tokens} tokens a turn: about {needed:.0f} s of {seconds:.0f} s{without}{later}"
    return Plan(arms, tokens, needed, why)


def _pace(arm: Arm, asked: Sequence[list[int]], stop_ids: frozenset[int]) -> Pace:
    sampling, clock = Sampling(SAMPLE_TOKENS, 0.0, stop_ids), clock_for(arm.target.device)
    results = [decode(arm.target, arm.drafter, arm.accept, prompt, sampling, clock) for prompt in asked]
    steps = [step for result in results for step in result.steps]
    steps_s, emitted = sum(step.draft_s + step.verify_s + step.commit_s for step in steps), sum(step.emitted for step in steps)
    return Pace(sum(result.prefill_s for result in results) / len(results), steps_s / max(emitted, 1))
