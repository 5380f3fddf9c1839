"""The endpoint engine: a whole run against an OpenAI-compatible server, and everything that a server can do wrong."""

import dataclasses
import io
import re
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.openai_server import SGLANG, Server, write_plain_target
from helpers.tiny_target import QUESTIONS, write_suite

from methods.core.acceptance import Sampling
from methods.core.errors import UserError
from specbench.cli import app, common
from specbench.config.options import RunConfig
from specbench.engines.endpoint import counters
from specbench.engines.endpoint.client import Client, ServerError
from specbench.engines.endpoint.counters import VLLM, Counters, drafting_of_timings, parse_metrics
from specbench.lossless.divergence import explain
from specbench.measure.runner import LocalExecutor, run
from specbench.measure.session import prepare
from specbench.store import records
from specbench.store.manifest import RunManifest
from specbench.store.records import Drafting
from specbench.util.terminal import Console

torch.set_num_threads(1)
TURNS = sum(len(turns) for _, _, turns in QUESTIONS)
TOKENS = 14
KEY = "sk-not-to-be-kept"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_plain_target(tmp_path_factory.mktemp("target"))


@pytest.fixture
def options(folder, tmp_path):
    suite = write_suite(tmp_path / "suite.jsonl")
    return RunConfig(["endpoint"], str(folder), suite_file=suite, max_new_tokens=TOKENS, dtype="fp64", device="cpu")


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    for name in ("SPECBENCH_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def command(options, server, out, *more):
    given = ["run", "--method", "endpoint", "--base-url", f"{server.url}/v1/", "--target", options.target, "--dtype", "fp64"]
    return [*given, "--suite-file", str(options.suite_file), "--max-new-tokens", str(TOKENS), "--device", "cpu", "--out", str(out), *more]


def ended(arguments):
    with pytest.raises(SystemExit) as end:
        app.main(arguments)
    return int(end.value.code or 0)


def records_by_key(run_dir):
    return {record.key: record for record in records.read(run_dir)[0]}


def ready(options, server):
    """Return the session and its arm of the server."""
    session = prepare(dataclasses.replace(options, base_url=server.url))
    (arm,) = session.others
    return session, arm


def encoded(session, text="Say a b c."):
    return session.chat.encode([text], [])


def refusal(options, **named):
    with pytest.raises(UserError) as caught:
        prepare(dataclasses.replace(options, **named))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_whole_run_with_a_server_that_sends_text(options, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr(common.console, "_width", 300)
    out = tmp_path / "run"
    with Server(folder, key=KEY) as server:
        assert ended(command(options, server, out, "--method", "pld")) == 0
    shown = capsys.readouterr().out
    for (method, *key), record in records_by_key(out).items():
        if method == "endpoint":
            twin = records_by_key(out)["vanilla", *key]
            assert (record.status, record.error, record.timing) == ("ok", "", "answer")
            assert (record.output_text, record.tokens, record.output_ids) == (twin.output_text, len(twin.output_ids), [])
            assert (record.stop, record.prompt_tokens, record.peak_bytes) == (twin.stop, twin.prompt_tokens, 0)
            assert 0 < record.prefill_s < record.total_s
            assert record.drafting == Drafting(2 * 13 // 3, 13 - 2 * 13 // 3, 5 * (2 * 13 // 3))
    assert len(records_by_key(out)) == 3 * TURNS
    mark = f"Endpoint (different engine: tiny at {server.url.removeprefix('http://')}, vllm 0.99.1)"
    markdown = (out / "report" / "report.md").read_text()
    for text in (shown, markdown, next((out / "report").glob("*/tables.tex")).read_text()):
        assert mark in text.replace("\\_", "_")
    (row,) = [line for line in markdown.split("### All categories")[1].splitlines() if line.startswith("| Endpoint")][:1]
    assert f"| {1 + 5 / 8:.2f} | — |" in row, "MAT by the server's counters, no R"
    assert f"100.0 % of {TURNS} by text" in row
    assert f"known for {TURNS} of its {TURNS} turns" in shown
    assert "the server sends no token ids" in shown
    assert "from our count by more than" not in shown
    facts = RunManifest.read(out).arms["endpoint"]
    assert facts.config["base_url"] == server.url
    assert facts.config | {"model": "tiny", "prompt": "token ids", "answer": "text", "options": "extended"} == facts.config
    assert not [path for path in out.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert [arm.arm for arm in explain(out).arms] == ["pld"], "an answer without token ids cannot be judged"


def test_run_with_a_server_that_sends_token_ids_compares_them_and_resumes(options, folder, tmp_path, capsys):
    out = tmp_path / "run"
    with Server(folder, ids=True, counters=()) as server:
        session, _ = ready(options, server)
        run(LocalExecutor(session), out, Console(file=io.StringIO()))
        whole = records_by_key(out)
        ours = {key: record for key, record in whole.items() if key[0] == "endpoint"}
        assert all(record.output_ids == whole["vanilla", *key[1:]].output_ids for key, record in ours.items())
        assert {record.tokens for record in ours.values()} == {None}
        (arm,) = explain(out).arms
        assert (arm.arm, arm.compared, arm.share) == ("endpoint", TURNS, 1.0)
        lines = (out / records.FILE).read_bytes().splitlines(keepends=True)
        (out / records.FILE).write_bytes(b"".join(lines[:-3]))
        assert ended(["resume", str(out)]) == 0
        assert {key: record.output_ids for key, record in records_by_key(out).items()} == {key: r.output_ids for key, r in whole.items()}
        (out / records.FILE).write_bytes(b"".join(lines[:-3]))
    capsys.readouterr()
    assert ended(["resume", str(out)]) == 2
    assert re.fullmatch(r"error: --base-url: http://127.0.0.1:\d+: Connection refused; start the server or .*\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("500", r"ServerError: HTTP 500 from http://127.0.0.1:\d+/v1/completions: .*out of.*memory"),
        ("hang up", r"ServerError: http://127.0.0.1:\d+: hung up before the end of its answer"),
        ("malformed", "ServerError: .* sent an event that is no JSON object: '{broken'"),
        ("error", "ServerError: .* failed: .*out of memory"),
        ("no usage", "ServerError: .* sent no usage with its answer"),
        ("wrong usage", "ServerError: .* counts 1 tokens where ours counts 14: more than 8 tokens and 25% apart"),
        ("more usage", "ServerError: .* sent more than the 14 tokens that it was asked for"),
        ("other prompt", "ServerError: .* read 24 tokens where the prompt has 23: it has another tokenizer"),
    ],
)
def test_faulty_answer_is_an_error_record_and_the_run_goes_on(options, folder, tmp_path, fault, message):
    with Server(folder, counters=(), faults={"How much": fault}) as server:
        session, _ = ready(dataclasses.replace(options, categories=["numbers"]), server)
        run(LocalExecutor(session), tmp_path / "run", Console(file=io.StringIO()))
    answers = [record for key, record in records_by_key(tmp_path / "run").items() if key[0] == "endpoint"]
    assert [record.question_id for record in answers if record.status == "error"] == ["n2"]
    (failed,) = [record for record in answers if record.status == "error"]
    assert re.fullmatch(message + ".*", failed.error), failed.error
    assert (failed.total_s, failed.tokens, failed.drafting) == (0.0, None, None)


def test_drafting_is_unknown_if_another_request_was_counted(options, folder):
    with Server(folder, faults={"foreign": "foreign"}) as server:
        session, arm = ready(options, server)
        assert arm.answer(encoded(session), Sampling(TOKENS)).drafting == Drafting(8, 5, 40)
        assert arm.answer(encoded(session, "foreign"), Sampling(TOKENS)).drafting is None
        assert arm.answer(encoded(session), Sampling(TOKENS)).drafting == Drafting(8, 5, 40)


def test_counters_that_grow_late_are_waited_for(options, folder, monkeypatch):
    with Server(folder, late_s=0.1) as server:
        session, arm = ready(options, server)
        time.sleep(0.2)  # the probe has been counted by then
        assert arm.answer(encoded(session), Sampling(TOKENS)).drafting == Drafting(8, 5, 40)
        monkeypatch.setattr(counters, "DELAY_S", 0.0)
        answer = arm.answer(encoded(session), Sampling(TOKENS))
        assert answer.drafting is None
        assert answer.total_s < 5


def test_drafting_from_counters_of_sglang_and_timings_of_llama_cpp(options, folder):
    with Server(folder, counters=SGLANG) as server:
        session, arm = ready(options, server)
        assert arm.answer(encoded(session), Sampling(TOKENS)).drafting == Drafting(8, 5, None)
    with Server(folder, counters=(), timings=True) as server:
        session, arm = ready(options, server)
        assert arm.answer(encoded(session), Sampling(TOKENS)).drafting == Drafting(TOKENS - 1 - 7, 7, 42)
    assert drafting_of_timings({"draft_n": 0}, 5) is None
    assert parse_metrics('a{b="1 2"} 3\na{b="2"} 4.5e+01\nc NaN\n# TYPE a counter\n\nd 7 1700000000\n') == {"a": 48.0, "d": 7.0}


def test_request_has_the_sampling_settings_of_the_run(options, folder):
    with Server(folder, counters=()) as server:
        session, arm = ready(options, server)
        arm.answer(encoded(session), Sampling(5, 0.7, session.stop_ids, 2**40 + 3))
        assert server.requests[-1] | {
            "model": "tiny", "prompt": encoded(session), "max_tokens": 5, "temperature": 0.7, "seed": 3, "top_p": 1.0, "top_k": -1,
            "stream_options": {"include_usage": True}, "stop_token_ids": sorted(session.stop_ids), "authorization": None,
        } == server.requests[-1]  # fmt: skip
        assert len(arm.answer([70] * (session.target.context - 9), Sampling(100)).output_text) == 9 == server.requests[-1]["max_tokens"]


@pytest.mark.parametrize(
    ("how", "prompt", "extended"), [({"strict": True}, "token ids", "OpenAI's"), ({"strict": True, "text_only": True}, "text", "OpenAI's")]
)
def test_request_style_follows_what_the_server_accepts(options, folder, how, prompt, extended):
    with Server(folder, counters=(), **how) as server:
        session, arm = ready(options, server)
        config = session.manifest.arms["endpoint"].config
        assert (config["prompt"], config["options"]) == (prompt, extended)
        truth = session.own[0].answer(encoded(session), Sampling(TOKENS)).output_ids
        assert arm.answer(encoded(session), Sampling(TOKENS)).output_text == session.tokenizer.decode(truth)


def test_unusable_server_is_a_user_error(options, folder, monkeypatch):
    probe = {"How are you?": "no usage"}
    with Server(folder, counters=(), faults=probe) as server:
        assert "sent no usage with its answer" in refusal(options, base_url=server.url)
    with Server(folder, counters=(), faults={"How are you?": "other prompt"}) as server:
        assert "another tokenizer than the target" in refusal(options, base_url=server.url)
    with Server(folder, key=KEY) as server:
        assert "HTTP 401 from" in (message := refusal(options, base_url=server.url))
        assert "a key in SPECBENCH_API_KEY" in message
    monkeypatch.setattr("specbench.targets.load", None)
    assert "Connection refused; start the server" in refusal(options, base_url=server.url)
    with Server(folder, models=("tiny", "large")) as server:
        assert "serves large, tiny; choose one by --endpoint-model" in refusal(options, base_url=server.url)
        assert "did you mean 'large'?" in refusal(options, base_url=server.url, endpoint_model="larg")
    for address in ("localhost:8000", "ftp://localhost", "http://", "http://localhost:port"):
        assert "is no address of a server" in refusal(options, base_url=address)
    for address in ("http://me:secret@localhost", "http://localhost?key=secret"):
        assert "secret" not in (message := refusal(options, base_url=address))
        assert "put the key into SPECBENCH_API_KEY" in message


def test_unknown_host_is_a_server_error(monkeypatch):
    with pytest.raises(ServerError, match=r"http://no-such-host\.invalid: "):
        Client.from_url("http://no-such-host.invalid").get("/v1/models")
    assert Client.from_url("https://host/some/path/v1/").address == "https://host/some/path"


def test_steps_without_drafts_are_counted():
    totals = [[0] * 5, [1, 101, 10, 30, 50]]
    texts = ["\n".join(f"{name} {value}" for name, value in zip(dataclasses.astuple(VLLM), values, strict=True)) for values in totals]
    client: Any = SimpleNamespace(get=lambda path: texts.pop(0))
    counters = Counters(client, VLLM)
    before = counters.read()
    assert before is not None
    assert counters.drafting_since(before, 101) == Drafting(70, 30, 50), "10 steps with drafts and 60 without"


def test_unreadable_counters_do_not_fail_an_answer():
    def silent(path):
        raise ServerError("it did not answer in time")

    client: Any = SimpleNamespace(get=silent)
    counters = Counters(client, VLLM)
    assert counters.read() is None
    assert counters.drafting_since({}, 3) is None


@pytest.mark.parametrize("address", ["http://my host:1", f"http://{'a' * 70}.com", "http://localhost/\u00e9", "http://[::1", "ftp://x"])
def test_malformed_address_is_a_user_error(address):
    with pytest.raises(UserError, match="is no address of a server"):
        Client.from_url(address)


def test_key_is_sent_stripped_and_never_shown(folder, monkeypatch):
    monkeypatch.setenv("SPECBENCH_API_KEY", "sk-secret\n")
    with Server(folder) as server:
        Client.from_url(server.url).get("/metrics")
    monkeypatch.setenv("SPECBENCH_API_KEY", "sk-s\u00e9cret")
    with pytest.raises(UserError, match="SPECBENCH_API_KEY holds characters") as caught:
        Client.from_url("http://localhost")
    assert "cret" not in str(caught.value)
