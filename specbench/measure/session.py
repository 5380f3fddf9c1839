"""From what the user asked for to a session ready to measure: names resolved, everything loaded, everything checked."""

import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods import registry
from methods.core.backend import BACKENDS, DEFAULT_BACKEND, EAGER, backend
from methods.core.errors import UserError, unknown
from methods.core.target import Target
from methods.registry import Resolved
from specbench import suites, targets
from specbench.config.options import Options
from specbench.config.tuned import Config
from specbench.engines import registry as engines
from specbench.engines.base import Answerer
from specbench.engines.own import Arm
from specbench.engines.registry import ResolvedPeer
from specbench.store.manifest import MethodFacts, RunManifest, Settings
from specbench.store.records import AGAIN, BASELINE
from specbench.suites import Question, Suite
from specbench.targets import Loaded
from specbench.targets.chat import Chat
from specbench.util.environment import device_id, environment, git_state
from specbench.util.memory import free

# An answer may take more tokens when read back as text than when it was written: broken UTF-8 becomes a three-byte sign.
REREAD = 3


@dataclass(frozen=True)
class Session:
    """All a measurement needs, loaded and checked; ``manifest`` describes it."""

    model: PreTrainedModel
    chat: Chat
    stop_ids: frozenset[int]
    arms: tuple[Arm, ...]
    suite: Suite
    warmup: tuple[Question, ...]
    manifest: RunManifest
    device: str  # what records say they ran on
    peers: tuple[Answerer, ...] = ()  # other engines, which answer beside the arms

    @property
    def answerers(self) -> tuple[Answerer, ...]:
        return (*self.arms, *self.peers)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.chat.tokenizer

    @property
    def target(self) -> Target:
        """The baseline's."""
        return self.arms[0].target


def prepare(options: Options) -> Session:
    """Load and check everything a run needs. Raises UserError for whatever would only fail later."""
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    targets.check_device(device)
    backend_name = options.backend or (EAGER.name if options.device_map else DEFAULT_BACKEND)
    if backend_name not in BACKENDS:
        raise unknown("backend", backend_name, BACKENDS)
    target_name, dtype = options.target or targets.default_name(device), options.dtype or targets.default_dtype(device)
    if options.config:
        options.config.check(target=target_name, dtype=dtype, device=device, backend=backend_name)
    own, others = engines.apart(options.methods, options.aa)
    arms, asked = resolve(own, options.overrides, device, backend_name, options.aa, options.config), list(map(engines.resolve, others))
    engines.check(asked, options)
    if options.device_map and any(each.backend != EAGER.name for each in arms.values()):
        raise UserError(f"--device-map needs the back end {EAGER.name} in every arm: the others make pieces ready for a single device")
    keeping = [name for name, each in arms.items() if each.state]
    if keeping and options.repeats > 1:
        raise UserError(f"{keeping[0]} keeps state across questions, and a repeat would find its own answers there; leave out --repeats")
    suite = suite_of(options)
    settings = Settings(
        methods=[*arms, *others],
        target=target_name,
        suite=suite.name,
        suite_sha256=suite.sha256,
        limit=options.limit,
        categories=sorted(options.categories),
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        seed=options.seed,
        dtype=dtype,
        device=device,
        attention=options.attention,
        repeats=options.repeats,
        turns=options.turns,
        backend=backend_name,
        system_prompt=options.system_prompt,
        thinking=options.thinking,
        device_map=options.device_map,
    )
    known = {kind for each in arms.values() if (kind := each.method.weights)} | {each.arm for each in arms.values()}
    known |= {key for peer in asked for key in peer.drafter_keys}
    for key in options.drafter_files:
        if key not in known:
            raise unknown("kind or arm in --drafter", key, known)
    with targets.within_memory(target_name, dtype, device):
        loaded = _load(options, settings)
        settings = replace(settings, revision=loaded.revision, template=loaded.chat.template)
        return _assemble(options, settings, loaded, suite, arms, asked)


def _load(options: Options, settings: Settings) -> Loaded:
    return targets.load(
        settings.target,
        device=settings.device,
        dtype=settings.dtype,
        attention=settings.attention,
        drafter_files=options.drafter_files,
        revision=options.revision,
        template=options.template,
        system_prompt=settings.system_prompt,
        thinking=settings.thinking,
        device_map=settings.device_map,
    )


def suite_of(options: Options) -> Suite:
    """The questions asked for. Raises UserError as ``suites.load`` does."""
    return suites.load(
        options.suite or ("file" if options.suite_file else "mini"),
        suite_file=options.suite_file,
        limit=options.limit,
        categories=options.categories,
        hf_columns=options.hf_columns,
    )


