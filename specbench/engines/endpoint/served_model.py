"""The model that a server serves, found when a run begins."""

from dataclasses import dataclass

from methods.core.errors import UserError, unknown
from specbench.config.options import RunConfig
from specbench.engines.endpoint.client import Client, ServerError, beginning

VERSIONS = (("/version", "version"), ("/server_info", "version"), ("/props", "build_info"))  # of vLLM, SGLang, llama.cpp


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
