"""An engine that asks an OpenAI-compatible server (vLLM, SGLang, llama.cpp).

The run's prompts go to ``/v1/completions``, and answers are streamed.
"""

from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from methods.core.acceptance import Sampling
from methods.core.decode import room
from methods.core.errors import UserError
from methods.core.target import Target
from specbench.config.options import RunConfig
from specbench.engines.base import Answer
from specbench.engines.endpoint.client import (
    KEY_VARIABLES,
    Client,
    RequestRejected,
    ServerError,
    StreamEvent,
    beginning,
)
from specbench.engines.endpoint.counters import Counters, drafting_of_timings
from specbench.engines.endpoint.served_model import find_model
from specbench.engines.endpoint.tolerance import REFUSED
from specbench.engines.registry import BuiltEngine, ResolvedEngine
from specbench.store.manifest import ArmFacts
from specbench.store.records import Steps
from specbench.targets import Loaded
from specbench.util.text import shorten

STOPS = {"stop": "stop_id", "length": "length"}  # OpenAI's finish_reason -> a record's stop
PROBE = "How are you?"
MOST_TOKENS = 2**31


@dataclass(frozen=True)
class EndpointOptions:
    """The options of the endpoint: none. A server is configured when it is started."""


class RequestStyle(NamedTuple):
    """The form of a request that a server accepts."""

    ids: bool  # send the prompt as token ids; else as text, which the server tokenizes and starts with its own first token
    extended: bool  # send options beyond OpenAI's, by which servers sample from the whole vocabulary and return token ids


STYLES = (RequestStyle(True, True), RequestStyle(True, False), RequestStyle(False, False))  # in the order they are tried


@dataclass
class Completion:
    """A streamed answer, put together. Times in seconds since the request was sent."""

    text: str = ""
    ids: list[int] = field(default_factory=list)
    finish: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, Any] = field(default_factory=dict)
    first_s: float = 0.0
    total_s: float = 0.0

    def add(self, event: StreamEvent, start_s: float) -> None:
        """Add an event of the stream. Raises ServerError if it does not have the form of a completion's."""
        self.total_s = event.arrived_s - start_s
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
            raise ServerError(f"the server sent an event that is no completion's: {beginning(str(event.fields))}") from None

    def counted(self, name: str) -> int | None:
        """Return a number of the server's usage, None if it sent none. Raises ServerError for what is no number of tokens."""
        count = self.usage.get(name)
        if count is not None and not (isinstance(count, int) and not isinstance(count, bool) and 0 <= count < MOST_TOKENS):
            raise ServerError(f"the server sent {shorten(count)} as its number of {name}")
        return count


