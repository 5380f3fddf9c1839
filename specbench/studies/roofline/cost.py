"""The cost model: bytes and FLOPs of a forward pass, and the least seconds that a device needs for them.

A pass takes as long as the slower of two things: moving its bytes and doing its arithmetic.
Launches, activations, and the writing of logits are not counted, so a prediction is a limit, not
an estimate. V(n) = T(n) / T(1), where T(n) is the time to score a tree of n nodes, root included.
"""

from typing import NamedTuple

from transformers import PreTrainedConfig

from methods.core.kv_cache import head_dim

KNEE = 1.1  # plain steps: the knee is the largest tree that costs at most this


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
    """Return V(n) at the device's limit: the cost of verifying a tree of n nodes, in plain steps."""
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
