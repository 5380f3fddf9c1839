"""A server's counters of drafts, read before and after one request: what they grew by is that request's, if nobody else asked."""

import re
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from specbench.engines.endpoint.client import Client, ServerError
from specbench.store.records import Drafting

LINE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{.*\})?\s+(\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?:\s|$)")  # Prometheus' text: name, labels, a count
LAG_S, EVERY_S = 1.0, 0.02  # a server may count an answer a little after it sent the last of it

Totals = dict[str, float]  # by name, labels added up


@dataclass(frozen=True)
class Names:
    """What an engine calls its counters; ``accepted`` and ``drafted`` are None where it has none."""

    requests: str
    tokens: str
    rounds: str
    accepted: str | None = None
    drafted: str | None = None


ENGINES = (
    Names(
        "vllm:request_success_total",
        "vllm:generation_tokens_total",
        "vllm:spec_decode_num_drafts_total",
        "vllm:spec_decode_num_accepted_tokens_total",
        "vllm:spec_decode_num_draft_tokens_total",
    ),
    Names("sglang:num_requests_total", "sglang:generation_tokens_total", "sglang:spec_verify_calls_total"),
)


@dataclass(frozen=True)
class Counters:
    """The counters of one server."""

    client: Client
    names: Names

    @classmethod
    def of(cls, client: Client) -> "Counters | None":
        """None for a server that counts no drafts, or does not say so."""
        try:
            totals = parsed(client.get("/metrics"))
        except ServerError:
            return None
        return next((cls(client, names) for names in ENGINES if {names.requests, names.tokens, names.rounds} <= totals.keys()), None)

    def read_or_none(self) -> Totals | None:
        """None where the server does not say just now: its answers are worth more than its counters."""
        try:
            return parsed(self.client.get("/metrics"))
        except ServerError:
            return None

    def since(self, before: Totals, tokens: int) -> Drafting | None:
        """What was counted of an answer of ``tokens``; None where the counters grew by another request's too, or not by all of it."""
        deadline = time.monotonic() + LAG_S
        while (after := self.read_or_none()) is not None and self._grown(before, after) < (1, tokens) and time.monotonic() < deadline:
            time.sleep(EVERY_S)
        if after is None or self._grown(before, after) != (1, tokens):
            return None
        rounds = _growth(before, after, self.names.rounds)
        # SGLang counts rounds alone: every one emits what it accepted and one token more, the prefill the first of the answer.
        accepted = tokens - 1 - rounds if self.names.accepted is None else _growth(before, after, self.names.accepted)
        rounds = max(rounds, tokens - 1 - accepted)  # vLLM counts those that had drafts alone
        drafted = None if self.names.drafted is None else _growth(before, after, self.names.drafted)
        return Drafting(rounds, accepted, drafted) if rounds > 0 and accepted >= 0 else None

    def _grown(self, before: Totals, after: Totals) -> tuple[int, int]:
        return _growth(before, after, self.names.requests), _growth(before, after, self.names.tokens)


def parsed(text: str) -> Totals:
    """Prometheus' text format: every name's values added up over its labels. What is no count is left out."""
    totals: Totals = defaultdict(float)
    for line in text.splitlines():
        found = LINE.match(line)
        if found:
            totals[found[1]] += float(found[2])
    return dict(totals)


def timed(timings: dict[str, Any] | None, tokens: int) -> Drafting | None:
    """llama.cpp's own figures, which it sends with each answer: accepted and proposed drafts, from which its rounds follow."""
    drafted, accepted = ((timings or {}).get(name) for name in ("draft_n", "draft_n_accepted"))
    if not isinstance(drafted, int) or not isinstance(accepted, int):
        return None
    rounds = tokens - 1 - accepted
    return Drafting(rounds, accepted, drafted) if rounds > 0 else None


def _growth(before: Totals, after: Totals, name: str) -> int:
    return round(after.get(name, 0.0) - before.get(name, 0.0))
