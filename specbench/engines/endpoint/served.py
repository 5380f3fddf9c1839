"""Which model a server serves, and what it says of itself."""

import json
from dataclasses import dataclass
from typing import Any

from methods.core.errors import UserError, unknown
from specbench.config.options import Options
from specbench.engines.endpoint.client import Client, ServerError, one_line

VERSIONS = (("/version", "version"), ("/server_info", "version"), ("/props", "build_info"))  # vLLM's, SGLang's, llama.cpp's


@dataclass(frozen=True)
class Served:
    """``words``: the model, where it is, and the engine by its own name and version, as far as it tells."""

    client: Client
    model: str
    words: str


def served(options: Options) -> Served:
    """Raises UserError for a server that cannot be reached, and for a model that it does not serve."""
    if not options.base_url:
        raise UserError("endpoint needs a server; pass --base-url, as in --base-url http://localhost:8000")
    client = Client.of(options.base_url)
    try:
        listed = _fields(client.get("/v1/models")).get("data")
    except ServerError as error:
        raise UserError(f"--base-url: {error}; start the server or correct the address") from None
    models = {str(each["id"]): each for each in listed or [] if isinstance(each, dict) and "id" in each}
    name = options.endpoint_model or (next(iter(models)) if len(models) == 1 else None)
    if name is None:
        raise UserError(f"{client.address} serves {', '.join(sorted(models)) or 'no model'}; choose one by --endpoint-model")
    if name not in models:
        raise unknown("model in --endpoint-model", name, models)
    engine = " ".join(filter(None, (str(models[name].get("owned_by") or ""), _version(client))))
    return Served(client, name, one_line(", ".join(filter(None, (f"{name} at {client.host}", engine)))))


def _version(client: Client) -> str:
    """By the first address that tells it; "" where none does."""
    for path, key in VERSIONS:
        try:
            found = _fields(client.get(path)).get(key)
        except ServerError:
            continue
        if isinstance(found, str):
            return found
    return ""


def _fields(body: str) -> dict[str, Any]:
    """Raises ServerError for what is no JSON object."""
    try:
        fields = json.loads(body)
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise ServerError(f"no JSON object came from it but {one_line(body)!r}")
    return fields
