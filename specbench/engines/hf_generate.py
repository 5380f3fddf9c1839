"""transformers' own ``generate`` on the very model the arms decode: plain, with prompt lookup, or assisted by a draft model."""

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
from specbench.config.options import Options
from specbench.engines.assistant import assistant, source_of
from specbench.engines.base import Answer
from specbench.engines.own import synchronize
from specbench.engines.registry import Ready, ResolvedPeer
from specbench.store.manifest import MethodFacts
from specbench.store.records import Steps
from specbench.targets import Loaded

# A model's generation_config.json may ask for any of these, which would change what the target says.
AS_IT_IS: Mapping[str, Any] = {
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "num_beams": 1,
    "min_length": 0,
    "min_new_tokens": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "bad_words_ids": None,
    "sequence_bias": None,
    "forced_eos_token_id": None,
    "exponential_decay_length_penalty": None,
    "guidance_scale": None,
    "encoder_repetition_penalty": 1.0,
    "max_time": None,
    "stop_strings": None,
    "return_dict_in_generate": False,
}
FROM_ALL_OF_P: Mapping[str, Any] = {"top_k": 0, "top_p": 1.0, "min_p": None, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0}


@dataclass(frozen=True)
class Plain:
    """One token a round."""

    @property
    def arguments(self) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Lookup:
    """Prompt lookup: ``nodes`` drafts a round, as many as Spec-Bench's, found by the last ``max_ngram`` tokens or fewer."""

    nodes: int = 10
    max_ngram: int = 3

    def __post_init__(self) -> None:
        _positive("hf-pld", asdict(self))

    @property
    def arguments(self) -> dict[str, Any]:
        return {"prompt_lookup_num_tokens": self.nodes, "max_matching_ngram_size": self.max_ngram}


@dataclass(frozen=True)
class Assisted:
    """A draft model, at most ``nodes`` drafts a round (transformers' default); it stops earlier where it is unsure."""

    nodes: int = 20

    def __post_init__(self) -> None:
        _positive("hf-assisted", asdict(self))

    @property
    def arguments(self) -> dict[str, Any]:
        return {}


class Rounds(BaseStreamer):
    """Tokens and host time of each forward of the target: ``generate`` hands over every round's tokens once they are on the host."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.marks: list[float] = []

    def put(self, value: Tensor) -> None:
        self.tokens.append(value.numel())
        self.marks.append(time.perf_counter())

    def end(self) -> None:
        pass


@torch.inference_mode()
def continued(
    model: PreTrainedModel, prompt: list[int], sampling: Sampling, drafting: Mapping[str, Any], streamer: BaseStreamer | None = None
) -> list[int]:
    """The new tokens of ``generate``; ``drafting`` are its arguments for it. Sampling seeds torch's global generator."""
    generate: Any = model.generate  # transformers types its self as a protocol that no model class satisfies
    chosen: dict[str, Any] = {"do_sample": False}
    if sampling.temperature:
        torch.manual_seed(sampling.seed)
        chosen = {"do_sample": True, "temperature": sampling.temperature, **FROM_ALL_OF_P}
    ids = torch.tensor([prompt], device=model.device)
    stop_ids = sorted(sampling.stop_ids)
    continued_ids = generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=stop_ids or None,
        pad_token_id=stop_ids[0] if stop_ids else 0,  # of a batch, which this is not
        streamer=streamer,
        **AS_IT_IS,
        **chosen,
        **drafting,
    )
    tokens: list[int] = continued_ids[0, len(prompt) :].tolist()
    return tokens


@dataclass(frozen=True)
class Generate:
    """An ``Answerer``."""

    name: str
    model: PreTrainedModel
    target: Target  # says how long a conversation can be
    drafting: Mapping[str, Any]

    def warm(self, sampling: Sampling) -> None:
        """Nothing: it prepares for a shape when it meets one."""

    def answer(self, prompt: list[int], sampling: Sampling) -> Answer:
        """Rounds as ``generate`` streams them. The first, the prompt's own, may accept drafts too: its tokens are the prefill's."""
        limit, rounds = room(prompt, sampling, self.target.context), Rounds()
        synchronize(self.target.device)
        start = time.perf_counter()
        tokens = continued(self.model, prompt, replace(sampling, max_new_tokens=limit), self.drafting, rounds)
        synchronize(self.target.device)
        total_s = time.perf_counter() - start
        _, first, *emitted = rounds.tokens  # what it streams before all else is the prompt
        assert first + sum(emitted) == len(tokens), "every round is streamed once"
        _, *marks = rounds.marks
        steps = Steps(accepted=[n - 1 for n in emitted], emitted=emitted, round_s=[round(b - a, 7) for a, b in pairwise(marks)])
        stop = stop_reason(tokens, limit, sampling.stop_ids)
        return Answer(tokens, stop, marks[0] - start, total_s, steps, timing="rounds", prefill_tokens=first)

    def recover(self) -> None:
        """Nothing: an answer leaves nothing behind."""


def check(peer: ResolvedPeer, options: Options) -> None:
    if options.device_map:
        raise UserError(f"{peer.arm} runs a target on one device, and --device-map spreads it; leave one of them out")
    if isinstance(peer.config, Assisted):
        source_of(peer.arm, options, options.target or "")


def build(peer: ResolvedPeer, loaded: Loaded, target: Target, options: Options) -> Ready:
    config, drafting, sha256 = asdict(peer.config), dict(peer.config.arguments), None
    if isinstance(peer.config, Assisted):
        drafter = assistant(source_of(peer.arm, options, loaded.name), loaded, peer.config.nodes)
        sha256 = drafter.sha256
        drafting["assistant_model"] = drafter.module
        config["assistant"] = drafter.source
    facts = MethodFacts(
        title=peer.title,
        lossless=True,
        reconstruction=False,
        config=config,
        acceptance="transformers' own",
        weights_sha256=sha256,
        backend="transformers",
        engine=f"transformers generate {transformers.__version__}",
    )
    return Ready(Generate(peer.arm, loaded.model, target, drafting), facts)


def _positive(name: str, values: Mapping[str, int]) -> None:
    for key, value in values.items():
        if value < 1:
            raise UserError(f"{name}'s {key} is {value}; it must be at least 1")
