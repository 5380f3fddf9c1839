"""A session: everything that a measurement needs, loaded and checked."""

import sys
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods.core.backend import backend
from methods.core.errors import UserError
from methods.core.target import Target
from methods.core.weights import Trained
from methods.registry import Resolved
from specbench import suites, targets
from specbench.config.options import RunConfig
from specbench.engines import registry as engines
from specbench.engines.base import Engine
from specbench.engines.own import OwnEngine
from specbench.measure.resolve import Plan, plan, suite_of
from specbench.store.manifest import ArmFacts, RunManifest, SuiteFacts, TargetFacts
from specbench.suites import Question, Suite
from specbench.targets import Loaded
from specbench.targets.chat import Chat
from specbench.util.environment import device_id, environment, git_state
from specbench.util.memory import free_memory

# A byte-level answer may need up to three times its tokens in the next prompt: invalid UTF-8 decodes to a character of three bytes.
RETOKENIZED = 3


@dataclass(frozen=True)
class Session:
    """Everything that a measurement needs, loaded and checked. ``manifest`` describes it."""

    model: PreTrainedModel
    chat: Chat
    stop_ids: frozenset[int]
    own: tuple[OwnEngine, ...]  # arms that specbench decodes, vanilla first
    suite: Suite
    warmup: tuple[Question, ...]  # those that fit the target's context
    manifest: RunManifest
    device: str  # the device that records name (environment.device_id)
    others: tuple[Engine, ...] = ()  # arms of other engines

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The engine of every arm."""
        return (*self.own, *self.others)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The target's tokenizer."""
        return self.chat.tokenizer

    @property
    def target(self) -> Target:
        """The baseline's target."""
        return self.own[0].target


def prepare(config: RunConfig) -> Session:
    """Resolve, load, and check everything a run needs. Raises UserError for everything that would otherwise fail later."""
    planned = plan(config)
    suite = suite_of(planned.config)
    settled = planned.config
    with targets.within_memory(settled.target, settled.dtype, settled.device):
        return _assemble(planned, load_target(settled), suite)


def load_target(config: RunConfig) -> Loaded:
    """Load the target that settled settings name. Raises UserError as ``targets.load`` does."""
    return targets.load(
        config.target,
        device=config.device,
        dtype=config.dtype,
        attention=config.attention,
        drafter_files=config.drafters,
        revision=config.revision,
        template=config.template,
        system_prompt=config.system_prompt,
        thinking=config.thinking,
        device_map=config.device_map,
        stops=config.stop,
    )


def _assemble(planned: Plan, loaded: Loaded, suite: Suite) -> Session:
    """Check what depends on the loaded target, build every engine, and describe the run in a manifest."""
    config = planned.config
    if config.tuned:
        config.tuned.check_weights(loaded.weights_sha256)
    _check_first_prompts(loaded, suite.questions)
    warmup = tuple(question for question in suites.warmup() if _first_prompt_tokens(loaded, question) < _context(loaded))
    backends = {method.backend for method in planned.methods.values()}
    _check_packed_fits(loaded, backends)

    capacity = _longest_conversation(loaded, (*suite.questions, *warmup), config.max_new_tokens)
    by_backend = {name: Target(loaded.model, capacity=capacity, backend=backend(name, loaded.model.device)) for name in sorted(backends)}
    own, facts = [], {}
    for name, resolved in planned.methods.items():
        target, drafter = by_backend[resolved.backend], loaded.drafter_for(resolved)
        own.append(OwnEngine(name, target, *loaded.build(resolved, target)))
        facts[name] = _facts(resolved, drafter, planned.arms[name].repeat_of)
    others = {name: engines.build(engine, loaded, own[0].target, config) for name, engine in planned.other_engines.items()}
    facts |= {name: built.facts for name, built in others.items()}

    return Session(
        model=loaded.model,
        chat=loaded.chat,
        stop_ids=loaded.stop_ids,
        own=tuple(own),
        suite=suite,
        warmup=warmup,
        manifest=_manifest(config, loaded, suite, facts),
        device=device_id(loaded.model.device),
        others=tuple(built.engine for built in others.values()),
    )


def _facts(resolved: Resolved, drafter: Trained | None, repeat_of: str) -> ArmFacts:
    """Return the facts of an arm that specbench decodes. ``repeat_of`` is the arm that it repeats, or ""."""
    return ArmFacts(
        title=f"{resolved.title}, again" if repeat_of else resolved.title,
        method=resolved.name,
        lossless=resolved.lossless,
        reconstruction=resolved.method.reconstruction,
        config=asdict(resolved.config),
        acceptance=resolved.acceptance,
        weights_sha256=drafter.sha256 if drafter else None,
        backend=resolved.backend,
        drafter=drafter.source if drafter else None,
        state=resolved.state,
        repeat_of=repeat_of,
    )


def _manifest(config: RunConfig, loaded: Loaded, suite: Suite, facts: dict[str, ArmFacts]) -> RunManifest:
    note = f"{loaded.note} {loaded.prompt_note}".strip()
    return RunManifest(
        name=f"{suite.name.replace(':', '-').replace('/', '-')}-{Path(loaded.name).name}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        settings=replace(config, suite=suite.name, revision=loaded.revision, template=loaded.chat.template),
        arms=facts,
        target=TargetFacts(loaded.name, loaded.label, note, loaded.parameters, loaded.weights_sha256, loaded.layers),
        suite=SuiteFacts(suite.name, suite.version, suite.sha256, dict(Counter(question.category for question in suite.questions))),
        units_total=sum(len(question.turns) for question in suite.questions) * len(facts) * config.repeats,
        template_sha256=loaded.chat.sha256,
        environment=environment(loaded.model.device),
        git=git_state(),
        argv=sys.argv[1:],
    )


def _check_packed_fits(loaded: Loaded, backends: Collection[str]) -> None:
    """Raise UserError if the static back end's second copy of the weights does not fit a CPU's memory."""
    device = loaded.model.device
    if device.type != "cpu" or "static" not in backends:
        return

    packed, left = sum(p.nbytes for p in loaded.model.parameters()), free_memory("cpu")
    if packed > left:
        raise UserError(
            f"the static back end keeps a second copy of {loaded.name}'s weights on a CPU, {packed / 2**30:.1f} GiB where "
            f"{left / 2**30:.1f} are free; use --backend eager or a smaller --target"
        )


def _longest_conversation(loaded: Loaded, questions: Sequence[Question], max_new_tokens: int) -> int:
    """Return an upper bound of the tokens of a conversation. It may exceed the target's context."""
    longest = 0
    for question in questions:
        answers = [""] * (len(question.turns) - 1)
        without_answers = len(loaded.chat.encode(question.turns, answers))
        longest = max(longest, without_answers + (RETOKENIZED * len(answers) + 1) * max_new_tokens)
    return longest


def _check_first_prompts(loaded: Loaded, questions: Sequence[Question]) -> None:
    """Raise UserError if a question's first prompt does not fit the target's context."""
    for question in questions:
        tokens = _first_prompt_tokens(loaded, question)
        if tokens >= _context(loaded):
            raise UserError(
                f"question {question.id}: its prompt of {tokens} tokens does not fit the context of {loaded.name}, {_context(loaded)} "
                "tokens; leave it out (--categories, --suite-file) or choose a target with a longer context"
            )


def _first_prompt_tokens(loaded: Loaded, question: Question) -> int:
    return len(loaded.chat.encode(question.turns[:1], []))


def _context(loaded: Loaded) -> int:
    return int(loaded.model.config.max_position_embeddings)
