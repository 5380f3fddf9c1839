"""Profiles arms: each answers one question of every category, first as it is, then under the torch profiler."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from torch.profiler import ProfilerActivity, profile, record_function

from methods.core.acceptance import Sampling
from methods.core.clock import clock_for
from methods.core.decode import StepTrace, decode
from specbench.engines.own import Arm
from specbench.measure import runner
from specbench.measure.session import Session
from specbench.studies.profiling import trace
from specbench.studies.profiling.labels import ANSWER, LabelledDrafter, labelled
from specbench.studies.profiling.split import Split, split
from specbench.util.files import folder, whole


@dataclass(frozen=True)
class Profile:
    """One arm's rounds; ``plain_s`` is a round without the profiler, which slows what it watches."""

    arm: str
    title: str
    split: Split
    plain_s: float
    trace: Path


def run(session: Session, out: Path, console: Console) -> list[Profile]:
    """Each arm's profile; traces go to ``out``. Raises UserError where they cannot be written."""
    folder(out)
    console.print(f"making {len(session.arms)} arms ready", markup=False)
    runner.warm_up(session, console)
    asked = [session.chat.encode(question.turns[:1], []) for question in session.suite.questions]
    return [_profile(session, arm, asked, out, console) for arm in session.arms]


def _profile(session: Session, arm: Arm, asked: Sequence[list[int]], out: Path, console: Console) -> Profile:
    console.print(f"profiling {arm.name}", markup=False)
    sampling = Sampling(session.manifest.settings.max_new_tokens, stop_ids=session.stop_ids)
    plain = [step for prompt in asked for step in _answer(arm, prompt, sampling)]
    path = out / f"trace-{arm.name.replace(':', '-').replace('=', '-').replace(',', '-')}.json.gz"
    found = traced(arm, asked, sampling, path)
    seconds = sum(step.draft_s + step.verify_s + step.commit_s for step in plain)
    facts = session.manifest.methods[arm.name]
    return Profile(arm.name, facts.title, found, seconds / len(plain), path)


def traced(arm: Arm, asked: Sequence[list[int]], sampling: Sampling, path: Path) -> Split:
    """What the arm's answers spend their rounds on; ``path`` gets the Chrome trace, gzipped."""
    watched = arm._replace(target=labelled(arm.target), drafter=LabelledDrafter(arm.drafter))
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if arm.target.device.type == "cuda" else [])]
    with profile(activities=kinds) as profiler:
        for prompt in asked:
            with record_function(ANSWER):
                _answer(watched, prompt, sampling)
    with whole(path) as partial:
        packed = partial.with_name(f"{path.name}.partial.gz")  # the profiler packs what is named so
        profiler.export_chrome_trace(str(packed))
        packed.replace(partial)
    return split(trace.read(path))


def _answer(arm: Arm, prompt: list[int], sampling: Sampling) -> list[StepTrace]:
    return decode(arm.target, arm.drafter, arm.accept, prompt, sampling, clock_for(arm.target.device)).steps
