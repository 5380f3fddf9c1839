"""The tuning run: costs measured once, answers recorded once for all methods, settings replayed, and the choice checked by running it."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.progress import track

from methods import registry
from methods.core.acceptance import Sampling
from methods.core.backend import EAGER, backend
from methods.core.errors import UserError, unknown
from methods.core.target import Target
from methods.core.weights import Trained
from methods.registry import Resolved
from specbench import targets
from specbench.analysis import metrics
from specbench.analysis.frames import turns_frame
from specbench.config.arm import BASELINE, Arm
from specbench.config.options import RunConfig
from specbench.config.tuned import TunedOn
from specbench.measure import measurer
from specbench.measure.progress import RunProgress
from specbench.measure.resolve import resolve_arm, settle
from specbench.measure.session import load_target, prepare
from specbench.store.records import Record
from specbench.studies.base import Conditions, engine_of, with_weights
from specbench.studies.tune import cost, settings
from specbench.studies.tune import prompts as tuning_prompts
from specbench.studies.tune.cost import DraftCost
from specbench.studies.tune.record import Watch, WatchedFixed, WatchedGrown, record, static_order
from specbench.studies.tune.replay import Prediction, Recording, Replay, StepCosts, predict, ranked
from specbench.studies.tune.settings import WIDTHS, Setting, Space
from specbench.suites import Suite
from specbench.targets import Loaded
from specbench.util.memory import release_unused_memory
from specbench.util.terminal import Console


@dataclass(frozen=True)
class TunedMethod:
    """The predictions for one method: every candidate, the fastest first, and its default setting."""

    method: str
    title: str
    ranked: Sequence[Prediction]
    default: Prediction

    @property
    def best(self) -> Prediction:
        """The chosen setting."""
        return self.ranked[0]

    @property
    def arm(self) -> str:
        """The name of the arm that runs the chosen setting."""
        return self.best.setting.arm(self.method)


@dataclass(frozen=True)
class Tuning:
    """The result of tuning.

    ``measured`` has rows of ``metrics.measure`` by arm, two of each method: its chosen setting, ``TunedMethod.arm``,
    and its default, under its own name.
    """

    methods: Sequence[TunedMethod]
    measured: Mapping[str, Mapping[str, Any]]
    conditions: Conditions
    tuned_on: TunedOn


@dataclass(frozen=True)
class _Method:
    """A method to tune, with its weights and the trees that they allow."""

    resolved: Resolved
    trained: Trained | None
    space: Space

    @classmethod
    def of(cls, resolved: Resolved, loaded: Loaded) -> "_Method":
        trained = loaded.drafter_for(resolved)
        return cls(resolved, trained, settings.space_of(resolved, trained))

    @property
    def name(self) -> str:
        return self.resolved.name


def run(config: RunConfig, data: str | None, prompts: int, console: Console) -> Tuning:
    """Load the target, measure, record, choose, and check.

    Without ``config.methods`` every method with tree options that the target has weights for is tuned.
    Prompts come from ``config.suite_file`` or from the corpus ``data``. Raises UserError for anything
    that cannot be loaded or held in memory.
    """
    _check(config)
    config = settle(config)
    suite = tuning_prompts.load(config.suite_file, data, prompts, console)
    with targets.within_memory(config.target, config.dtype, config.device):
        methods, conditions, facts = _chosen(config, suite, console)
        arms = [arm for method in methods for arm in (method.arm, method.method)]
        release_unused_memory()
        console.print("checking the choices: each beside the method's default and vanilla, on the tuning prompts")
        return Tuning(methods, measured(replace(config, methods=arms), suite, console), conditions, facts)


def _check(config: RunConfig) -> None:
    if config.max_new_tokens < 2:
        raise UserError(f"--max-new-tokens is {config.max_new_tokens}; it must be at least 2: drafts start at the second token")
    settings.check_tunable(config.methods)
    kinds = {kind for name in config.methods or settings.TUNABLE if (kind := registry.METHODS[name].weights)}
    for key in config.drafters:
        if key not in kinds:
            raise unknown("kind in --drafter", key, kinds)


def measured(config: RunConfig, suite: Suite, console: Console) -> Mapping[str, Mapping[str, Any]]:
    """Run the arms and vanilla on a suite, interleaved; return each arm's row of the comparison with vanilla."""
    with tempfile.TemporaryDirectory() as folder:
        suite_file = Path(folder) / "tuning.jsonl"
        tuning_prompts.write(suite, suite_file)
        session = prepare(replace(config, suite="file", suite_file=suite_file))
    measurer.warm_up(session, console)
    records: list[Record] = []
    manifest = session.manifest
    progress = RunProgress(console, list(manifest.arms), manifest.units_total, [])
    with progress:
        measurer.measure(session, [], records.append, progress)
    turns = turns_frame(records, manifest.arms)
    return {name: metrics.measure(turns, name) for name in config.methods}


