"""Any OpenAI-compatible server (vLLM, SGLang, llama.cpp): the run's own prompts to ``/v1/completions``, answers streamed."""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from methods.core.acceptance import Sampling
from methods.core.decode import room
from methods.core.errors import UserError
from methods.core.target import Target
from specbench.config.options import Options
from specbench.engines.base import Answer
from specbench.engines.endpoint.client import KEYS, Client, Event, Refused, ServerError, one_line
from specbench.engines.endpoint.counters import Counters, timed
from specbench.engines.endpoint.served import served
from specbench.engines.endpoint.usage import REFUSED
from specbench.engines.registry import Ready, ResolvedPeer
from specbench.store.manifest import MethodFacts
from specbench.store.records import Steps
from specbench.targets import Loaded

STOPS = {"stop": "stop_id", "length": "length"}  # finish_reason -> ours
PROBE = "How are you?"


@dataclass(frozen=True)
class Config:
    """No options: what a server does is settled when it is started."""


class Style(NamedTuple):
    """How a server takes a request."""

    ids: bool  # the prompt as token ids; else as text, which the server splits and begins itself
    extended: bool  # options beyond OpenAI's, by which vLLM, SGLang and llama.cpp sample from all of p and tell token ids


STYLES = (Style(True, True), Style(True, False), Style(False, False))  # the first that a server does not refuse


@dataclass
class Reply:
    """What a stream said, put together; seconds since the request was sent."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    finish: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, Any] = field(default_factory=dict)
    first_s: float = 0.0
    total_s: float = 0.0

    def take(self, event: Event, start: float) -> None:
        """Raises ServerError for an event of another shape."""
        self.total_s = event.arrived_s - start
        try:
            self.usage = dict(event.fields.get("usage") or self.usage)
            self.timings = dict(event.fields.get("timings") or self.timings)
            for choice in list(event.fields.get("choices") or [])[:1]:
                text, ids = str(choice.get("text") or ""), [int(token) for token in choice.get("token_ids") or []]
                if (text or ids) and not self.first_s:
                    self.first_s = self.total_s
                self.text += text
                self.ids += ids
                self.finish = str(choice.get("finish_reason") or self.finish)
        except (TypeError, ValueError, AttributeError):
            raise ServerError(f"the server sent an event that is no completion's: {one_line(str(event.fields))}") from None


@dataclass(frozen=True)
class Endpoint:
    """An ``Answerer``."""

    name: str
    client: Client
    model: str
    tokenizer: PreTrainedTokenizerBase
    target: Target  # says how long a conversation can be
    style: Style
    counters: Counters | None

    def warm(self, sampling: Sampling) -> None:
        """Nothing: the server was asked when the arm was made."""

    def answer(self, prompt: list[int], sampling: Sampling) -> Answer:
        """Raises ServerError where no answer came, or one that cannot be counted. Its counters are read outside the time that counts."""
        limit = room(prompt, sampling, self.target.context)
        before = self.counters.read_or_none() if self.counters else None
        reply = self.ask(prompt, sampling, limit)
        tokens = self.counted(reply, prompt)
        drafting = timed(reply.timings, tokens)
        if drafting is None and self.counters and before is not None:
            drafting = self.counters.since(before, tokens)
        return Answer(
            output_ids=reply.ids,
            stop=STOPS[reply.finish],
            prefill_s=reply.first_s or reply.total_s,
            total_s=reply.total_s,
            steps=Steps(),
            timing="answer",
            tokens=None if reply.ids else tokens,
            output_text=None if reply.ids else reply.text,
            drafting=drafting,
            elsewhere=True,
        )

    def recover(self) -> None:
        """Nothing: every answer has a connection of its own."""

    def ask(self, prompt: list[int], sampling: Sampling, limit: int) -> Reply:
        """One request and all of its stream. Raises ServerError."""
        events, reply = self.client.stream("/v1/completions", self._body(prompt, sampling, limit)), Reply()
        start = next(events).arrived_s
        for event in events:
            reply.take(event, start)
        if reply.finish not in STOPS:
            raise ServerError(f"{self.client.address} ended its answer for the reason {reply.finish!r}; known: {', '.join(STOPS)}")
        return reply

    def counted(self, reply: Reply, prompt: list[int]) -> int:
        """The answer's tokens: its ids where they are told, else the server's count, held against ours of its text.

        Raises ServerError where the two are too far apart, where there is no count, and for a prompt that the server read otherwise.
        """
        read, told = (count if isinstance(count := reply.usage.get(name), int) else None for name in ("prompt_tokens", "completion_tokens"))
        who = self.client.address
        if read is not None and read != len(prompt):
            raise ServerError(f"{who} read {read} tokens where the prompt has {len(prompt)}: it has another tokenizer than the target")
        if told is None and not reply.ids:
            raise ServerError(f"{who} sent no usage with its answer, so nobody counted its tokens; serve with stream_options.include_usage")
        ours = len(reply.ids or self.tokenizer(reply.text, add_special_tokens=False).input_ids)
        if told is not None and REFUSED.exceeded(told, ours):
            raise ServerError(f"{who} counts {told} tokens where ours counts {ours}: more than {REFUSED} apart, neither is to be believed")
        if not (reply.ids or told):
            raise ServerError(f"{who} counts no token in its answer")
        return len(reply.ids) or int(told or 0)

    def _body(self, prompt: list[int], sampling: Sampling, limit: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": prompt if self.style.ids else self._text(prompt),
            "max_tokens": limit,
            "temperature": sampling.temperature,
            "top_p": 1.0,
            "seed": sampling.seed % 2**31,  # what every server takes
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.style.extended:
            body |= {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "return_token_ids": True}
            body["stop_token_ids"] = sorted(sampling.stop_ids)
        return body

    def _text(self, prompt: list[int]) -> str:
        """Without the token that begins a text, which the server puts there itself."""
        begun = prompt[:1] == [self.tokenizer.bos_token_id]
        return str(self.tokenizer.decode(prompt[begun:], skip_special_tokens=False))


def check(peer: ResolvedPeer, options: Options) -> None:
    served(options)


def build(peer: ResolvedPeer, loaded: Loaded, target: Target, options: Options) -> Ready:
    found = served(options)
    arm, probe = _probed(Endpoint(peer.arm, found.client, found.model, loaded.tokenizer, target, STYLES[0], Counters.of(found.client)))
    facts = MethodFacts(
        title=peer.title,
        lossless=None,  # it does not say
        reconstruction=False,
        config={
            "base_url": found.client.address,
            "model": found.model,
            "prompt": "token ids" if arm.style.ids else "text",
            "answer": "token ids" if probe.ids else "text",
            "options": "extended" if arm.style.extended else "OpenAI's",
        },
        acceptance="the server's own",
        weights_sha256=None,
        backend="server",
        engine=found.words,
    )
    return Ready(arm, facts)


def _probed(arm: Endpoint) -> tuple[Endpoint, Reply]:
    """The arm in the first style that its server takes, and what that answered to one token's worth. Raises UserError."""
    asked = [int(token) for token in arm.tokenizer(PROBE).input_ids]
    refusal: ServerError | None = None
    for style in STYLES:
        tried = replace(arm, style=style)
        try:
            reply = tried.ask(asked, Sampling(1), 1)
            tried.counted(reply, asked)
            return tried, reply
        except Refused as error:
            refusal = refusal or error
        except ServerError as error:
            raise UserError(f"--base-url: {error}") from None
    raise UserError(f"--base-url: {refusal}; see what the server serves, and whether it wants a key in {KEYS[0]}")
