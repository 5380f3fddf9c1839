"""Tunes: costs measured once, answers recorded once for all methods, settings replayed, the choice checked by running it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from methods import registry
from methods.core.acceptance import Sampling
from methods.core.backend import DEFAULT_BACKEND, EAGER, Backend, backend
from methods.core.errors import UserError, unknown
from methods.core.target import Target
from methods.registry import Resolved
from specbench import targets
from specbench.config.options import Options as RunOptions
from specbench.studies.tune import check, cost, settings
from specbench.studies.tune import prompts as tuning_prompts
from specbench.studies.tune.choose import Prediction, Prices, predict, ranked
from specbench.studies.tune.cost import Drafting
from specbench.studies.tune.guess import Setting
from specbench.studies.tune.record import Watch, WatchedFixed, WatchedGrown, record, static_order
from specbench.studies.tune.replay import Answer, Replay
from specbench.studies.tune.settings import WIDTHS, Space
from specbench.suites import Suite
from specbench.targets import Loaded
from specbench.util.environment import environment, git_state
from specbench.util.memory import make_room


@dataclass(frozen=True)
class Options:
    """Tuning as asked for; None stands for a default that depends on the device."""

    methods: Sequence[str]  # none: every method with tree options that the target has weights for
    target: str | None = None
    dtype: str | None = None
    device: str | None = None
    backend: str | None = None
    suite_file: Path | None = None
    data: str | None = None
    prompts: int = 20
    max_new_tokens: int = 64
    drafter_files: Mapping[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.max_new_tokens < 2:
            raise UserError(f"--max-new-tokens is {self.max_new_tokens}; it must be at least 2: drafts start at the second token")
        settings.refuse(self.methods)
        kinds = {kind for name in self.methods or settings.TUNABLE if (kind := registry.METHODS[name].weights)}
        for key in self.drafter_files:
            if key not in kinds:
                raise unknown("kind in --drafter", key, kinds)


@dataclass(frozen=True)
class Choice:
    """What came of one method: every candidate, the fastest first, and the setting it has now."""

    method: str
    title: str
    ranked: Sequence[Prediction]
    default: Prediction

    @property
    def best(self) -> Prediction:
        return self.ranked[0]


@dataclass(frozen=True)
class Tuning:
    """``measured``: rows of ``metrics.measure`` by arm, two of each method: ``check.arm_of`` its best setting, and its own name."""

    choices: Sequence[Choice]
    measured: Mapping[str, Mapping[str, Any]]
    facts: Mapping[str, str | int]  # [tuned_on] of the config file
    note: str  # of the target


def run(options: Options, console: Console) -> Tuning:
    """Load the target, measure, record, choose, and check. Raises UserError for whatever cannot be loaded or held in memory."""
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    targets.check_device(device)
    chosen = backend(options.backend or DEFAULT_BACKEND, torch.device(device))
    suite = tuning_prompts.load(options.suite_file, options.data, options.prompts, console)
    name, dtype = options.target or targets.default_name(device), options.dtype or targets.default_dtype(device)
    with targets.within_memory(name, dtype, device):
        choices, facts, note = _chosen(options, suite, name, dtype, device, chosen, console)
        arms = [arm for each in choices for arm in (check.arm_of(each.method, each.best.setting), each.method)]
        make_room()
        console.print("checking the choices: each beside the method's default and vanilla, on the tuning prompts")
        asked = RunOptions(
            arms,
            name,
            suite="file",
            max_new_tokens=options.max_new_tokens,
            dtype=dtype,
            device=device,
            backend=chosen.name,
            drafter_files=options.drafter_files,
        )
        return Tuning(choices, check.measured(asked, suite, console), facts, note)


def _chosen(
    options: Options, suite: Suite, name: str, dtype: str, device: str, chosen: Backend, console: Console
) -> tuple[list[Choice], dict[str, str | int], str]:
    """The choices, the config file's facts and the target's note; nothing that keeps the target in memory, which the check loads again."""
    loaded = targets.load(name, device=device, dtype=dtype, attention="sdpa", drafter_files=options.drafter_files)
    asked = [loaded.chat.encode(question.turns, []) for question in suite.questions]
    spaces = _spaces(options.methods, loaded, device)
    room = max(options.max_new_tokens, cost.ROUND_TOKENS)
    if max(map(len, asked)) + room > loaded.model.config.max_position_embeddings:
        raise UserError(f"a tuning prompt of {max(map(len, asked))} tokens and {room} new ones exceed the context of {name}; leave it out")
    capacity = max(map(len, asked)) + room
    answers = _answers(options, loaded, spaces, asked, capacity, console)
    recorded = sum(len(answer.tokens) - 1 for answer in answers)
    if not recorded:
        raise UserError("every answer to the tuning prompts ended with its first token, so that nothing was drafted; choose other prompts")
    choices = _choices(loaded, spaces, answers, asked, Target(loaded.model, capacity=capacity, backend=chosen), console)
    return choices, _facts(loaded, suite, recorded, dtype, chosen.name), loaded.note


def _spaces(names: Sequence[str], loaded: Loaded, device: str) -> dict[str, tuple[Resolved, Space]]:
    """The methods to tune; of those not named the ones whose weights are there. Raises UserError for a named one without weights."""
    found = {}
    for name in names or settings.TUNABLE:
        resolved = registry.resolve(name, {}, device)
        trained = loaded.drafter_for(resolved)
        if resolved.method.weights and trained is None and not names:
            continue
        if resolved.method.weights and trained is None:
            raise UserError(f"{name} {registry.lacking(resolved.method)}; or leave it out")
        found[name] = resolved, settings.space_of(resolved, trained)
    return found


def _answers(
    options: Options,
    loaded: Loaded,
    spaces: Mapping[str, tuple[Resolved, Space]],
    asked: Sequence[list[int]],
    capacity: int,
    console: Console,
) -> list[Answer]:
    """The greedy answers with every method's guesses at its largest tree; the eager back end gives the same tokens and can be watched."""
    target = Target(loaded.model, capacity=capacity, backend=EAGER)
    watched = {name: _watch(target, loaded, resolved, space) for name, (resolved, space) in spaces.items()}
    sampling = Sampling(options.max_new_tokens, stop_ids=loaded.stop_ids)
    title = f"recording what {', '.join(watched)} draft at every token"
    return [record(target, watched, prompt, sampling) for prompt in track(asked, title, console=console)]


