"""The profiling of arms: each answers one question of every category, first without and then under the torch profiler."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, record_function

from methods.core.acceptance import Sampling
from methods.core.errors import UserError
from specbench.config.options import RunConfig
from specbench.engines.own import OwnEngine
from specbench.measure import measurer
from specbench.measure.resolve import own_arms
from specbench.measure.session import Session, prepare
from specbench.studies.base import Conditions, decoded, first_prompts
from specbench.studies.profiling import trace
from specbench.studies.profiling.split import Split, split
from specbench.studies.profiling.trace import ANSWER, labelled
from specbench.util.files import atomic_write, make_folder
from specbench.util.terminal import Console


@dataclass(frozen=True)
class ArmProfile:
    """One arm's steps; ``plain_s`` is a step without the profiler, which slows what it observes."""

    arm: str
    title: str
    split: Split
    plain_s: float
    trace: Path


@dataclass(frozen=True)
class Profile:
    """The profiles of a session's arms, and their conditions in one line."""

    conditions: Conditions
    sentence: str
    arms: Sequence[ArmProfile]


def prepared(config: RunConfig) -> Session:
    """Return a session with the first question of each category.

    Raises UserError for another engine, for answers without a step, and for whatever ``prepare`` refuses.
    """
    own_arms(config, "profile")
    if config.max_new_tokens < 2:
        raise UserError(f"--max-new-tokens is {config.max_new_tokens}; it must be at least 2: the first token takes no step")
    return prepare(replace(config, limit=1))


def run(session: Session, out: Path, console: Console) -> Profile:
    """Profile every arm and write its trace to ``out``. Raises UserError if that cannot be written."""
    make_folder(out)
    console.print(f"preparing {len(session.own)} arms: compiling kernels and warming up", markup=False)
    measurer.warm_up(session, console)
    prompts = first_prompts(session.chat, session.suite.questions)
    arms = [_profile(session, engine, prompts, out, console) for engine in session.own]

    settings, conditions = session.manifest.settings, Conditions.of_run(session.manifest)
    questions = f"suite {settings.suite}, {len(prompts)} questions, first turns"
    return Profile(conditions, conditions.sentence(questions, f"{settings.max_new_tokens} new tokens, greedy"), arms)


def traced(engine: OwnEngine, prompts: Sequence[list[int]], sampling: Sampling, path: Path) -> Split:
    """Return how an engine's answers spend the time of their steps; write the gzipped Chrome trace to ``path``."""
    watched = labelled(engine)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if engine.target.device.type == "cuda" else [])]
    with profile(activities=kinds) as profiler:
        for prompt in prompts:
            with record_function(ANSWER):
                decoded(watched, prompt, sampling)
    with atomic_write(path) as partial:
        packed = partial.with_name(f"{path.name}.partial.gz")  # the profiler compresses files whose names end with .gz
        profiler.export_chrome_trace(str(packed))
        packed.replace(partial)
    return split(trace.read(path))


def _profile(session: Session, engine: OwnEngine, prompts: Sequence[list[int]], out: Path, console: Console) -> ArmProfile:
    console.print(f"profiling {engine.name}", markup=False)
    sampling = Sampling(session.manifest.settings.max_new_tokens, stop_ids=session.stop_ids)
    plain = [step.total_s for prompt in prompts for step in decoded(engine, prompt, sampling).steps]
    path = out / f"trace-{engine.name.replace(':', '-').replace('=', '-').replace(',', '-')}.json.gz"
    profiled = traced(engine, prompts, sampling, path)
    return ArmProfile(engine.name, session.manifest.arms[engine.name].title, profiled, sum(plain) / len(plain), path)
