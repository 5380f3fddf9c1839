"""The table of methods: drafter x tree policy x acceptance rule, resolved from names and options."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin

from methods.core.acceptance import RULES, AcceptanceRule
from methods.core.backend import BACKENDS
from methods.core.decode import Drafter
from methods.core.errors import UserError, unknown
from methods.core.target import Target
from methods.core.weights import Trained


@dataclass(frozen=True)
class Method:
    """A row: the module that drafts, its defaults on either kind of device, and what kind of weights it drafts with.

    ``model``: those weights are an ordinary causal model's, which is not trained here.
    """

    title: str
    module: str
    weights: str | None = None
    reconstruction: bool = False
    cpu: Mapping[str, Any] = field(default_factory=dict)
    cuda: Mapping[str, Any] = field(default_factory=dict)
    model: bool = False
    acceptance: str = "match"


# Tree sizes: verifying is nearly free up to 8-16 nodes on a CPU and 64-128 on a GPU. The CPU's were chosen on held-out
# corpus prompts (reports/tuning-tiny-160m-cpu: four settings each, the fastest end to end); the GPU's are the sizes each
# method was published with; EAGLE's code counts its layer's calls after the first guess, so that its depth d is d + 1 here. A draft model's
# chain is as long as transformers' assisted generation begins with, 5; on a CPU, where a step of it costs a tenth of the target's, 3 are
# best by Leviathan et al.'s theorem 3.8 if 0.6 of them are accepted.
METHODS = {
    "vanilla": Method("Vanilla", "methods.vanilla"),
    "pld": Method("Prompt lookup", "methods.prompt_lookup", cpu={"nodes": 10}, cuda={"nodes": 10}),
    # On a CPU the largest that is verified nearly for free: on 18 held-out corpus prompts MAT was 1.69 with 4 drafts, 1.88 with 7,
    # 2.06 with 15, 2.15 with 31, 2.40 with 80.
    "recycling": Method("Token Recycling", "methods.token_recycling", cpu={"nodes": 15}, cuda={"nodes": 80}),
    "sps": Method(
        "Draft model", "methods.draft_model", "sps", cpu={"nodes": 3}, cuda={"nodes": 5}, model=True, acceptance="speculative_sampling"
    ),
    "medusa": Method("Medusa", "methods.medusa", "medusa", cpu={"nodes": 3}, cuda={"nodes": 63}),
    # No weights ship to tune Hydra with: between Medusa's and EAGLE's on a CPU.
    "hydra": Method("Hydra", "methods.hydra", "hydra", cpu={"nodes": 5}, cuda={"nodes": 63}),
    "eagle": Method("EAGLE", "methods.eagle", "eagle", cpu={"nodes": 7, "policy": "static"}, cuda={"nodes": 25, "policy": "static"}),
    "eagle2": Method(
        "EAGLE-2",
        "methods.eagle",
        "eagle",
        cpu={"nodes": 5, "policy": "grown", "depth": 2, "width": 3},
        cuda={"nodes": 59, "policy": "grown", "depth": 6, "width": 10},
    ),
    "eagle3": Method(
        "EAGLE-3",
        "methods.eagle3",
        "eagle3",
        cpu={"nodes": 5, "depth": 2, "width": 3},
        cuda={"nodes": 59, "depth": 8, "width": 10},
    ),
    "s4c": Method(
        "S4C (reconstruction)",
        "methods.s4c",
        "s4c",
        reconstruction=True,
        cpu={"nodes": 5, "depth": 2, "width": 3},
        cuda={"nodes": 59, "depth": 5, "width": 10},
    ),
}

SHIPPED_WEIGHTS = ("eagle", "medusa", "s4c")  # kinds of weights that come with the package; others are trained by the user or published


@dataclass(frozen=True)
class Resolved:
    """An arm with every option settled. ``arm`` is what was asked for: ``s4c``, or a variant such as ``s4c:nodes=8,depth=3``."""

    arm: str
    name: str
    config: Any  # the module's Config
    acceptance: str
    backend: str

    @property
    def method(self) -> Method:
        return METHODS[self.name]

    @property
    def lossless(self) -> bool:
        return RULES[self.acceptance].lossless

    @property
    def state(self) -> str:
        """What the method keeps from one turn to the next, so that the order of questions matters; "" for almost all."""
        return getattr(self.config, "state", "")

    @property
    def title(self) -> str:
        return " ".join([self.method.title, *self.arm.split(":")[1:]])


def method_named(name: str) -> Method:
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def options(name: str) -> dict[str, Any]:
    """Option key -> its type, of one method."""
    config_type = importlib.import_module(method_named(name).module).Config
    keys: dict[str, Any] = {f.name: f.type for f in fields(config_type)}
    if name != "vanilla":
        keys["acceptance"] = Literal[*RULES]
    return keys | {"backend": Literal[*BACKENDS]}


def split(arm: str) -> tuple[str, dict[str, str]]:
    """An arm's method and its own options: ``s4c:nodes=8,depth=3`` -> ``("s4c", {"nodes": "8", "depth": "3"})``."""
    name, _, given = arm.partition(":")
    pairs = [text.partition("=") for text in given.split(",") if text]
    return name, {key: value for key, _, value in pairs}


def resolve(arm: str, overrides: Mapping[str, str], device: str, backend: str = "eager") -> Resolved:
    """Defaults of the device and the back end given, then ``overrides`` (text, as typed), then the arm's own options.

    Raises UserError on what is unknown or out of range.
    """
    name, own = split(arm)
    row, keys = method_named(name), options(name)
    values: dict[str, Any] = dict(row.cuda if device.startswith("cuda") else row.cpu)
    for key, text in {**overrides, **own}.items():
        if key not in keys:
            raise unknown(f"option of {name}", key, keys)
        values[key] = parse_option(name, key, text, keys[key])
    acceptance = values.pop("acceptance", row.acceptance)
    backend = values.pop("backend", backend)
    config = importlib.import_module(row.module).Config(**values)
    return Resolved(arm, name, config, acceptance, backend)


def build(resolved: Resolved, target: Target, drafter: Trained | None) -> tuple[Drafter, AcceptanceRule]:
    """The drafter and the rule of a method. Raises UserError when the weights are missing or do not fit the options."""
    if resolved.method.weights and drafter is None:
        raise UserError(f"{resolved.name} {lacking(resolved.method)}")
    module = importlib.import_module(resolved.method.module)
    return module.build(resolved.config, target, drafter), target.backend.piece(RULES[resolved.acceptance].apply)


def lacking(method: Method) -> str:
    """What a method without its weights needs, and how to get that."""
    kind = method.weights
    given = f"--drafter {kind}=FOLDER or {kind}=HUB_ID"
    if method.model:
        return f"drafts with a small model that has the target's tokenizer, and none is known for this target; give one: {given}"
    published = f", or give published ones: {given}" if hasattr(importlib.import_module(method.module), "published") else ""
    return f"needs trained {kind} weights for this target; train them with: specbench train {kind}{published}"


def parse_option(name: str, key: str, text: str, kind: Any) -> Any:
    """An option's value from its text, by its type: one of a Literal's, or a whole number. Raises UserError."""
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise unknown(f"value of {name}'s {key}", text, get_args(kind))
        return text
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{name}'s {key} is {text!r}; it must be a whole number") from None
