"""A client of an OpenAI-compatible server: its models, single GETs, and answers streamed as server-sent events."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from methods.core.errors import UserError, unknown
from methods.core.json_text import parse_json
from specbench.config.options import RunConfig
from specbench.util.text import one_line

KEY_VARIABLES = ("SPECBENCH_API_KEY", "OPENAI_API_KEY")  # environment variables; the key is sent, never stored
CONNECT_S, READ_S = 10.0, 300.0  # timeouts; the first token of a long prompt takes its time
MESSAGE_LENGTH = 200  # characters of a server's message that are shown
VERSIONS = (("/version", "version"), ("/server_info", "version"), ("/props", "build_info"))  # of vLLM, SGLang, llama.cpp


class ServerError(RuntimeError):
    """A request that got no usable answer, described in one line."""


class RequestRejected(ServerError):
    """A request that the server declined with HTTP 4xx."""


class CountTolerance(NamedTuple):
    """How far a server's count of an answer's tokens may be from ours: ``tokens`` plus ``share`` of ours.

    Text that is tokenized again has lost its stop token and may split in other places, so small differences are no error.
    """

    tokens: int
    share: float

    def exceeded(self, reported: float, counted: float) -> bool:
        """Return whether the server's count is farther from ours than that."""
        return abs(reported - counted) > self.tokens + self.share * counted

    def __str__(self) -> str:
        return f"{self.tokens} tokens and {self.share:.0%}"


REMARKED = CountTolerance(2, 0.02)  # beyond it, a report says so
REFUSED = CountTolerance(8, 0.25)  # beyond it, the turn is an error


@dataclass(frozen=True)
class StreamEvent:
    """One event of a stream and the time it arrived, as ``time.perf_counter`` tells it."""

    fields: dict[str, Any]
    arrived_s: float


@dataclass(frozen=True)
class Client:
    """A server by its address. Every request opens its own connection, so that no failure affects the next request."""

    scheme: str
    host: str  # with the port, if one is given
    path: str  # before /v1

    @classmethod
    def from_url(cls, base_url: str) -> "Client":
        """Return the client of ``http://host:8000``, with or without ``/v1``.

        Raises UserError if the URL is malformed or holds a password, or if the key in the environment cannot be one.
        """
        try:
            parts = urlsplit(base_url)
            valid = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
            valid = valid and base_url.isascii() and base_url.isprintable() and " " not in base_url
            (parts.hostname or "").encode("idna")
        except ValueError:  # a port that is not a number, a name that is too long
            valid = False
        if not valid:
            raise UserError(f"--base-url {base_url!r} is no address of a server; give one such as http://localhost:8000")

        for name in KEY_VARIABLES:
            if not (os.environ.get(name, "").strip() or "-").isascii():
                raise UserError(f"{name} holds characters that no key has; set it anew, or unset it")

        if parts.username or parts.password or parts.query or parts.fragment:
            raise UserError(f"--base-url may hold no user, password or query: the manifest keeps it; put the key into {KEY_VARIABLES[0]}")
        return cls(parts.scheme, parts.netloc, parts.path.rstrip("/").removesuffix("/v1"))

    @property
    def address(self) -> str:
        """The URL without ``/v1``."""
        return f"{self.scheme}://{self.host}{self.path}"

    def get(self, path: str) -> str:
        """Return the body at a path. Raises ServerError."""
        connection = self._connect()
        try:
            return self._send(connection, "GET", path, None).read().decode("utf-8", "replace")
        except (OSError, HTTPException) as error:
            raise self._failure(error) from None
        finally:
            connection.close()

    def get_object(self, path: str) -> dict[str, Any]:
        """Return the JSON object at a path. Raises ServerError, also for any other body."""
        body = self.get(path)
        fields = _json_object(body)
        if fields is None:
            raise ServerError(f"no JSON object came from it but {beginning(body)!r}")
        return fields

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[StreamEvent]:
        """Yield an event without fields when the request is about to be sent, then the server's events as they arrive.

        The connection is open before the first event, so that connecting is not timed. Raises ServerError if the server is
        unreachable, declines, sends something malformed, or ends before ``[DONE]``.
        """
        connection = self._connect()
        encoded = json.dumps(body).encode()
        try:
            yield StreamEvent({}, time.perf_counter())
            response = self._send(connection, "POST", path, encoded)
            while line := response.readline():
                data = line.removeprefix(b"data:").strip()
                if data == b"[DONE]":
                    response.read()  # the last chunk's end: closing before it may look like a client that gave up
                    return
                if data and line.startswith(b"data:"):
                    yield StreamEvent(self._event_fields(data), time.perf_counter())
            raise ServerError(f"{self.address} hung up before the end of its answer")
        except (OSError, HTTPException) as error:
            raise self._failure(error) from None
        finally:
            connection.close()

    def _connect(self) -> HTTPConnection:
        connection = (HTTPSConnection if self.scheme == "https" else HTTPConnection)(self.host, timeout=CONNECT_S)
        try:
            connection.connect()
        except OSError as error:
            raise self._failure(error) from None
        connection.sock.settimeout(READ_S)
        return connection

    def _send(self, connection: HTTPConnection, method: str, path: str, body: bytes | None) -> HTTPResponse:
        headers = {"Content-Type": "application/json", "Connection": "close"}
        key = next((value for name in KEY_VARIABLES if (value := os.environ.get(name, "").strip())), None)
        if key:
            headers["Authorization"] = f"Bearer {key}"

        connection.request(method, self.path + path, body, headers)
        response = connection.getresponse()
        if response.status != 200:
            message = beginning(response.read(4 * MESSAGE_LENGTH).decode("utf-8", "replace"))
            kind = RequestRejected if 400 <= response.status < 500 else ServerError
            raise kind(f"HTTP {response.status} from {self.address}{path}: {message or response.reason}")
        return response

    def _event_fields(self, data: bytes) -> dict[str, Any]:
        fields = _json_object(data)
        if fields is None:
            raise ServerError(f"{self.address} sent an event that is no JSON object: {beginning(data.decode('utf-8', 'replace'))!r}")
        if "error" in fields:
            raise ServerError(f"{self.address} failed: {beginning(str(fields['error']))}")
        return fields

    def _failure(self, error: Exception) -> ServerError:
        if isinstance(error, TimeoutError):
            return ServerError(f"{self.address} did not answer in time")
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return ServerError(f"{self.address}: {beginning(str(reason))}")