@dataclass(frozen=True)
class EndpointEngine:
    """An ``Engine`` that asks a server."""

    name: str
    client: Client
    model: str
    tokenizer: PreTrainedTokenizerBase
    target: Target  # tells how long a conversation can be
    style: RequestStyle
    counters: Counters | None

    def warm_up(self, sampling: Sampling) -> None:
        """Do nothing: the server has answered a probe already."""

    def answer(self, prompt: list[int], sampling: Sampling) -> Answer:
        """Answer one prompt. The server's counters are read before and after the time that is measured.

        Raises ServerError if there is no answer or its tokens cannot be counted.
        """
        limit = room(prompt, sampling, self.target.context)
        before = self.counters.read() if self.counters else None
        completion = self.request(prompt, sampling, limit)
        tokens = self.count_tokens(completion, prompt)

        drafting = drafting_of_timings(completion.timings, tokens)
        if drafting is None and self.counters and before is not None:
            drafting = self.counters.drafting_since(before, tokens)
        return Answer(
            output_ids=completion.ids,
            stop=STOPS[completion.finish],
            prefill_s=completion.first_s or completion.total_s,
            total_s=completion.total_s,
            steps=Steps(),
            timing="answer",
            tokens=None if completion.ids else tokens,
            output_text=None if completion.ids else completion.text,
            drafting=drafting,
            remote=True,
        )

    def recover(self) -> None:
        """Do nothing: every request opens its own connection."""

    def request(self, prompt: list[int], sampling: Sampling, limit: int) -> Completion:
        """Send one request and read its whole stream. Raises ServerError."""
        events, completion = self.client.stream("/v1/completions", self._body(prompt, sampling, limit)), Completion()
        start_s = next(events).arrived_s
        for event in events:
            completion.add(event, start_s)
            if max(len(completion.ids), completion.counted("completion_tokens") or 0) > limit:
                raise ServerError(f"{self.client.address} sent more than the {limit} tokens that it was asked for")
        if completion.finish not in STOPS:
            raise ServerError(f"{self.client.address} ended its answer for the reason {completion.finish!r}; known: {', '.join(STOPS)}")
        return completion

    def count_tokens(self, completion: Completion, prompt: list[int]) -> int:
        """Return the number of tokens of an answer: of its ids, or the server's count if it sends text only.

        The server's count is checked against our tokenization of the text. Raises ServerError if they are too far apart, if
        there is no count, and if the server counts another number of tokens in the prompt.
        """
        prompt_tokens, reported = completion.counted("prompt_tokens"), completion.counted("completion_tokens")
        server = self.client.address
        strange = next((token for token in completion.ids if not 0 <= token < self.target.config.vocab_size), None)
        if strange is not None:
            raise ServerError(f"{server} sent the token id {shorten(strange)}, which the target does not have")
        if prompt_tokens is not None and prompt_tokens != len(prompt):
            raise ServerError(
                f"{server} read {prompt_tokens} tokens where the prompt has {len(prompt)}: it has another tokenizer than the target"
            )
        if reported is None and not completion.ids:
            raise ServerError(
                f"{server} sent no usage with its answer, so the token count is unknown; serve with stream_options.include_usage"
            )

        counted = len(completion.ids or self.tokenizer(completion.text, add_special_tokens=False).input_ids)
        if reported is not None and REFUSED.exceeded(reported, counted):
            raise ServerError(
                f"{server} counts {reported} tokens where ours counts {counted}: more than {REFUSED} apart, so the count cannot be used"
            )
        if not (completion.ids or reported):
            raise ServerError(f"{server} counts no token in its answer")
        return len(completion.ids) or int(reported or 0)

    def _body(self, prompt: list[int], sampling: Sampling, limit: int) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": prompt if self.style.ids else self._text(prompt),
            "max_tokens": limit,
            "temperature": sampling.temperature,
            "top_p": 1.0,
            "seed": sampling.seed % 2**31,  # a range that every server accepts
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.style.extended:
            body |= {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "return_token_ids": True}
            body["stop_token_ids"] = sorted(sampling.stop_ids)
        return body

    def _text(self, prompt: list[int]) -> str:
        """Return the prompt as text, without its beginning-of-sequence token, which the server adds."""
        start = 1 if prompt[:1] == [self.tokenizer.bos_token_id] else 0
        return str(self.tokenizer.decode(prompt[start:], skip_special_tokens=False))


def check(engine: ResolvedEngine, config: RunConfig) -> None:
    """Raise UserError if the server cannot be reached or does not serve the model, and for options it is not asked to follow."""
    if config.restriction:
        raise UserError(
            f"{config.restriction} does not reach {engine.arm}: servers restrict sampling each in its own way; leave one of them out"
        )
    find_model(config)


def build(engine: ResolvedEngine, loaded: Loaded, target: Target, config: RunConfig) -> BuiltEngine:
    """Return the engine, asking in the first style that its server accepts. Raises UserError if it accepts none."""
    model = find_model(config)
    counters = Counters.find(model.client)
    endpoint, probe = _choose_style(EndpointEngine(engine.arm, model.client, model.name, loaded.tokenizer, target, STYLES[0], counters))
    facts = ArmFacts(
        title=engine.title,
        method=engine.name,
        lossless=None,  # unknown: a server does not tell
        reconstruction=False,
        config={
            "base_url": model.client.address,
            "model": model.name,
            "prompt": "token ids" if endpoint.style.ids else "text",
            "answer": "token ids" if probe.ids else "text",
            "options": "extended" if endpoint.style.extended else "OpenAI's",
        },
        acceptance="the server's own",
        weights_sha256=None,
        backend="server",
        engine=model.description,
    )
    return BuiltEngine(endpoint, facts)


def _choose_style(engine: EndpointEngine) -> tuple[EndpointEngine, Completion]:
    """Return the engine with the first style that its server accepts, and its answer of one token. Raises UserError."""
    prompt = [int(token) for token in engine.tokenizer(PROBE).input_ids]
    first_rejection: ServerError | None = None
    for style in STYLES:
        styled = replace(engine, style=style)
        try:
            completion = styled.request(prompt, Sampling(1), 1)
            styled.count_tokens(completion, prompt)
            return styled, completion
        except RequestRejected as error:
            first_rejection = first_rejection or error
        except ServerError as error:
            raise UserError(f"--base-url: {error}") from None
    raise UserError(f"--base-url: {first_rejection}; see what the server serves, and whether it wants a key in {KEY_VARIABLES[0]}")
