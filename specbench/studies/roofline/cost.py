"""The cost model: bytes and FLOPs of a forward pass or a drafter's step, and the least seconds that a device needs for them.

A pass takes as long as the slower of two things: moving its bytes and doing its arithmetic.
Launches, activations, and the writing of logits are not counted, so a prediction is a limit, not
an estimate. V(n) = T(n) / T(1), where T(n) is the time to score a tree of size n (root counted).
A drafter's step is counted from the module calls that it makes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from transformers import PreTrainedConfig

from methods.core.acceptance import Accepted, Sampling
from methods.core.decode import Drafter
from methods.core.kv_cache import head_dim
from methods.core.target import Scores
from methods.core.tree import DraftTree
from specbench.engines.own import OwnEngine
from specbench.studies.base import decoded

KNEE = 1.1  # plain steps: the knee is the largest tree that costs at most this
COUNTED_TOKENS = 32  # decoded while counting, which takes several steps


class Device(NamedTuple):
    """The best rates that a device was measured to reach."""

    bandwidth: float  # bytes/s
    rate: float  # FLOP/s of matrix products in one dtype


class Cost(NamedTuple):
    """The bytes to move and the FLOPs to do for some piece of work."""

    bytes: float
    flops: float

    def plus(self, other: "Cost") -> "Cost":
        """Return the cost of both, counted as one: bytes of one may move during arithmetic of the other."""
        return Cost(self.bytes + other.bytes, self.flops + other.flops)

    def seconds(self, device: Device) -> float:
        """Return the least seconds that a device needs."""
        return max(self.bytes / device.bandwidth, self.flops / device.rate)

    def bound(self, device: Device) -> str:
        """Return the slower of the two: "memory" or "arithmetic"."""
        return "memory" if self.bytes / device.bandwidth >= self.flops / device.rate else "arithmetic"


NOTHING = Cost(0.0, 0.0)


def attention_cost(query: int, key: int, rows: int, seen: int, dtype_bytes: int) -> Cost:
    """Return the cost of one layer's attention of ``rows`` over ``seen`` cached rows.

    ``query`` and ``key`` are the widths of all heads together. Each cached row is read once, keys and
    values, however many query heads share it (GQA) and however many rows attend to it.
    """
    return Cost(2 * seen * key * dtype_bytes, 4 * rows * seen * query)


def linear_cost(parameters: int, rows: int, dtype_bytes: int) -> Cost:
    """Return the cost of weights that are read once and multiplied with each of ``rows``."""
    return Cost(parameters * dtype_bytes, 2 * parameters * rows)


def streamed(config: PreTrainedConfig, parameters: int) -> int:
    """Return how many of a model's parameters every pass reads.

    These are all but the embedding table, unless the head is that table.
    """
    return parameters - (0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size)


def target_cost(config: PreTrainedConfig, parameters: int, tree_size: int, past: int, dtype_bytes: int) -> Cost:
    """Return the cost of scoring a tree after ``past`` committed tokens; tree size 1 is a plain step.

    ``parameters`` counts a table shared by embedding and head once. Bytes: every weight once, the
    nodes' rows of the embedding table, and the keys and values of all rows attended to. FLOPs: 2 for
    each weight and node, and attention over past and tree.
    """
    width = head_dim(config)
    query, key = config.num_attention_heads * width, config.num_key_value_heads * width
    attention = attention_cost(query, key, tree_size, past + tree_size, dtype_bytes)
    layers = config.num_hidden_layers

    rows = Cost(tree_size * config.hidden_size * dtype_bytes, 0)
    weights = linear_cost(streamed(config, parameters), tree_size, dtype_bytes)
    return weights.plus(rows).plus(Cost(layers * attention.bytes, layers * attention.flops))


def verify_ratio(config: PreTrainedConfig, parameters: int, tree_size: int, past: int, dtype_bytes: int, device: Device) -> float:
    """Return V(n) at the device's limit: the cost of verifying a tree of size n, in plain steps."""
    plain, tree = (target_cost(config, parameters, size, past, dtype_bytes).seconds(device) for size in (1, tree_size))
    return tree / plain


def knee(ratios: dict[int, float]) -> int:
    """Return the most drafted nodes up to which no tree costs more than ``KNEE`` plain steps.

    ``ratios`` has V by drafted nodes; 0 is a plain step.
    """
    free = 0
    for nodes in sorted(ratios):
        if ratios[nodes] > KNEE:
            break
        free = nodes
    return free


def draft_cost(engine: OwnEngine, prompt: list[int]) -> Cost:
    """Return the cost of drafting in one step, ``observe`` included: the median over an answer's steps but the first.

    Every linear layer called counts, the target's head among them: its weights once a call, and
    2 FLOPs for each weight and row. Attention counts as in ``attention_cost``, over the text so far. The calls
    are observed by hooks, so the engine must be on the eager back end, which does not compile modules.
    """
    assert engine.target.backend.name == "eager", "compiled modules hide their calls"
    counter = _CountingDrafter(engine.drafter, engine.target.dtype.itemsize)
    decoded(engine._replace(drafter=counter), prompt, Sampling(COUNTED_TOKENS))
    settled = counter.steps[1:]
    return Cost(median(cost.bytes for cost in settled), median(cost.flops for cost in settled))


class _CountingDrafter:
    """A drafter whose calls of linear layers are counted by step; calls in ``begin`` belong to no step."""

    def __init__(self, drafter: Drafter, dtype_bytes: int):
        self._drafter, self._dtype_bytes, self.sizes, self.reads = drafter, dtype_bytes, drafter.sizes, drafter.reads
        self._seen = self._query = 0
        self._names: dict[nn.Module, str] = {}
        self.steps: list[Cost] = []

    def begin(self, prompt: list[int], first: Accepted, scores: Scores, sampling: Sampling) -> None:
        self._drafter.begin(prompt, first, scores, sampling)

    def draft(self, tokens: list[int]) -> DraftTree:
        self.steps.append(NOTHING)
        self._seen = len(tokens)
        with self._counting():
            return self._drafter.draft(tokens)

    def observe(self, tree: DraftTree, accepted: Accepted, scores: Scores) -> None:
        with self._counting():
            self._drafter.observe(tree, accepted, scores)

    def wipe(self) -> None:
        self._drafter.wipe()

    @contextmanager
    def _counting(self) -> Iterator[None]:
        with register_module_forward_pre_hook(self._note):
            yield

    def _note(self, module: nn.Module, args: Any) -> None:
        self._names.update((child, name) for name, child in module.named_children())
        if isinstance(module, nn.Linear):
            self._add(module, self._names.get(module, ""), args[0].shape[-2])

    def _add(self, linear: nn.Linear, name: str, rows: int) -> None:
        cost = linear_cost(sum(parameter.numel() for parameter in linear.parameters()), rows, self._dtype_bytes)
        if name == "q_proj":
            self._query = linear.out_features
        elif name == "k_proj":  # called next, once for each attention
            cost = cost.plus(attention_cost(self._query, linear.out_features, rows, self._seen, self._dtype_bytes))
        self.steps[-1] = self.steps[-1].plus(cost)
