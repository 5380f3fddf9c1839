"""transformers' own ``generate`` on the target: plain, with prompt lookup, or assisted by a draft model."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from methods.core.acceptance import Sampling
from methods.core.decode import room, stop_reason
from methods.core.errors import UserError
from methods.core.target import Target
from methods.core.weights import Trained
from specbench.config.options import RunConfig
from specbench.engines.base import SHARED_WITH, Answer, BuiltEngine, ResolvedEngine
from specbench.engines.own import synchronize
from specbench.store.manifest import ArmFacts
from specbench.store.records import Steps
from specbench.targets import Loaded, drafters, families

# Settings that restrict what is sampled from by nothing but top_k and top_p.
UNTRUNCATED: Mapping[str, Any] = {"min_p": None, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}


@dataclass(frozen=True)
class PlainOptions:
    """Plain decoding: one token a step."""

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of ``generate`` that draft."""
        return {}


@dataclass(frozen=True)
class LookupOptions:
    """Prompt lookup: ``nodes`` drafts a step (Spec-Bench's number), found by the last ``max_ngram`` tokens or fewer."""

    nodes: int = 10
    max_ngram: int = 3

    def __post_init__(self) -> None:
        _check_positive("hf-pld", asdict(self))

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of ``generate`` that draft."""
        return {"prompt_lookup_num_tokens": self.nodes, "max_matching_ngram_size": self.max_ngram}


@dataclass(frozen=True)
class AssistedOptions:
    """A draft model that drafts at most ``nodes`` tokens a step (transformers' default) and fewer where it is unsure."""

    nodes: int = 20

    def __post_init__(self) -> None:
        _check_positive("hf-assisted", asdict(self))

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of ``generate`` that draft, without the draft model, which ``build`` adds."""
        return {}


def _check_positive(name: str, values: Mapping[str, int]) -> None:
    for key, value in values.items():
        if value < 1:
            raise UserError(f"{name}'s {key} is {value}; it must be at least 1")


class StepStreamer(BaseStreamer):
    """Number of tokens and host time of every step: ``generate`` passes each step's tokens once they are on the host.

    The first entry is the prompt itself, the second the forward over the prompt.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        """Note a step."""
        self.tokens.append(value.numel())
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Do nothing: the last step has been noted."""


@torch.inference_mode()
def generate_tokens(
    model: PreTrainedModel, prompt: list[int], sampling: Sampling, arguments: Mapping[str, Any], streamer: BaseStreamer | None = None
) -> list[int]:
    """Return the new tokens of ``generate``. ``arguments`` choose how it drafts. Sampling seeds torch's global generator.

    The model's own generation settings must be empty, as ``checkpoint.load_model`` makes them.
    """
    chosen: dict[str, Any] = {"do_sample": False}
    if sampling.temperature:
        torch.manual_seed(sampling.seed)
        chosen = {"do_sample": True, "temperature": sampling.temperature, **UNTRUNCATED, "top_k": sampling.top_k, "top_p": sampling.top_p}

    generate: Any = model.generate  # transformers types its self as a protocol that no model class satisfies
    ids = torch.tensor([prompt], device=model.device)
    stop_ids = sorted(sampling.stop_ids)
    output_ids = generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=stop_ids or None,
        pad_token_id=stop_ids[0] if stop_ids else 0,  # never used: a batch of one needs no padding
        streamer=streamer,
        **chosen,
        **arguments,
    )
    tokens: list[int] = output_ids[0, len(prompt) :].tolist()
    return tokens


@dataclass(frozen=True)
class GenerateEngine:
    """An ``Engine`` that calls ``generate``."""

    name: str
    model: PreTrainedModel
    target: Target  # tells how long a conversation can be
    arguments: Mapping[str, Any]  # of generate, for drafting

    def warm_up(self, sampling: Sampling) -> None:
        """Do nothing: ``generate`` has no preparation of its own; the warm-up prompts suffice."""

    def answer(self, prompt: list[int], sampling: Sampling) -> Answer:
        """Answer one prompt, with the steps that ``generate`` streams.

        Its forward over the prompt may verify drafts too; all tokens of that forward count as prefill tokens.
        """
        limit, steps = room(prompt, sampling, self.target.context), StepStreamer()
        synchronize(self.target.device)
        start = time.perf_counter()
        tokens = generate_tokens(self.model, prompt, replace(sampling, max_new_tokens=limit), self.arguments, steps)
        synchronize(self.target.device)
        total_s = time.perf_counter() - start

        _, prefill_tokens, *emitted = steps.tokens
        assert prefill_tokens + sum(emitted) == len(tokens), "every step is streamed once"
        _, *times = steps.times
        step_s = [round(end - begin, 7) for begin, end in pairwise(times)]
        return Answer(
            output_ids=tokens,
            stop=stop_reason(tokens, limit, sampling.stop_ids),
            prefill_s=times[0] - start,
            total_s=total_s,
            steps=Steps(accepted=[count - 1 for count in emitted], emitted=emitted, step_s=step_s),
            timing="steps",
            prefill_tokens=prefill_tokens,
        )

    def recover(self) -> None:
        """Do nothing: an answer leaves no state behind."""


def check(engine: ResolvedEngine, config: RunConfig) -> None:
    """Raise UserError for a target spread over devices, and for assisted generation without a draft model."""
    if config.device_map:
        raise UserError(f"{engine.arm} runs a target on one device, and --device-map spreads it; leave one of them out")
    if isinstance(engine.config, AssistedOptions):
        draft_model_source(engine.arm, config, config.target)


def build(engine: ResolvedEngine, loaded: Loaded, target: Target, config: RunConfig) -> BuiltEngine:
    """Return the engine on the loaded target. Raises UserError for a draft model that cannot be loaded or does not fit."""
    options, arguments, sha256 = asdict(engine.config), dict(engine.config.arguments), None
    if isinstance(engine.config, AssistedOptions):
        draft_model = load_draft_model(draft_model_source(engine.arm, config, loaded.name), loaded, engine.config.nodes)
        sha256 = draft_model.sha256
        arguments["assistant_model"] = draft_model.module
        options["assistant"] = draft_model.source

    facts = ArmFacts(
        title=engine.title,
        method=engine.name,
        lossless=True,
        reconstruction=False,
        config=options,
        acceptance="transformers' own",
        weights_sha256=sha256,
        backend="transformers",
        engine=f"transformers generate {transformers.__version__}",
    )
    return BuiltEngine(GenerateEngine(engine.arm, loaded.model, target, arguments), facts)


def draft_model_source(arm: str, config: RunConfig, target: str) -> str:
    """Return the folder or hub id of the arm's draft model for a target. Raises UserError if none is given or known."""
    given = config.drafters
    source = given.get(arm) or given.get("hf-assisted") or given.get(SHARED_WITH) or families.drafter_of(target, SHARED_WITH)
    if source is None:
        raise UserError("hf-assisted needs a draft model with the target's vocabulary; pass --drafter hf-assisted=FOLDER|HUB_ID")
    return str(source)


def load_draft_model(source: str, loaded: Loaded, nodes: int) -> Trained[PreTrainedModel]:
    """Load the draft model on the target's device in its dtype, set to draft at most ``nodes`` tokens a step.

    Raises UserError if it cannot be loaded or has another vocabulary.
    """
    trained = drafters.load_draft_model(loaded, source)
    model = trained.module.eval().requires_grad_(False)
    drafted, verified = model.config.vocab_size, loaded.model.config.vocab_size
    if drafted != verified:
        raise UserError(
            f"draft model {source}: its vocabulary ({drafted} tokens) is not {loaded.name}'s ({verified}), which transformers' assisted "
            "generation needs; give another one, or use --method sps, which drafts from what both have"
        )

    # generate reads these from the draft model. Other schedules than "constant" carry their number from answer to answer.
    model.generation_config.num_assistant_tokens = nodes
    model.generation_config.num_assistant_tokens_schedule = "constant"
    return replace(trained, module=model)