@dataclass(frozen=True)
class ServedModel:
    """A model that a server serves. ``description`` holds its name, its host, and the server's name and version if known."""

    client: Client
    name: str
    description: str


def find_model(config: RunConfig) -> ServedModel:
    """Return the model that a run asks for. Raises UserError if the server cannot be reached or does not serve it."""
    if not config.base_url:
        raise UserError("endpoint needs a server; pass --base-url, as in --base-url http://localhost:8000")
    client = Client.from_url(config.base_url)
    try:
        listed = client.get_object("/v1/models").get("data")
    except ServerError as error:
        raise UserError(f"--base-url: {error}; start the server or correct the address") from None

    models = {str(model["id"]): model for model in listed or [] if isinstance(model, dict) and "id" in model}
    name = config.endpoint_model or (next(iter(models)) if len(models) == 1 else None)
    if name is None:
        raise UserError(f"{client.address} serves {', '.join(sorted(models)) or 'no model'}; choose one by --endpoint-model")
    if name not in models:
        raise unknown("model in --endpoint-model", name, models)

    server = " ".join(filter(None, (str(models[name].get("owned_by") or ""), _server_version(client))))
    return ServedModel(client, name, beginning(", ".join(filter(None, (f"{name} at {client.host}", server)))))


def beginning(text: str) -> str:
    """Return the beginning of a server's text on one line, without characters that control a terminal."""
    return one_line(text)[:MESSAGE_LENGTH]


def _server_version(client: Client) -> str:
    """Return the version from the first path that tells it, or ""."""
    for path, key in VERSIONS:
        try:
            version = client.get_object(path).get(key)
        except ServerError:
            continue
        if isinstance(version, str):
            return version
    return ""


def _json_object(text: str | bytes) -> dict[str, Any] | None:
    """Return a JSON object, or None if the text is something else."""
    try:
        fields = parse_json(text)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None
