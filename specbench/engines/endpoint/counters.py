"""A server's own counts of drafts: counters read before and after a request, or figures sent with the answer.

What the counters grew by belongs to our request if nobody else asked the server meanwhile.
"""

import re
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from specbench.engines.endpoint.client import Client, ServerError
from specbench.store.records import MOST, Drafting

# A line of Prometheus' text format that holds a count: name, labels, value.
COUNT_LINE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{.*\})?\s+(\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?:\s|$)")
DELAY_S, POLL_S = 1.0, 0.02  # longest wait for a server to count an answer that it has sent, and time between two looks

LARGEST = 2.0**52  # of any count: more than a server can have counted, and few enough to be exact

Totals = dict[str, float]  # a counter's value by its name, summed over its labels


@dataclass(frozen=True)
class CounterNames:
    """An engine's names of its counters. ``accepted`` and ``drafted`` are None if it has no such counter."""

    requests: str
    tokens: str
    steps: str
    accepted: str | None = None
    drafted: str | None = None


VLLM = CounterNames(
    requests="vllm:request_success_total",
    tokens="vllm:generation_tokens_total",
    steps="vllm:spec_decode_num_drafts_total",
    accepted="vllm:spec_decode_num_accepted_tokens_total",
    drafted="vllm:spec_decode_num_draft_tokens_total",
)
SGLANG = CounterNames(
    requests="sglang:num_requests_total",
    tokens="sglang:generation_tokens_total",
    steps="sglang:spec_verify_calls_total",
)


@dataclass(frozen=True)
class Counters:
    """The counters of one server."""

    client: Client
    names: CounterNames

    @classmethod
    def find(cls, client: Client) -> "Counters | None":
        """Return a server's counters, or None if it has none of drafts."""
        try:
            totals = parse_metrics(client.get("/metrics"))
        except ServerError:
            return None
        return next((cls(client, names) for names in (VLLM, SGLANG) if {names.requests, names.tokens, names.steps} <= totals.keys()), None)

    def read(self) -> Totals | None:
        """Return the totals, or None if the server does not tell them just now: a missing count must not cost an answer."""
        try:
            return parse_metrics(self.client.get("/metrics"))
        except ServerError:
            return None

    def drafting_since(self, before: Totals, tokens: int) -> Drafting | None:
        """Return what was counted of an answer of so many tokens.

        Waits up to ``DELAY_S`` for the counters to include it. None if they grew by more than this one request, or by less.
        """
        deadline = time.monotonic() + DELAY_S
        while (after := self.read()) is not None and self._requests_and_tokens(before, after) < (1, tokens):
            if time.monotonic() >= deadline:
                break
            time.sleep(POLL_S)
        if after is None or self._requests_and_tokens(before, after) != (1, tokens):
            return None

        steps = _growth(before, after, self.names.steps)
        # Without a counter of accepted drafts: every step emits what it accepted and one more; the prefill emits one token.
        accepted = tokens - 1 - steps if self.names.accepted is None else _growth(before, after, self.names.accepted)
        steps = max(steps, tokens - 1 - accepted)  # vLLM counts only the steps that had drafts
        drafted = None if self.names.drafted is None else _growth(before, after, self.names.drafted)
        return _drafting(steps, accepted, drafted, tokens)

    def _requests_and_tokens(self, before: Totals, after: Totals) -> tuple[int, int]:
        return _growth(before, after, self.names.requests), _growth(before, after, self.names.tokens)


def parse_metrics(text: str) -> Totals:
    """Return the counters of a page in Prometheus' text format. Lines that hold no count are ignored."""
    totals: Totals = defaultdict(float)
    for line in text.splitlines():
        count = COUNT_LINE.match(line)
        if count:
            totals[count[1]] += min(float(count[2]), LARGEST)
    return dict(totals)


def drafting_of_timings(timings: dict[str, Any] | None, tokens: int) -> Drafting | None:
    """Return the drafts that llama.cpp reports with an answer; its steps follow from them. None if it reports none."""
    drafted, accepted = ((timings or {}).get(name) for name in ("draft_n", "draft_n_accepted"))
    if not isinstance(drafted, int) or not isinstance(accepted, int):
        return None
    return _drafting(tokens - 1 - accepted, accepted, drafted, tokens)


def _drafting(steps: int, accepted: int, drafted: int | None, tokens: int) -> Drafting | None:
    """Return the counts of an answer of so many tokens, or None if they cannot be true."""
    possible = 0 < steps <= tokens and 0 <= accepted <= tokens + MOST and (drafted is None or accepted <= drafted < LARGEST)
    return Drafting(steps, accepted, drafted) if possible else None


def _growth(before: Totals, after: Totals, name: str) -> int:
    return round(after.get(name, 0.0) - before.get(name, 0.0))