def resolve(
    names: Sequence[str],
    overrides: Sequence[str],
    device: str,
    backend: str = DEFAULT_BACKEND,
    aa: str | None = None,
    config: Config | None = None,
) -> dict[str, Resolved]:
    """Arms by name: vanilla, the methods as named, and ``aa`` once more; every override reaches those whom it concerns.

    Raises UserError for unknown methods, and for a key that no chosen method has.
    """
    chosen = list(dict.fromkeys([BASELINE, *names, *([aa] if aa else [])]))
    keys = {arm: registry.options(registry.split(arm)[0]) for arm in chosen}
    given: dict[str, dict[str, str]] = {name: config.options(name) if config else {} for name in chosen}
    for override in overrides:
        path, equals, value = override.partition("=")
        if not equals or not path or not value:
            raise UserError(f"--set {override!r} is not KEY=VALUE or METHOD.KEY=VALUE; as in --set depth=4 or --set eagle2.depth=4")
        method, dot, key = path.rpartition(".")
        if key == "backend":
            named = f"METHOD:backend={value}"
            raise UserError(f"--set {override!r}: the back end of all arms is --backend; one arm's is named with it, {named}")
        if dot and method not in keys:
            raise unknown("method in --set", method, chosen)
        concerned = [name for name in ([method] if dot else chosen) if key in keys[name]]
        if not concerned:
            known = keys[method] if dot else {each for mine in keys.values() for each in mine}
            raise unknown(f"option of {method}" if dot else "option in --set", key, known)
        for name in concerned:
            given[name][key] = value
    arms = {name: registry.resolve(name, given[name], device, backend) for name in chosen}
    return arms | {aa + AGAIN: arms[aa]} if aa else arms


def _assemble(
    options: Options, settings: Settings, loaded: Loaded, suite: Suite, resolved: Mapping[str, Resolved], asked: Sequence[ResolvedPeer]
) -> Session:
    warmup = suites.warmup()
    if options.config:
        options.config.check_weights(loaded.weights_sha256)
    _check_first_prompts(loaded, suite.questions)
    longest = _longest_conversation(loaded, (*suite.questions, *warmup), settings.max_new_tokens)
    used = {each.backend for each in resolved.values()}
    _check_packed_fits(loaded, used)
    ready = {name: Target(loaded.model, capacity=longest, backend=backend(name, loaded.model.device)) for name in sorted(used)}
    arms, methods = [], {}
    for name, each in resolved.items():
        trained, target = loaded.drafter_for(each), ready[each.backend]
        arms.append(Arm(name, target, *registry.build(each, target, trained)))
        methods[name] = MethodFacts(
            title=f"{each.title}, again" if name.endswith(AGAIN) else each.title,
            lossless=each.lossless,
            reconstruction=each.method.reconstruction,
            config=asdict(each.config),
            acceptance=each.acceptance,
            weights_sha256=trained.sha256 if trained else None,
            backend=each.backend,
            drafter=trained.source if trained else None,
            state=each.state,
        )
    ready_peers = [engines.build(peer, loaded, arms[0].target, options) for peer in asked]
    methods |= {peer.arm: each.facts for peer, each in zip(asked, ready_peers, strict=True)}
    created = datetime.now(UTC)
    manifest = RunManifest(
        name=f"{settings.suite.replace(':', '-').replace('/', '-')}-{Path(settings.target).name}",
        created=created.isoformat(timespec="seconds"),
        settings=settings,
        methods=methods,
        target={
            "name": loaded.name,
            "label": loaded.label,
            "note": loaded.note,
            "parameters": loaded.parameters,
            "weights_sha256": loaded.weights_sha256,
            "layers": loaded.layers,
        },
        categories=dict(Counter(question.category for question in suite.questions)),
        units_total=sum(len(question.turns) for question in suite.questions) * len(methods) * settings.repeats,
        suite_version=suite.version,
        template_sha256=loaded.chat.sha256,
        environment=environment(loaded.model.device),
        git=git_state(),
        argv=sys.argv[1:],
        overrides=list(options.overrides),
        suite_file=str(options.suite_file) if options.suite_file else None,
        hf_columns=dict(options.hf_columns),
        drafter_files={kind: str(file) for kind, file in options.drafter_files.items()},
        config=asdict(options.config) if options.config else None,
    )
    others = tuple(each.answerer for each in ready_peers)
    device = device_id(loaded.model.device)
    return Session(loaded.model, loaded.chat, loaded.stop_ids, tuple(arms), suite, warmup, manifest, device, others)


def _check_packed_fits(loaded: Loaded, backends: Collection[str]) -> None:
    """Raise UserError where the static back end's second copy of the weights would have the system kill the process."""
    device = loaded.model.device
    if device.type != "cpu" or "static" not in backends:
        return
    packed, left = sum(p.nbytes for p in loaded.model.parameters()), free("cpu")
    if packed > left:
        raise UserError(
            f"the static back end keeps a second copy of {loaded.name}'s weights on a CPU, {packed / 2**30:.1f} GiB where "
            f"{left / 2**30:.1f} are free; use --backend eager or a smaller --target"
        )


def _longest_conversation(loaded: Loaded, questions: Sequence[Question], max_new_tokens: int) -> int:
    """Tokens of the longest conversation that can come up; the target may have less room than that."""
    longest = 0
    for question in questions:
        earlier = [""] * (len(question.turns) - 1)
        texts = len(loaded.chat.encode(question.turns, earlier))
        longest = max(longest, texts + (REREAD * len(earlier) + 1) * max_new_tokens)
    return longest


def _check_first_prompts(loaded: Loaded, questions: Sequence[Question]) -> None:
    """Raise UserError naming a question whose first prompt the context cannot hold."""
    context = loaded.model.config.max_position_embeddings
    for question in questions:
        tokens = len(loaded.chat.encode(question.turns[:1], []))
        if tokens >= context:
            raise UserError(
                f"question {question.id}: its prompt of {tokens} tokens does not fit the context of {loaded.name}, {context} tokens; "
                "leave it out (--categories, --suite-file) or choose a target with a longer context"
            )
