"""Servers that mean no good: every request ends as an error within a stated time, and takes a stated amount of memory."""

import json
import socket
import threading
import time
from contextlib import contextmanager, suppress
from types import SimpleNamespace
from typing import Any

import pytest

from methods.core.acceptance import Sampling
from specbench.engines.endpoint import client
from specbench.engines.endpoint.client import Client, ServerError
from specbench.engines.endpoint.counters import LARGEST, VLLM, Counters, drafting_of_timings, parse_metrics
from specbench.engines.endpoint.engine import STYLES, Completion, EndpointEngine

SOON = 5  # seconds within which a test ends whose limits are tenths of one
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
CHUNKED = HEAD[:-2] + b"Transfer-Encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def event(**fields):
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def text_event(text="a", **choice):
    return event(choices=[{"index": 0, "text": text, "finish_reason": None, **choice}])


@contextmanager
def serving(*parts, every_s=0.0, endless=b""):
    """Serve raw bytes to each connection: the ``parts``, then ``endless`` again and again with a pause before each."""
    stop, start = threading.Event(), time.monotonic()

    def serve(connection):
        with connection, suppress(OSError):
            request = b""
            while not request.endswith(b"{}" if request.startswith(b"POST") else b"\r\n\r\n"):
                request += connection.recv(2**16)
            for part in parts:
                connection.sendall(part)
            while endless and not stop.wait(every_s) and time.monotonic() - start < 2 * SOON:  # a client that waits for ever shall fail
                connection.sendall(endless)

    def accept():
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield Client.from_url(f"http://127.0.0.1:{listener.getsockname()[1]}")
    finally:
        stop.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.fixture(autouse=True)
def short_limits(monkeypatch):
    for name, limit in {"READ_S": 0.3, "ANSWER_S": 0.6, "GET_S": 0.6, "LARGEST_LINE": 2**12, "LARGEST_BODY": 2**16}.items():
        monkeypatch.setattr(client, name, limit)


def failure(read, *given) -> str:
    """Return the one line with which a request fails, soon."""
    start = time.monotonic()
    with pytest.raises(ServerError) as refusal:
        read(*given)
    assert time.monotonic() - start < SOON
    assert "\n" not in str(refusal.value)
    assert len(str(refusal.value)) < 500
    return str(refusal.value)


def all_events(server):
    return list(server.stream("/v1/completions", {}))


