"""The table of methods, and arms resolved from names and options.

A method is a drafter with a tree policy and an acceptance rule.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args, get_origin

from methods.core.acceptance import RULES, AcceptanceRule
from methods.core.backend import BACKENDS
from methods.core.decode import Drafter
from methods.core.errors import UserError, WeightsError, unknown
from methods.core.sampled_chain import DrawsChains
from methods.core.target import Target
from methods.core.weights import Trained


@dataclass(frozen=True)
class Method:
    """A row of the table."""

    title: str
    module: str  # the Python module with its Config and build
    weights: str | None = None  # the kind of weights it drafts with
    reconstruction: bool = False  # made from an incomplete description
    cpu: Mapping[str, Any] = field(default_factory=dict)  # default options on a CPU
    cuda: Mapping[str, Any] = field(default_factory=dict)  # default options on CUDA
    model: bool = False  # its weights are an ordinary causal model, which is not trained here
    acceptance: str = "match"


# Tree sizes: verifying is nearly free up to 8-16 nodes on a CPU and 64-128 on a GPU. The CPU's sizes
# were chosen on held-out prompts: the fastest of four settings each, end to end. The GPU's are the
# sizes each method was published with. EAGLE's code counts the calls of its layer after the first
# guess, so its depth d is d + 1 here. A draft model's chain is as long as transformers' assisted
# generation starts with, 5. On a CPU, where one of its forwards costs a tenth of the target's, 3 is
# best by Leviathan et al.'s theorem 3.8 if 60 % of the drafts are accepted.
METHODS = {
    "vanilla": Method("Vanilla", "methods.vanilla"),
    "pld": Method("Prompt lookup", "methods.prompt_lookup", cpu={"nodes": 10}, cuda={"nodes": 10}),
    # On a CPU the largest tree that is verified nearly for free: on 18 held-out prompts MAT was 1.69
    # with 4 drafts, 1.88 with 7, 2.06 with 15, 2.15 with 31, 2.40 with 80.
    "recycling": Method("Token Recycling", "methods.token_recycling", cpu={"nodes": 15}, cuda={"nodes": 80}),
    "sps": Method(
        "Draft model", "methods.draft_model", "sps", cpu={"nodes": 3}, cuda={"nodes": 5}, model=True, acceptance="speculative_sampling"
    ),
    "medusa": Method("Medusa", "methods.medusa", "medusa", cpu={"nodes": 3}, cuda={"nodes": 63}),
    # Not tuned, since no Hydra weights ship; on a CPU a value between Medusa's and EAGLE's.
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

# The kinds of weights that come with the package; users train the others or pass published ones.
SHIPPED_WEIGHTS = ("eagle", "medusa", "s4c")


@dataclass(frozen=True)
class Resolved:
    """A method with every option resolved.

    ``arm`` is the name that a run has for it: the method's own, or a caller's for a variant of it.
    """

    arm: str
    name: str
    title: str
    config: Any  # the module's Config
    acceptance: str
    backend: str

    @property
    def method(self) -> Method:
        """Its row of the table."""
        return METHODS[self.name]

    @property
    def lossless(self) -> bool:
        """Whether its acceptance rule is lossless."""
        return RULES[self.acceptance].lossless

    @property
    def state(self) -> str:
        """The state it keeps from turn to turn, in words; empty for most methods.

        With such a state, results depend on the order of the questions.
        """
        return getattr(self.config, "state", "")


def method_named(name: str) -> Method:
    """Return a method of the table. Raises UserError for a name that is not in it."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]


def options(name: str) -> dict[str, Any]:
    """Return the option keys of a method and their types."""
    config_type = importlib.import_module(method_named(name).module).Config
    keys: dict[str, Any] = {f.name: f.type for f in fields(config_type)}
    if name != "vanilla":
        keys["acceptance"] = Literal[*RULES]
    return keys | {"backend": Literal[*BACKENDS]}


def resolve(
    name: str, given: Mapping[str, str], device: str, backend: str = "eager", *, arm: str | None = None, variant: str = ""
) -> Resolved:
    """Resolve a method's options: the device's defaults, then those ``given`` as text.

    ``backend`` is the default back end, ``arm`` the name that a run has for the method, ``variant`` the end of its title.
    Raises UserError for an option that is unknown or out of range.
    """
    row, keys = method_named(name), options(name)
    values: dict[str, Any] = dict(row.cuda if device.startswith("cuda") else row.cpu)
    for key, text in given.items():
        if key not in keys:
            raise unknown(f"option of {name}", key, keys)
        values[key] = parse_option(name, key, text, keys[key])

    acceptance = values.pop("acceptance", row.acceptance)
    backend = values.pop("backend", backend)
    config = importlib.import_module(row.module).Config(**values)
    return Resolved(arm or name, name, row.title + variant, config, acceptance, backend)


def build(resolved: Resolved, target: Target, drafter: Trained | None) -> tuple[Drafter, AcceptanceRule]:
    """Build an arm's drafter and acceptance rule for a target.

    With a rule that judges drafts by their q, a drafter that can draw chains from its q does so. Raises
    WeightsError when weights are missing or of the wrong architecture, UserError when the options do
    not fit them otherwise.
    """
    if resolved.method.weights and drafter is None:
        raise WeightsError(f"{resolved.name} {missing_weights_message(resolved.method)}", resolved.method.weights)
    module = importlib.import_module(resolved.method.module)
    built, rule = module.build(resolved.config, target, drafter), RULES[resolved.acceptance]
    if rule.judges_q and isinstance(built, DrawsChains):
        built.draw_chains()
    return built, target.backend.capture(rule.apply)


def missing_weights_message(method: Method) -> str:
    """Return what a method without its weights needs, to follow its name in a message."""
    if method.model:
        return "drafts with a small model that has the target's tokenizer, and none is known for this target"
    return f"needs trained {method.weights} weights for this target"


def parse_option(name: str, key: str, text: str, kind: Any) -> Any:
    """Parse an option's value by its type: one of a Literal's choices, or a whole number.

    Raises UserError for any other text.
    """
    if get_origin(kind) is Literal:
        if text not in get_args(kind):
            raise unknown(f"value of {name}'s {key}", text, get_args(kind))
        return text
    try:
        return int(text)
    except ValueError:
        raise UserError(f"{name}'s {key} is {text!r}; it must be a whole number") from None
