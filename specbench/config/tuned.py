"""The file that ``tune`` writes and ``run --config`` reads: options by method, and what they were tuned on."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from methods import registry
from methods.core.errors import UserError, unknown
from methods.registry import METHODS
from specbench.util.files import whole

FACTS = ("target", "target_sha256", "dtype", "device", "backend")  # what a run has to agree with
NEXT = "tune for this run (specbench tune), or leave --config out"


@dataclass(frozen=True)
class Config:
    """``methods``: option by option of each method; ``tuned_on``: facts of the tuning run, ``FACTS`` at least. All of it is plain JSON."""

    methods: Mapping[str, Mapping[str, int]]
    tuned_on: Mapping[str, Any]
    source: str  # the file, for messages

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises UserError for a file that is missing, no TOML, or not of this form."""
        try:
            text = path.read_text(encoding="utf-8")
            found = tomllib.loads(text)
        except OSError as error:
            raise UserError(f"config file {path} cannot be read ({error.strerror}); make one with: specbench tune --out FILE") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"config file {path} is not TOML ({error}); make one with: specbench tune --out FILE") from None
        methods, facts = found.get("methods"), found.get("tuned_on")
        if not isinstance(methods, dict) or not isinstance(facts, dict) or not all(isinstance(facts.get(key), str) for key in FACTS):
            raise UserError(
                f"config file {path} needs [methods.NAME] and [tuned_on] with {', '.join(FACTS)}; make one with: specbench tune"
            )
        for name, options in methods.items():
            _check(path, name, options)
        return cls(methods, facts, str(path))

    def check(self, *, target: str, dtype: str, device: str, backend: str) -> None:
        """Raise UserError where the options were tuned for another target, dtype, kind of device or back end than the run's."""
        kind = device.partition(":")[0]
        for name, wanted in (("target", Path(target).name), ("dtype", dtype), ("device", kind), ("backend", backend)):
            tuned = Path(self.tuned_on[name]).name  # a target's folder may have moved
            if tuned != wanted:
                raise UserError(f"{self.source} was tuned for {name} {tuned!r}, the run is on {wanted!r}; {NEXT}")

    def check_weights(self, sha256: str) -> None:
        """The same for the target's weights, once they are loaded."""
        tuned = self.tuned_on["target_sha256"]
        if tuned != sha256:
            raise UserError(f"{self.source} was tuned for other weights (sha256 {tuned[:12]}, the target's are {sha256[:12]}); {NEXT}")

    def options(self, arm: str) -> dict[str, str]:
        """An arm's options as ``--set`` would give them; variants have their method's, an arm of another method none."""
        found = self.methods.get(registry.split(arm)[0], {})
        return {name: str(value) for name, value in found.items()}


def write(path: Path, methods: Mapping[str, Mapping[str, int]], tuned_on: Mapping[str, Any], tables: Mapping[str, Sequence[str]]) -> None:
    """The file as a whole; ``tables`` are lines for the human reader, by method, written as comments."""
    lines = ["# Written by `specbench tune`; use it with `specbench run --config`. --set overrides it.", "", "[tuned_on]"]
    lines += [f"{name} = {_toml(value)}" for name, value in tuned_on.items()]
    for method, options in methods.items():
        lines += ["", *(f"# {line}" for line in tables.get(method, ())), f"[methods.{method}]"]
        lines += [f"{name} = {value}" for name, value in options.items()]
    with whole(path) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _toml(value: str | int) -> str:
    return json.dumps(value)  # of a string or a whole number JSON's form is TOML's too


def _check(path: Path, name: str, options: Any) -> None:
    if name not in METHODS:
        raise UserError(f"config file {path}: {unknown('method', name, METHODS)}")
    keys = registry.options(name)
    for key, value in options.items() if isinstance(options, dict) else [("", None)]:
        if key not in keys:
            raise UserError(f"config file {path}: {unknown(f'option of {name}', key, keys)}")
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"config file {path}: {name}'s {key} is {value!r}; it must be a whole number")
