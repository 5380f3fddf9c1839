"""A run as asked for, on the command line or by the manifest of an earlier one."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from methods.core.errors import UserError, unknown
from specbench.config.tuned import Config
from specbench.store.manifest import IMPORTED, RunManifest
from specbench.store.records import AGAIN


@dataclass(frozen=True)
class Options:
    """A run as asked for; None stands for a default that depends on the device or on the other options."""

    methods: Sequence[str]
    target: str | None = None
    revision: str | None = None  # of a hub id
    template: str | None = None  # None: the target family's
    system_prompt: str | None = None  # None: the template's own
    thinking: str | None = None  # None: as the template has it
    suite: str | None = None
    suite_file: Path | None = None
    hf_columns: Mapping[str, str] = field(default_factory=dict)
    limit: int | None = None
    categories: Sequence[str] = ()
    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    dtype: str | None = None
    device: str | None = None
    device_map: str | None = None
    attention: str = "sdpa"
    backend: str | None = None
    repeats: int = 1
    turns: str = "own"
    overrides: Sequence[str] = ()  # KEY=VALUE or METHOD.KEY=VALUE
    drafter_files: Mapping[str, Path] = field(default_factory=dict)
    aa: str | None = None  # the arm that runs twice
    config: Config | None = None  # options that were tuned; ``overrides`` go before them
    base_url: str | None = None  # of the server that ``endpoint`` asks
    endpoint_model: str | None = None

    def __post_init__(self) -> None:
        least = {"max-new-tokens": (self.max_new_tokens, 1), "repeats": (self.repeats, 1), "temperature": (self.temperature, 0)}
        for name, (value, bound) in least.items():
            if not bound <= value < math.inf:
                raise UserError(f"--{name} is {value}; it must be at least {bound}")
        if self.turns not in ("own", "shared"):
            raise unknown("value of --turns", self.turns, ("own", "shared"))

    @classmethod
    def of(cls, manifest: RunManifest) -> "Options":
        """The options that make this run again. Raises UserError for imported answers, which no run made."""
        if manifest.target.get("label") == IMPORTED:
            raise UserError(f"{manifest.name} was imported, not measured here: it cannot be resumed, only reported")
        settings = asdict(manifest.settings)
        del settings["suite_sha256"]
        arms = settings.pop("methods")
        served = next((facts.config for facts in manifest.methods.values() if facts.engine and "base_url" in facts.config), {})
        twins = [name for name in arms if name.endswith(AGAIN)]
        return cls(
            **settings,
            methods=[name for name in arms if name not in twins],
            aa=twins[0].removesuffix(AGAIN) if twins else None,
            suite_file=Path(manifest.suite_file) if manifest.suite_file else None,
            hf_columns=manifest.hf_columns,
            overrides=manifest.overrides,
            drafter_files={kind: Path(file) for kind, file in manifest.drafter_files.items()},
            config=Config(**manifest.config) if manifest.config else None,
            base_url=served.get("base_url"),
            endpoint_model=served.get("model"),
        )
