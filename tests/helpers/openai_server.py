"""A small OpenAI-compatible server on the loopback: a tiny model's greedy text, streamed, with usage and counters, or spoilt on demand."""

import json
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from helpers.tiny_target import write_target

EXTENSIONS = {"top_k", "min_p", "repetition_penalty", "return_token_ids", "stop_token_ids"}
VLLM = ("vllm:request_success_total", "vllm:generation_tokens_total", "vllm:spec_decode_num_drafts_total",
        "vllm:spec_decode_num_accepted_tokens_total", "vllm:spec_decode_num_draft_tokens_total")  # fmt: skip
SGLANG = ("sglang:num_requests_total", "sglang:generation_tokens_total", "sglang:spec_verify_calls_total")


def write_plain_target(folder: Path) -> Path:
    """A tiny target whose answers are printable ASCII, so that its text has as many tokens as its answer."""
    model = AutoModelForCausalLM.from_pretrained(write_target(folder))
    signs = AutoTokenizer.from_pretrained(folder).convert_ids_to_tokens(list(range(model.config.vocab_size)))
    for token, sign in enumerate(signs):
        if len(sign) > 1 or not "!" <= sign <= "~":
            model.lm_head.weight.data[token] = 0
    model.save_pretrained(folder)
    return folder


@dataclass
class Server:
    """Answers while used as a context manager. ``spoilt`` maps a piece of a prompt to what goes wrong with its answer:

    "500", "hang up", "malformed", "error", "no usage", "wrong usage", "other prompt", "foreign" (another request beside it).
    """

    folder: Path
    ids: bool = False  # tells token ids when asked
    strict: bool = False  # refuses what OpenAI does not know
    text_only: bool = False  # refuses prompts of token ids
    counters: tuple[str, ...] = VLLM  # none: no /metrics
    late_s: float = 0.0  # after an answer it is counted
    timings: bool = False  # llama.cpp's, with each answer
    key: str = ""
    models: tuple[str, ...] = ("tiny",)
    spoilt: dict[str, str] = field(default_factory=dict)
    asked: list[dict] = field(default_factory=list)

    def __post_init__(self):
        self.model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float64)
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
        """One request of ``tokens``, of which the drafts of every other round were accepted one by one."""
        rounds = max(2 * (tokens - 1) // 3, 1) if tokens > 1 else 0
        grown = (requests, tokens, rounds, tokens - 1 - rounds, 5 * rounds)
        for name, more in zip(self.counters, grown, strict=False):
            self.totals[name] += more


class Handler(BaseHTTPRequestHandler):
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
        server.asked.append({**body, "authorization": self.headers.get("Authorization")})
        refused = self.refused(body)
        if refused:
            self.reply(*refused)
            return
        prompt = body["prompt"]
        ids = prompt if isinstance(prompt, list) else server.tokenizer(prompt).input_ids
        text = server.tokenizer.decode(ids)
        spoilt = next((how for piece, how in server.spoilt.items() if piece in text), "")
        if spoilt == "500":
            self.reply(500, json.dumps({"error": {"message": "out of\nmemory"}}))
            return
        self.stream(body, ids, server.answer(ids, body["max_tokens"]), spoilt)

    def refused(self, body):
        server = self.served
        if server.key and self.headers.get("Authorization") != f"Bearer {server.key}":
            return 401, "wrong key"
        if server.strict and EXTENSIONS & body.keys():
            return 400, f"unknown: {', '.join(sorted(EXTENSIONS & body.keys()))}"
        if server.text_only and isinstance(body["prompt"], list):
            return 422, "a prompt is text"
        return None

    def stream(self, body, prompt, tokens, spoilt):
        server, told = self.served, self.served.ids and body.get("return_token_ids")
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for place, token in enumerate(tokens):
            choice = {"index": 0, "text": server.tokenizer.decode([token], skip_special_tokens=True), "finish_reason": None}
            if place == len(tokens) - 1:
                choice["finish_reason"] = "stop" if token == server.tokenizer.eos_token_id else "length"
            self.event({"choices": [choice | ({"token_ids": [token]} if told else {})]})
            if place == 1 and spoilt in ("hang up", "malformed", "error"):
                if spoilt == "hang up":
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.chunk(b"data: {broken\n\n" if spoilt == "malformed" else b'data: {"error": {"message": "out of memory"}}\n\n')
        self.wfile.flush()
        server.count(len(tokens) + (7 if spoilt == "foreign" else 0), 2 if spoilt == "foreign" else 1) if not server.late_s else None
        if spoilt != "no usage":
            wrong = {"wrong usage": (0, 40), "other prompt": (1, 0)}.get(spoilt, (0, 0))
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
