"""An OpenAI-compatible server for tests: it streams a tiny model's greedy text, with usage and counters, and can make faults."""

import json
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.tiny_target import write_target

EXTENSIONS = {"top_k", "min_p", "repetition_penalty", "return_token_ids", "stop_token_ids"}
VLLM = ("vllm:request_success_total", "vllm:generation_tokens_total", "vllm:spec_decode_num_drafts_total",
        "vllm:spec_decode_num_accepted_tokens_total", "vllm:spec_decode_num_draft_tokens_total")  # fmt: skip
SGLANG = ("sglang:num_requests_total", "sglang:generation_tokens_total", "sglang:spec_verify_calls_total")


def write_plain_target(folder: Path) -> Path:
    """Write a tiny target whose answers are printable ASCII, so that its text tokenizes to as many tokens as the answer has."""
    model = AutoModelForCausalLM.from_pretrained(write_target(folder))
    signs = AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(list(range(model.config.vocab_size)))
    for token, sign in enumerate(signs):
        if len(sign) > 1 or not "!" <= sign <= "~":
            model.lm_head.weight.data[token] = 0
    model.save_pretrained(folder)
    return folder


@dataclass
class Server:
    """A server on this machine that answers while it is used as a context manager.

    ``faults`` maps a part of a prompt to the fault of its answer: "500", "hang up", "malformed", "error", "no usage", "wrong
    usage", "more usage", "other prompt" (a wrong number of prompt tokens), or "foreign" (the counters include another request).
    ``requests`` holds the body of every completion request, with its ``authorization``.
    """

    folder: Path
    ids: bool = False  # sends token ids if they are requested
    strict: bool = False  # rejects options beyond OpenAI's
    text_only: bool = False  # rejects prompts of token ids
    counters: tuple[str, ...] = VLLM  # names; empty: no /metrics
    late_s: float = 0.0  # delay between an answer and its counting
    timings: bool = False  # sends llama.cpp's timings with each answer
    key: str = ""
    models: tuple[str, ...] = ("tiny",)
    faults: dict[str, str] = field(default_factory=dict)
    requests: list[dict] = field(default_factory=list)

    def __post_init__(self):
        self.model: Any = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float64)
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)
        self.totals = dict.fromkeys(self.counters, 100)
        self.lock = threading.Lock()

    def __enter__(self):
        handler = type("Handler", (Handler,), {"served": self})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        return self

    def __exit__(self, *error):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def answer(self, prompt, limit):
        ids = torch.tensor([prompt])
        with self.lock:
            whole = self.model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=limit, pad_token_id=0)
        return whole[0, len(prompt) :].tolist()

    def count(self, tokens, requests=1):
        """Count an answer of ``tokens`` tokens, with five drafts in every step and one accepted in every other step."""
        steps = max(2 * (tokens - 1) // 3, 1) if tokens > 1 else 0
        growth = (requests, tokens, steps, tokens - 1 - steps, 5 * steps)
        for name, amount in zip(self.counters, growth, strict=False):
            self.totals[name] += amount


class Handler(BaseHTTPRequestHandler):
    """Answers the HTTP requests of a ``Server``."""

    served: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *given):
        pass

    def do_GET(self):
        server = self.served
        body = {
            "/v1/models": json.dumps({"data": [{"id": name, "owned_by": "vllm"} for name in server.models]}),
            "/version": json.dumps({"version": "0.99.1"}),
        }.get(self.path)
        if self.path == "/metrics" and server.counters:
            lines = [f'{name}{{model_name="tiny",engine="{i}"}} {total / 2}' for name, total in server.totals.items() for i in (0, 1)]
            body = "\n".join(["# HELP x y", "# TYPE x counter", *lines, "vllm:kv_cache_usage_perc NaN"])
        self.reply(200 if body else 404, body or "no such page")

    def do_POST(self):
        server = self.served
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server.requests.append({**body, "authorization": self.headers.get("Authorization")})
        rejection = self.rejection(body)
        if rejection:
            self.reply(*rejection)
            return
        prompt = body["prompt"]
        ids = prompt if isinstance(prompt, list) else server.tokenizer(prompt).input_ids
        text = server.tokenizer.decode(ids)
        fault = next((fault for part, fault in server.faults.items() if part in text), "")
        if fault == "500":
            self.reply(500, json.dumps({"error": {"message": "out of\nmemory"}}))
            return
        self.stream(body, ids, server.answer(ids, body["max_tokens"]), fault)

    def rejection(self, body):
        """Return the status and text with which a request is rejected, or None."""
        server = self.served
        if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
            return 401, "wrong key"
        if server.strict and EXTENSIONS & body.keys():
            return 400, f"unknown: {', '.join(sorted(EXTENSIONS & body.keys()))}"
        if server.text_only and isinstance(body["prompt"], list):
            return 422, "a prompt is text"
        return None

    def stream(self, body, prompt, tokens, fault):
        server, with_ids = self.served, self.served.ids and body.get("return_token_ids")
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for index, token in enumerate(tokens):
            choice = {"index": 0, "text": server.tokenizer.decode([token], skip_special_tokens=True), "finish_reason": None}
            if index == len(tokens) - 1:
                choice["finish_reason"] = "stop" if token == server.tokenizer.eos_token_id else "length"
            self.event({"choices": [choice | ({"token_ids": [token]} if with_ids else {})]})
            if index == 1 and fault in ("hang up", "malformed", "error"):
                if fault == "hang up":
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.chunk(b"data: {broken\n\n" if fault == "malformed" else b'data: {"error": {"message": "out of memory"}}\n\n')
        self.wfile.flush()
        server.count(len(tokens) + (7 if fault == "foreign" else 0), 2 if fault == "foreign" else 1) if not server.late_s else None
        if fault != "no usage":
            wrong = {"wrong usage": (0, -13), "more usage": (0, 1), "other prompt": (1, 0)}.get(fault, (0, 0))
            usage = {"prompt_tokens": len(prompt) + wrong[0], "completion_tokens": len(tokens) + wrong[1]}
            last = {"choices": [], "usage": usage}
            self.event(last | ({"timings": {"draft_n": 3 * len(tokens), "draft_n_accepted": len(tokens) // 2}} if server.timings else {}))
        self.chunk(b": a comment\n\ndata: [DONE]\n\n")
        self.chunk(b"")
        if server.late_s:
            threading.Timer(server.late_s, server.count, (len(tokens),)).start()

    def event(self, fields):
        self.chunk(b"data: " + json.dumps(fields).encode() + b"\n\n")

    def chunk(self, data):
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def reply(self, status, body):
        packed = body.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(packed)))
        self.end_headers()
        self.wfile.write(packed)
