"""Peers: other engines that answer the same prompts beside specbench's own arms, as reference rows of the same tables.

They are timed by the same clock and their tokens are counted by the same counter. What they do within an answer is theirs,
and every table says so.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from methods.core.errors import UserError, unknown

if TYPE_CHECKING:
    from methods.core.target import Target
    from specbench.config.options import Options
    from specbench.engines.base import Answerer
    from specbench.store.manifest import MethodFacts
    from specbench.targets import Loaded


SHARED_WITH = "sps"  # whose draft model serves where a peer has none of its own


@dataclass(frozen=True)
class Peer:
    """A row: the module that asks the engine, the class of its options there, and what it needs beside the target."""

    title: str
    module: str
    config: str
    needs: str = "nothing"
    drafter: bool = False  # whether --drafter names one for it


PEERS = {
    "hf-generate": Peer("generate", "specbench.engines.hf_generate", "Plain"),
    "hf-pld": Peer("generate, prompt lookup", "specbench.engines.hf_generate", "Lookup"),
    "hf-assisted": Peer(
        "generate, assisted", "specbench.engines.hf_generate", "Assisted", "a draft model: --drafter hf-assisted=FOLDER|HUB_ID", True
    ),
    "endpoint": Peer("Endpoint", "specbench.engines.endpoint.engine", "Config", "a server: --base-url URL"),
}


@dataclass(frozen=True)
class ResolvedPeer:
    """A peer's arm with every option settled. ``arm`` is what was asked for: ``hf-pld``, or ``hf-pld:nodes=5``."""

    arm: str
    name: str
    config: Any

    @property
    def title(self) -> str:
        return " ".join([PEERS[self.name].title, *self.arm.split(":")[1:]])

    @property
    def drafter_keys(self) -> set[str]:
        """What --drafter may call its draft model."""
        return {self.arm, self.name, SHARED_WITH} if PEERS[self.name].drafter else set()


class Ready(NamedTuple):
    """A peer that can be asked, and what the manifest says of it."""

    answerer: "Answerer"
    facts: "MethodFacts"


def is_peer(arm: str) -> bool:
    return arm.partition(":")[0] in PEERS


def options(name: str) -> dict[str, Any]:
    """Option key -> its type, of one peer."""
    return {f.name: f.type for f in fields(_config(name))}


def apart(names: Sequence[str], aa: str | None) -> tuple[list[str], list[str]]:
    """specbench's own methods among the names, and the peers. Raises UserError for a name that is neither, and for an A/A peer."""
    from methods.registry import METHODS

    for name in names:
        if name.partition(":")[0] not in (*METHODS, *PEERS):
            raise unknown("method", name.partition(":")[0], (*METHODS, *PEERS))
    if aa and is_peer(aa):
        raise UserError(f"--aa {aa}: what a repeated arm differs by is measured on specbench's own methods; name one of them")
    return [name for name in names if not is_peer(name)], [name for name in dict.fromkeys(names) if is_peer(name)]


def only_own(names: Sequence[str], what: str) -> None:
    """Raises UserError for a peer among the names of arms that are to be looked into."""
    for name in filter(is_peer, names):
        raise UserError(f"{name} is another engine, whose rounds specbench cannot {what}; name specbench's own methods")


def resolve(arm: str) -> ResolvedPeer:
    """Raises UserError on options that are unknown or out of range; ``--set`` does not reach a peer, so an arm's own are all it has."""
    from methods.registry import parse_option, split

    name, own = split(arm)
    keys = options(name)
    for key in own:
        if key not in keys:
            raise unknown(f"option of {name}", key, keys)
    return ResolvedPeer(arm, name, _config(name)(**{key: parse_option(name, key, text, keys[key]) for key, text in own.items()}))


def check(asked: Sequence[ResolvedPeer], options: "Options") -> None:
    """Raises UserError for what would only fail after the target is loaded: no server, no draft model."""
    if options.base_url and not any(peer.name == "endpoint" for peer in asked):
        raise UserError("--base-url names a server that no arm asks; add --method endpoint")
    for peer in asked:
        importlib.import_module(PEERS[peer.name].module).check(peer, options)


def build(peer: ResolvedPeer, loaded: "Loaded", target: "Target", options: "Options") -> Ready:
    """The peer, ready to answer with the target's context and stop ids. Raises UserError for what it needs and has not."""
    ready: Ready = importlib.import_module(PEERS[peer.name].module).build(peer, loaded, target, options)
    return ready


def _config(name: str) -> type:
    config: type = getattr(importlib.import_module(PEERS[name].module), PEERS[name].config)
    return config
