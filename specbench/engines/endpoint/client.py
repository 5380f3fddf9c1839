"""A client of an OpenAI-compatible server: single GETs, and answers streamed as server-sent events.

Whatever a server does, a request ends within a stated time and takes a stated amount of memory.
"""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from socket import SHUT_RDWR, socket
from threading import Event, Timer
from typing import Any
from urllib.parse import urlsplit

from methods.core.errors import UserError
from methods.core.json_text import parse_json
from specbench.util.text import one_line

KEY_VARIABLES = ("SPECBENCH_API_KEY", "OPENAI_API_KEY")  # environment variables; the key is sent, never stored
CONNECT_S, READ_S = 10.0, 300.0  # timeouts; the first token of a long prompt takes its time
ANSWER_S, GET_S = 1800.0, 30.0  # the longest that an answer, and any other page, may take from request to end
LARGEST_LINE, LARGEST_BODY = 2**20, 2**26  # bytes of a line of a stream, and of a whole stream or page
MESSAGE_LENGTH = 200  # characters of a server's message that are shown


class ServerError(RuntimeError):
    """A request that got no usable answer, described in one line."""


class RequestRejected(ServerError):
    """A request that the server declined with HTTP 4xx."""


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
        with self._connected(GET_S) as connection:
            body = self._send(connection, "GET", path, None).read(LARGEST_BODY + 1)
        if len(body) > LARGEST_BODY:
            raise ServerError(f"{self.address}{path} is larger than {LARGEST_BODY:,} bytes")
        return body.decode("utf-8", "replace")

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
        encoded = json.dumps(body).encode()
        with self._connected(ANSWER_S) as connection:
            yield StreamEvent({}, time.perf_counter())
            response = self._send(connection, "POST", path, encoded)
            for line in self._lines(response):
                data = line.removeprefix(b"data:").strip()
                if data == b"[DONE]":
                    response.read(LARGEST_LINE)  # the last chunk's end: closing before it may look like a client that gave up
                    return
                if data and line.startswith(b"data:"):
                    yield StreamEvent(self._event_fields(data), time.perf_counter())
            raise HTTPException("hung up before the end of its answer")

    @contextmanager
    def _connected(self, seconds: float) -> Iterator[HTTPConnection]:
        """Yield an open connection for so many seconds. Then it is shut down, so that no server can keep us by sending little.

        Raises ServerError for whatever fails, or takes longer.
        """
        connection, late = (HTTPSConnection if self.scheme == "https" else HTTPConnection)(self.host, timeout=CONNECT_S), Event()
        try:
            connection.connect()
            connection.timeout = READ_S
            connection.sock.settimeout(READ_S)
            with _shut_down_after(seconds, connection.sock, late):
                yield connection
            if late.is_set():
                raise TimeoutError
        except ServerError:
            raise
        except Exception as error:  # http.client raises what it likes: for a chunk of less than no bytes, a ValueError
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if isinstance(error, TimeoutError):
                reason = f"sent nothing for {connection.timeout:g} s"
            raise ServerError(
                f"{self.address}: {f'did not end within {seconds:g} s' if late.is_set() else beginning(str(reason))}"
            ) from None
        finally:
            connection.close()

    def _lines(self, response: HTTPResponse) -> Iterator[bytes]:
        left = LARGEST_BODY
        while line := response.readline(LARGEST_LINE + 1):
            left -= len(line)
            if len(line) > LARGEST_LINE or left < 0:
                raise ServerError(f"{self.address} sent a line of more than {LARGEST_LINE:,} bytes, or {LARGEST_BODY:,} in one answer")
            yield line

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


@contextmanager
def _shut_down_after(seconds: float, connection: socket, late: Event) -> Iterator[None]:
    """Shut a connection down, and set ``late``, if the block takes longer, whatever it waits for."""

    def shut_down() -> None:
        late.set()
        with suppress(OSError):  # it has ended by itself
            connection.shutdown(SHUT_RDWR)

    timer = Timer(seconds, shut_down)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def beginning(text: str) -> str:
    """Return the beginning of a server's text on one line, without characters that control a terminal."""
    return one_line(text)[:MESSAGE_LENGTH]


def _json_object(text: str | bytes) -> dict[str, Any] | None:
    """Return a JSON object, or None if the text is something else."""
    try:
        fields = parse_json(text)
    except ValueError:
        return None
    return fields if isinstance(fields, dict) else None
