"""The configuration of a run: every option with its flag, default, and help text.

Commands build their options from it (``specbench.cli.common.configured``), and the manifest stores it, defaults resolved.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from methods.core.errors import UserError
from specbench.config.tuned import Tuned

DEFAULT_METHODS = ("vanilla", "medusa", "eagle2", "s4c")


@dataclass(frozen=True)
class Option:
    """A command-line option that sets a field of ``RunConfig``.

    ``given`` is the option's type on the command line if it differs from the field's. ``parse`` then returns the field's
    value from the flag and the given value.
    """

    flag: str
    help: str
    metavar: str | None = None
    given: Any = None
    parse: Callable[[str, Any], Any] | None = None
    identity: bool = True  # whether the value is part of the run's identity


def option(
    flag: str,
    help: str,
    default: Any = None,
    *,
    metavar: str | None = None,
    given: Any = None,
    parse: Callable[[str, Any], Any] | None = None,
    identity: bool = True,
) -> Any:
    """Return a dataclass field that ``flag`` sets. ``default`` is a value, or a type whose empty object is the default."""
    metadata = {"option": Option(flag, help, metavar, given, parse, identity)}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def pairs(flag: str, given: Sequence[str] | None) -> dict[str, str]:
    """Return ``{"a": "b"}`` for ``["a=b"]``, split at the last "=" because an arm's name may hold one.

    Raises UserError for a text without ``=``.
    """
    values = {}
    for text in given or []:
        key, _, value = text.rpartition("=")
        if not key or not value:
            raise UserError(f"{flag} {text!r} is not NAME=VALUE")
        values[key] = value
    return values


def _or_empty(flag: str, given: str | None) -> str:
    return given or ""


def _as_list(flag: str, given: Sequence[str] | None) -> list[str]:
    return list(given or [])


def _split_commas(flag: str, given: Sequence[str] | None) -> list[str]:
    return [name.strip() for group in given or [] for name in group.split(",")]


def _as_paths(flag: str, given: Sequence[str] | None) -> dict[str, Path]:
    return {name: Path(file) for name, file in pairs(flag, given).items()}


def _read_tuned(flag: str, given: Path | None) -> Tuned | None:
    return Tuned.read(given) if given else None


@dataclass(frozen=True)
class RunConfig:
    """The settings of a run.

    As the user gives them, None, "" and an empty list of methods stand for defaults, which ``measure.resolve`` settles. A
    manifest holds them settled. In the manifest of imported answers (``RunManifest.imported`` is not empty),
    ``max_new_tokens`` is 0, ``temperature`` is NaN, and ``seed`` has no meaning.
    """

    methods: list[str] = option(
        "--method",
        f"Method or engine to measure; repeatable. vanilla always runs. Default: {', '.join(DEFAULT_METHODS)}.",
        list,
        metavar="NAME[:KEY=VALUE,...]",
        given=list[str] | None,
        parse=_as_list,
        identity=False,
    )
    target: str = option(
        "--target",
        "Target: a name, a folder, or a hub id (OWNER/NAME). Default: tiny-160m on a CPU, tiny-7b on CUDA.",
        "",
        given=str | None,
        parse=_or_empty,
    )
    revision: str | None = option("--revision", "Branch, tag, or commit of a hub id. Default: its main branch.")
    template: str | None = option(
        "--template", "Prompt template: `chat` (the tokenizer's own) or `vicuna_v1.1`. Default: the model family's."
    )
    system_prompt: str | None = option("--system-prompt", "System prompt. Default: the template's.", metavar="TEXT")
    thinking: str | None = option(
        "--thinking", "Turn the chat template's thinking mode on or off. Default: the template decides.", metavar="on|off"
    )
    stop: list[str] = option(
        "--stop",
        "Token that ends an answer, by its name or as its text, in addition to the target's own; repeatable.",
        list,
        metavar="TOKEN|TEXT",
        given=list[str] | None,
        parse=_as_list,
    )
    suite: str = option("--suite", "Questions: mini, spec-bench, or hf:ID. Default: mini.", "", given=str | None, parse=_or_empty)
    suite_file: Path | None = option("--suite-file", "Questions from a JSONL file of Spec-Bench's schema.", identity=False)
    hf_columns: dict[str, str] = option(
        "--hf-column",
        "Column of a hub data set that holds a field; repeatable.",
        dict,
        metavar="FIELD=COLUMN",
        given=list[str] | None,
        parse=pairs,
        identity=False,
    )
    limit: int | None = option("--limit", "Questions of each category. Default: all.")
    categories: list[str] = option(
        "--categories",
        "Categories to ask; repeatable or separated by commas. Default: all.",
        list,
        given=list[str] | None,
        parse=_split_commas,
    )
    max_new_tokens: int = option("--max-new-tokens", "Longest answer, in tokens.", 128)
    temperature: float = option("--temperature", "Sampling temperature; 0 is greedy.", 0.0)
    top_k: int = option("--top-k", "Sample from this many of the likeliest tokens; 0: from all.", 0)
    top_p: float = option(
        "--top-p", "Sample from the fewest likeliest tokens, of those of --top-k, whose probability reaches this share; 1: from all.", 1.0
    )
    seed: int = option("--seed", "Seed of sampling; each turn derives its own.", 0)
    dtype: str = option(
        "--dtype", "fp32, bf16, fp16, or fp64. Default: the fastest the device computes natively.", "", given=str | None, parse=_or_empty
    )
    device: str = option("--device", "cpu or cuda. Default: cuda if there is one.", "", given=str | None, parse=_or_empty)
    device_map: str | None = option(
        "--device-map", "Spread the target's layers over GPUs: evenly (auto) or as a JSON file says.", metavar="auto|FILE"
    )
    attention: str = option("--attention", "Attention kernel: sdpa or eager.", "sdpa")
    backend: str = option(
        "--backend",
        "Execution back end: static (compiled; CUDA graphs on a GPU) or eager. Default: $SPECBENCH_BACKEND, else static; eager with "
        "--device-map.",
        "",
        given=str | None,
        parse=_or_empty,
    )
    repeats: int = option("--repeats", "Passes over the suite.", 1)
    turns: str = option("--turns", "History for later turns: each arm's own answers (`own`) or vanilla's for all (`shared`).", "own")
    overrides: list[str] = option(
        "--set",
        "Set an option of every arm that has it, or of one arm; repeatable.",
        list,
        metavar="[ARM.]KEY=VALUE",
        given=list[str] | None,
        parse=_as_list,
        identity=False,
    )
    tuned: Tuned | None = option(
        "--config", "Tree sizes written by `specbench tune`. `--set` overrides them.", given=Path | None, parse=_read_tuned, identity=False
    )
    drafters: dict[str, Path] = option(
        "--drafter",
        "Drafter weights for a kind of drafter or for one arm; repeatable.",
        dict,
        metavar="KIND=FILE|FOLDER|HUB_ID",
        given=list[str] | None,
        parse=_as_paths,
        identity=False,
    )
    aa: str | None = option("--aa", "Run this arm twice (A/A test) to estimate measurement noise.", metavar="ARM", identity=False)
    base_url: str | None = option(
        "--base-url",
        "Server for `--method endpoint`. Its key is read from SPECBENCH_API_KEY or OPENAI_API_KEY.",
        metavar="URL",
        identity=False,
    )
    endpoint_model: str | None = option(
        "--endpoint-model", "Model name on the server; needed if it serves several.", metavar="NAME", identity=False
    )

    @property
    def restricted(self) -> dict[str, float]:
        """The settings that restrict sampling to the likeliest tokens, without those that keep all tokens."""
        return ({"top_k": self.top_k} if self.top_k else {}) | ({"top_p": self.top_p} if self.top_p < 1 else {})

    @property
    def restriction(self) -> str:
        """The options that restrict sampling to the likeliest tokens, as on the command line; "" for none."""
        return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in self.restricted.items())
