"""The least HTTP an OpenAI-compatible server needs: a GET, and a POST whose answer is a stream of server-sent events."""

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from methods.core.errors import UserError
from specbench.util.text import visible

KEYS = ("SPECBENCH_API_KEY", "OPENAI_API_KEY")  # of the environment; sent, never kept
CONNECT_S, READ_S = 10.0, 300.0  # a long prompt may keep the first token waiting
SAID = 200  # characters of a server's complaint


class ServerError(RuntimeError):
    """One answer that a server did not give, in one line."""


class Refused(ServerError):
    """The server was reached and declined the request (HTTP 4xx)."""


@dataclass(frozen=True)
class Event:
    """One event of a stream, and when it had arrived, on ``time.perf_counter``'s scale."""

    fields: dict[str, Any]
    arrived_s: float


@dataclass(frozen=True)
class Client:
    """A server by its address. Every request has a connection of its own, so that none inherits what another left."""

    scheme: str
    host: str  # with the port, where one is given
    path: str  # before /v1

    @classmethod
    def of(cls, base_url: str) -> "Client":
        """From ``http://host:8000``, with or without ``/v1``. Raises UserError for what is no such address, or holds a password."""
        try:
            parts = urlsplit(base_url)
            known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
            known = known and base_url.isascii() and base_url.isprintable() and " " not in base_url
            (parts.hostname or "").encode("idna")
        except ValueError:  # a port that is no number, a name that is too long
            known = False
        if not known:
            raise UserError(f"--base-url {base_url!r} is no address of a server; give one such as http://localhost:8000")
        for name in KEYS:
            if not (os.environ.get(name, "").strip() or "-").isascii():
                raise UserError(f"{name} holds characters that no key has; set it anew, or unset it")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise UserError(f"--base-url may hold no user, password or query: the manifest keeps it; put the key into {KEYS[0]}")
        return cls(parts.scheme, parts.netloc, parts.path.rstrip("/").removesuffix("/v1"))

    @property
    def address(self) -> str:
        return f"{self.scheme}://{self.host}{self.path}"

    def get(self, path: str) -> str:
        """The body. Raises ServerError."""
        connection = self._connected()
        try:
            return self._asked(connection, "GET", path, None).read().decode("utf-8", "replace")
        except (OSError, HTTPException) as error:
            raise self._failure(error) from None
        finally:
            connection.close()

    def stream(self, path: str, body: dict[str, Any]) -> Iterator[Event]:
        """First an event without fields, once the connection stands and the request is about to be sent; then the server's, as they arrive.

        Raises ServerError: unreachable, refused, malformed, or cut off before ``[DONE]``.
        """
        connection = self._connected()
        packed = json.dumps(body).encode()
        try:
            yield Event({}, time.perf_counter())
            response = self._asked(connection, "POST", path, packed)
            while line := response.readline():
                data = line.removeprefix(b"data:").strip()
                if data == b"[DONE]":
                    response.read()  # the end of the last chunk: a server may take a connection cut before it for a client that gave up
                    return
                if data and line.startswith(b"data:"):
                    yield Event(self._event(data), time.perf_counter())
            raise ServerError(f"{self.address} hung up before the end of its answer")
        except (OSError, HTTPException) as error:
            raise self._failure(error) from None
        finally:
            connection.close()

    def _connected(self) -> HTTPConnection:
        connection = (HTTPSConnection if self.scheme == "https" else HTTPConnection)(self.host, timeout=CONNECT_S)
        try:
            connection.connect()
        except OSError as error:
            raise self._failure(error) from None
        connection.sock.settimeout(READ_S)
        return connection

    def _asked(self, connection: HTTPConnection, method: str, path: str, body: bytes | None) -> HTTPResponse:
        key = next((found for name in KEYS if (found := os.environ.get(name, "").strip())), None)
        headers = {"Content-Type": "application/json", "Connection": "close"} | ({"Authorization": f"Bearer {key}"} if key else {})
        connection.request(method, self.path + path, body, headers)
        response = connection.getresponse()
        if response.status != 200:
            said = one_line(response.read(4 * SAID).decode("utf-8", "replace"))
            kind = Refused if 400 <= response.status < 500 else ServerError
            raise kind(f"HTTP {response.status} from {self.address}{path}: {said or response.reason}")
        return response

    def _event(self, data: bytes) -> dict[str, Any]:
        try:
            fields = json.loads(data)
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            raise ServerError(f"{self.address} sent an event that is no JSON object: {one_line(data.decode('utf-8', 'replace'))!r}")
        if "error" in fields:
            raise ServerError(f"{self.address} failed: {one_line(str(fields['error']))}")
        return fields

    def _failure(self, error: Exception) -> ServerError:
        if isinstance(error, TimeoutError):
            return ServerError(f"{self.address} did not answer in time")
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return ServerError(f"{self.address}: {one_line(str(reason))}")


def one_line(text: str) -> str:
    """A server's words, as much of them as a line holds, that cannot steer a terminal."""
    return visible(" ".join(text.split()))[:SAID]
