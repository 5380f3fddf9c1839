"""Tuned tree sizes: the file that ``specbench tune`` writes and ``specbench run --config`` reads."""

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from methods.core.errors import UserError, unknown
from specbench.util.files import write_text
from specbench.util.text import one_line, shorten

NEXT_STEP = "tune for this run (specbench tune), or leave --config out"


@dataclass(frozen=True)
class TunedOn:
    """The tuning run: the facts that a run with its options must share, and notes on how it was made."""

    target: str  # without the path of a local folder
    target_sha256: str
    dtype: str
    device: str
    backend: str
    notes: dict[str, str | int] = field(default_factory=dict)


FACTS = tuple(each.name for each in fields(TunedOn) if each.name != "notes")


@dataclass(frozen=True)
class Tuned:
    """Tuned options by method, and the run that they were tuned in."""

    methods: dict[str, dict[str, int]]
    tuned_on: TunedOn
    source: str  # path of the file, for messages

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a file. Raises UserError if it is missing, not TOML, or not a file of tuned options."""
        try:
            text = path.read_text(encoding="utf-8")
            stored = tomllib.loads(text)
        except OSError as error:
            raise UserError(f"config file {path} cannot be read ({error.strerror}); make one with: specbench tune --out FILE") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"config file {path} is not TOML ({one_line(str(error))}); make one with: specbench tune --out FILE") from None

        methods, facts = stored.get("methods"), stored.get("tuned_on")
        if not isinstance(methods, dict) or not isinstance(facts, dict) or not all(isinstance(facts.get(key), str) for key in FACTS):
            raise UserError(
                f"config file {path} needs [methods.NAME] and [tuned_on] with {', '.join(FACTS)}; make one with: specbench tune"
            )
        for name, options in methods.items():
            _check(path, name, options)
        notes = {name: value for name, value in facts.items() if name not in FACTS}
        for name, value in notes.items():
            if not isinstance(value, str | int):
                raise UserError(f"config file {path}: {name} of [tuned_on] is {shorten(value)}; it must be a text or a whole number")
        return cls(methods, TunedOn(**{name: facts[name] for name in FACTS}, notes=notes), str(path))

    def check(self, *, target: str, dtype: str, device: str, backend: str) -> None:
        """Raise UserError if the options were tuned for another target, dtype, kind of device, or back end than the run's."""
        kind = device.partition(":")[0]
        for name, wanted in (("target", Path(target).name), ("dtype", dtype), ("device", kind), ("backend", backend)):
            tuned = Path(getattr(self.tuned_on, name)).name  # a target's folder may have moved
            if tuned != wanted:
                raise UserError(f"{self.source} was tuned for {name} {tuned!r}, the run is on {wanted!r}; {NEXT_STEP}")

    def check_weights(self, sha256: str) -> None:
        """Raise UserError if the target's weights are not those that the options were tuned for."""
        tuned = self.tuned_on.target_sha256
        if tuned != sha256:
            raise UserError(f"{self.source} was tuned for other weights (sha256 {tuned[:12]}, the target's are {sha256[:12]}); {NEXT_STEP}")

    def options(self, method: str) -> dict[str, str]:
        """Return a method's options as ``--set`` would give them. Empty for a method that was not tuned."""
        return {name: str(value) for name, value in self.methods.get(method, {}).items()}


def write(path: Path, methods: Mapping[str, Mapping[str, int]], tuned_on: TunedOn, tables: Mapping[str, Sequence[str]]) -> None:
    """Write the file atomically. ``tables`` holds lines by method, which become comments above its options."""
    lines = ["# Written by `specbench tune`; use it with `specbench run --config`. --set overrides it.", "", "[tuned_on]"]
    facts = {name: getattr(tuned_on, name) for name in FACTS} | tuned_on.notes
    lines += [f"{name} = {_toml(value)}" for name, value in facts.items()]
    for method, options in methods.items():
        lines += ["", *(f"# {line}" for line in tables.get(method, ())), f"[methods.{method}]"]
        lines += [f"{name} = {value}" for name, value in options.items()]
    write_text(path, "\n".join(lines) + "\n")


def _toml(value: str | int) -> str:
    return json.dumps(value)  # strings and whole numbers are written alike in JSON and TOML


def _check(path: Path, name: str, options: Any) -> None:
    from methods import registry  # imported here because it imports torch, which `--help` should not wait for

    if name not in registry.METHODS:
        raise UserError(f"config file {path}: {unknown('method', name, registry.METHODS)}")
    keys = registry.options(name)
    for key, value in options.items() if isinstance(options, dict) else [("", None)]:
        if key not in keys:
            raise UserError(f"config file {path}: {unknown(f'option of {name}', key, keys)}")
        if not isinstance(value, int) or isinstance(value, bool):
            raise UserError(f"config file {path}: {name}'s {key} is {value!r}; it must be a whole number")