def _watch(target: Target, loaded: Loaded, resolved: Resolved, space: Space) -> Watch:
    trained = loaded.drafter_for(resolved)
    drafter, _ = cost.built(target, resolved, trained, space.largest)
    if space.depths:
        return WatchedGrown(drafter, WIDTHS[-1])
    choices = trained.choices(space.most) if trained else ()
    return WatchedFixed(drafter, static_order(choices) if choices else range(space.most + 1))  # a chain is drafted from its beginning


def _choices(
    loaded: Loaded,
    spaces: Mapping[str, tuple[Resolved, Space]],
    answers: Sequence[Answer],
    asked: Sequence[list[int]],
    target: Target,
    console: Console,
) -> list[Choice]:
    past = int(median(map(len, asked))) + len(answers[0].tokens) // 2
    console.print(f"measuring trees of {', '.join(map(str, cost.SIZES))} nodes after {past} tokens", markup=False)
    verifying = cost.verifying(target, past)
    console.print(f"timing rounds at {len(next(iter(spaces.values()))[1].knots())} settings of each method", markup=False)
    vanilla = registry.resolve("vanilla", {}, target.device.type, target.backend.name)
    arms = {("vanilla", Setting(0)): registry.build(vanilla, target, None)}
    for name, (resolved, space) in spaces.items():
        arms |= {(name, knot): cost.built(target, resolved, loaded.drafter_for(resolved), knot) for knot in space.knots()}
    beside = cost.beside(verifying, target, arms, asked)
    plain_s = verifying.of(1) + beside.pop(("vanilla", Setting(0)))
    found = []
    for name, (resolved, space) in spaces.items():
        drafting = Drafting({knot: seconds for (method, knot), seconds in beside.items() if method == name})
        prices, replay = Prices(verifying, drafting, plain_s), Replay(answers, name)
        default = predict(replay, settings.default_of(resolved, space), prices)
        found.append(Choice(name, resolved.title, ranked(replay, space.candidates(), prices), default))
    return found


def _facts(loaded: Loaded, suite: Suite, recorded: int, dtype: str, backend_name: str) -> dict[str, str | int]:
    where = environment(loaded.model.device)
    return {
        "target": loaded.name,
        "target_sha256": loaded.weights_sha256,
        "dtype": dtype,
        "device": loaded.model.device.type,
        "processor": where["gpu"] or where["cpu"],
        "backend": backend_name,
        "prompts": len(suite.questions),
        "prompts_sha256": suite.sha256,
        "recorded_tokens": recorded,
        "candidates": settings.CANDIDATES,
        "torch": where["torch"],
        "transformers": where["transformers"],
        **{f"git_{name}": value for name, value in git_state().items()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