SLOW = "did not end within 0.6 s"
LARGE = "sent a line of more than 4,096 bytes, or 65,536 in one answer"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "Remote end closed connection without response"),
        ({"endless": b"H", "every_s": 0.05}, SLOW),
        ({"endless": b"HTTP/1.1 100 Continue\r\n\r\n", "every_s": 0.01}, SLOW),
        ({"parts": [b"HTTP/1.1 200 OK\r\n"], "endless": b"X: y\r\n" * 99}, "got more than 100 headers"),
        ({"parts": [b"HTTP/1.1 200 OK\r\n"], "endless": b"X" * 2**12}, "header line"),
        ({"parts": [b"nonsense\r\n\r\n"]}, "nonsense"),
        ({"parts": [HEAD], "endless": b"d", "every_s": 0.05}, SLOW),
        ({"parts": [HEAD], "endless": b": a comment\n", "every_s": 0.05}, SLOW),
        ({"parts": [HEAD], "endless": text_event(), "every_s": 0.05}, SLOW),
        ({"parts": [HEAD], "endless": text_event() * 50}, LARGE),
        ({"parts": [HEAD], "endless": b"\n" * 2**12}, LARGE),
        ({"parts": [HEAD], "endless": b"data: " * 2**10}, LARGE),
        ({"parts": [CHUNKED, b"ffffffffffff\r\n"], "endless": b"x" * 2**12}, LARGE),
        ({"parts": [CHUNKED, b"ffffffffffff\r\n"], "endless": b"x", "every_s": 0.05}, SLOW),
        ({"parts": [CHUNKED], "endless": b"f" * 2**12}, "chunk size"),
        ({"parts": [CHUNKED, b"-5\r\nabc\r\n"]}, "127.0.0.1"),
        ({"parts": [CHUNKED, b"zz\r\nabc\r\n"]}, "127.0.0.1"),
        ({"parts": [HEAD, text_event()], "endless": b"", "every_s": 0.0}, "hung up before the end of its answer"),
        ({"parts": [HEAD, b"data: " + b"[" * 4000 + b"\n\n"]}, "sent an event that is no JSON object"),
        ({"parts": [HEAD, b'data: {"choices": "\\ud800"}\n\n']}, "sent an event that is no JSON object"),
        ({"parts": [HEAD, b"data: [1]\n\n"]}, "sent an event that is no JSON object"),
        ({"parts": [HEAD, event(error={"message": "\x1b[2Jhidden\n" * 99})]}, "failed: "),
        ({"parts": [HEAD, DONE], "endless": b"x", "every_s": 0.05}, SLOW),
        ({"parts": [b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n"]}, "HTTP 302 from "),
        ({"parts": [b"HTTP/1.1 500 Oops\r\n\r\n"], "endless": b"x" * 2**12}, "HTTP 500 from "),
        ({"parts": [b"HTTP/1.1 500 Oops\r\n\r\n"], "endless": b"x", "every_s": 0.05}, "HTTP 500 from "),
    ],
)
def test_a_stream_that_does_not_end_well_is_an_error_soon(given, message):
    with serving(*given.get("parts", ()), every_s=given.get("every_s", 0.0), endless=given.get("endless", b"")) as server:
        assert message in failure(all_events, server)


def test_silence_is_an_error_after_the_read_timeout():
    with serving(HEAD, endless=b"x", every_s=60) as server:
        assert "sent nothing for 0.3 s" in failure(all_events, server)
        assert "sent nothing for 0.3 s" in failure(server.get, "/metrics")


def test_a_page_is_bounded_too():
    with serving(HEAD, endless=b"x" * 2**12) as server:
        assert "/metrics is larger than 65,536 bytes" in failure(server.get, "/metrics")
    with serving(HEAD, endless=b"x", every_s=0.05) as server:
        assert SLOW in failure(server.get, "/metrics")
        assert Counters(server, VLLM).read() is None
    with serving(HEAD + b"[1]") as server:
        assert "no JSON object came from it" in failure(server.get_object, "/v1/models")


def test_a_good_answer_leaves_no_timer(monkeypatch):
    with serving(HEAD, text_event(), DONE) as server:
        assert len(all_events(server)) == 2
        assert server.get("/metrics").startswith("data:")
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


def engine(server) -> EndpointEngine:
    """Return an engine whose tokens are the letters of its text."""
    tokenizer: Any = lambda text, **given: SimpleNamespace(input_ids=list(text))  # noqa: E731
    target: Any = SimpleNamespace(context=100, config=SimpleNamespace(vocab_size=50))
    return EndpointEngine("endpoint", server, "m", tokenizer, target, STYLES[0], None)


def usage(prompt=3, completion=2):
    return event(choices=[], usage={"prompt_tokens": prompt, "completion_tokens": completion})


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([text_event("ab", finish_reason="stop"), usage(completion=True)], "sent true as its number of completion_tokens"),
        ([text_event("ab", finish_reason="stop"), usage(completion=-2)], "sent -2 as its number of completion_tokens"),
        ([text_event("ab", finish_reason="stop"), usage(completion=2.0)], "sent 2.0 as its number of completion_tokens"),
        ([text_event("ab", finish_reason="stop"), usage(completion=10**40)], "as its number of completion_tokens"),
        ([text_event("ab", finish_reason="stop"), usage(prompt="3")], 'sent "3" as its number of prompt_tokens'),
        ([text_event("ab", finish_reason="stop"), usage(completion=6)], "sent more than the 5 tokens that it was asked for"),
        ([text_event("ab", finish_reason="stop"), event(usage=[1])], "an event that is no completion's"),
        ([event(choices=[3])], "an event that is no completion's"),
        ([event(choices={"a": 1})], "an event that is no completion's"),
        ([text_event("a", token_ids=["x"])], "an event that is no completion's"),
        ([text_event("a", token_ids=[1] * 6)], "sent more than the 5 tokens that it was asked for"),
        ([text_event("a", token_ids=[50], finish_reason="stop"), usage()], "sent the token id 50, which the target does not have"),
        ([text_event("a", token_ids=[-1], finish_reason="stop"), usage()], "sent the token id -1"),
        ([text_event("a", token_ids=[10**30], finish_reason="stop"), usage()], "sent the token id 10000000"),
        ([text_event("ab"), usage()], "ended its answer for the reason ''"),
        ([text_event("ab", finish_reason={"a": 1}), usage()], "ended its answer for the reason"),
        ([text_event("x" * 40, finish_reason="stop"), usage(completion=5)], "counts 5 tokens where ours counts 40"),
        ([text_event("", finish_reason="stop"), usage(completion=0)], "counts no token in its answer"),
    ],
)
def test_events_and_usage_that_cannot_be_are_an_error(parts, message, monkeypatch):
    with serving(HEAD, *parts, DONE) as server:
        monkeypatch.setattr(EndpointEngine, "_body", lambda *given: {})
        assert message in failure(engine(server).answer, [1, 2, 3], Sampling(5))


def test_counts_of_drafts_that_cannot_be_are_unknown():
    assert drafting_of_timings({"draft_n": 9, "draft_n_accepted": 4}, 10) is not None
    wrong: Any
    for wrong in ((-1, 4), (3, 4), (9, -4), (10**30, 4), (9, 10**30), ("9", 4), (9, 9)):
        assert drafting_of_timings(dict(zip(("draft_n", "draft_n_accepted"), wrong, strict=True)), 10) is None
    assert parse_metrics("a 1e999\na 3") == {"a": LARGEST + 3}
    names: Any = (VLLM.requests, VLLM.tokens, VLLM.steps, VLLM.accepted, VLLM.drafted)
    for accepted, drafted, known in ((3.0, 8.0, True), (3, 2, False), (1e6, 1e7, False), (3, 1e300, False)):
        after = dict(zip(names, (1, 9, 5, accepted, drafted), strict=True))
        server: Any = SimpleNamespace(get=lambda path, page=after: "\n".join(f"{name} {value}" for name, value in page.items()))
        assert (Counters(server, VLLM).drafting_since(dict.fromkeys(names, 0), 9) is not None) == known


def test_an_answer_that_is_put_together_counts_what_the_server_says():
    completion = Completion(usage={"prompt_tokens": 3})
    assert (completion.counted("prompt_tokens"), completion.counted("completion_tokens")) == (3, None)