def _chosen(config: RunConfig, suite: Suite, console: Console) -> tuple[list[TunedMethod], Conditions, TunedOn]:
    """Return the tuned methods and their facts, nothing that keeps the target in memory: the check loads it again."""
    loaded = load_target(config)
    prompts = [loaded.chat.encode(question.turns, []) for question in suite.questions]
    resolved = [resolve_arm(Arm.parse(name), {}, config) for name in config.methods or settings.TUNABLE]
    methods = [_Method.of(one, loaded) for one in with_weights(loaded, resolved, required=bool(config.methods))]

    longest, room = max(map(len, prompts)), max(config.max_new_tokens, cost.STEP_TOKENS)
    if longest + room > loaded.model.config.max_position_embeddings:
        raise UserError(f"a tuning prompt of {longest} tokens and {room} new ones exceed the context of {config.target}; leave it out")
    recordings = _recordings(config, loaded, methods, prompts, longest + room, console)
    recorded = sum(len(recording.tokens) - 1 for recording in recordings)
    if not recorded:
        raise UserError("every answer to the tuning prompts ended with its first token, so that nothing was drafted; choose other prompts")

    target = Target(loaded.model, capacity=longest + room, backend=backend(config.backend, loaded.model.device))
    tuned = _tuned(config, loaded, methods, recordings, prompts, target, console)
    conditions = Conditions.of_target(loaded, config)
    return tuned, conditions, tuned_on(conditions, loaded.weights_sha256, suite, recorded)


def _recordings(
    config: RunConfig, loaded: Loaded, methods: Sequence[_Method], prompts: Sequence[list[int]], capacity: int, console: Console
) -> list[Recording]:
    """Return the greedy answers with every method's guesses at its largest tree.

    The eager back end gives the same tokens as the chosen one, and its drafters can be recorded.
    """
    target = Target(loaded.model, capacity=capacity, backend=EAGER)
    watched = {method.name: _watch(target, method) for method in methods}
    sampling = Sampling(config.max_new_tokens, stop_ids=loaded.stop_ids)
    title = f"recording the drafts of {', '.join(watched)} at every token"
    return [record(target, watched, prompt, sampling) for prompt in track(prompts, title, console=console)]


def _watch(target: Target, method: _Method) -> Watch:
    space, trained = method.space, method.trained
    drafter = cost.engine_at(space.largest, method.resolved, target, trained).drafter
    if space.depths:
        return WatchedGrown(drafter, WIDTHS[-1])
    choices = trained.choices(space.most) if trained else ()
    return WatchedFixed(drafter, static_order(choices) if choices else range(space.most + 1))  # a chain is drafted in order


def _tuned(
    config: RunConfig,
    loaded: Loaded,
    methods: Sequence[_Method],
    recordings: Sequence[Recording],
    prompts: Sequence[list[int]],
    target: Target,
    console: Console,
) -> list[TunedMethod]:
    past = int(median(map(len, prompts))) + len(recordings[0].tokens) // 2
    console.print(f"measuring trees of sizes {', '.join(map(str, cost.TREE_SIZES))} after {past} tokens", markup=False)
    verify = cost.verify_cost(target, past)

    console.print(f"timing steps at {len(methods[0].space.knots())} settings of each method", markup=False)
    vanilla = BASELINE, Setting(0)
    engines = {vanilla: engine_of(resolve_arm(Arm.parse(BASELINE), {}, config), loaded, target)}
    for method in methods:
        for knot in method.space.knots():
            engines[method.name, knot] = cost.engine_at(knot, method.resolved, target, method.trained)
    beside = cost.beside_verifying(verify, engines, prompts)
    plain_s = verify.at(1) + beside.pop(vanilla)

    tuned = []
    for method in methods:
        draft = DraftCost({knot: seconds for (name, knot), seconds in beside.items() if name == method.name})
        costs, replay = StepCosts(verify, draft, plain_s), Replay(recordings, method.name)
        default = predict(replay, settings.default_of(method.resolved, method.space), costs)
        tuned.append(TunedMethod(method.name, method.resolved.title, ranked(replay, method.space.candidates(), costs), default))
    return tuned


def tuned_on(conditions: Conditions, weights_sha256: str, suite: Suite, recorded: int) -> TunedOn:
    """Return the facts of a tuning run, as the config file stores them."""
    notes: dict[str, str | int] = {
        "processor": conditions.processor,
        "prompts": len(suite.questions),
        "prompts_sha256": suite.sha256,
        "recorded_tokens": recorded,
        "candidates": settings.CANDIDATES,
        "torch": str(conditions.environment.torch),
        "transformers": str(conditions.environment.transformers),
        "git_sha": conditions.git.sha,
        "git_dirty": conditions.git.dirty,
        "created": conditions.created,
    }
    return TunedOn(conditions.target, weights_sha256, conditions.dtype, conditions.device, conditions.backend, notes)
