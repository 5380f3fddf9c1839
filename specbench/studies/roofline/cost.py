"""The cost model: bytes and FLOPs of a forward pass, and the seconds a device needs for them at the least.

A pass takes as long as the slower of two things: moving its bytes and doing its arithmetic. Nothing else is counted (no launches,
no activations, no logits written), so a prediction is a limit, not an estimate.
"""

from typing import NamedTuple

from transformers import PreTrainedConfig

from methods.core.kv_cache import head_dim

KNEE = 1.1  # verifying is called free up to the largest tree within this many plain steps


class Device(NamedTuple):
    """What a device does at its best."""

    bandwidth: float  # bytes/s
    rate: float  # FLOP/s, of matrix products in one dtype


class Cost(NamedTuple):
    """What some piece of work needs of a device."""

    bytes: float
    flops: float

    def plus(self, other: "Cost") -> "Cost":
        """Of both pieces, one after the other but counted as one: bytes of one may move during arithmetic of the other."""
        return Cost(self.bytes + other.bytes, self.flops + other.flops)

    def seconds(self, device: Device) -> float:
        return max(self.bytes / device.bandwidth, self.flops / device.rate)

    def bound(self, device: Device) -> str:
        """ "memory" or "arithmetic": which of the two is the slower."""
        return "memory" if self.bytes / device.bandwidth >= self.flops / device.rate else "arithmetic"


NOTHING = Cost(0.0, 0.0)


def attention_cost(query: int, key: int, nodes: int, seen: int, dtype_bytes: int) -> Cost:
    """One layer's attention of ``nodes`` rows over ``seen`` cached ones; ``query`` and ``key``: widths of all heads together.

    Each cached row is read once, keys and values, however many query heads share it (GQA) and however many nodes ask.
    """
    return Cost(2 * seen * key * dtype_bytes, 4 * nodes * seen * query)


def linear_cost(parameters: int, nodes: int, dtype_bytes: int) -> Cost:
    """Weights that are read once and multiplied with each of ``nodes`` rows."""
    return Cost(parameters * dtype_bytes, 2 * parameters * nodes)


def streamed(config: PreTrainedConfig, parameters: int) -> int:
    """Of all ``parameters`` of a model, those every pass reads: all but the embedding table, unless the head is that table."""
    return parameters - (0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size)


def target_cost(config: PreTrainedConfig, parameters: int, nodes: int, past: int, dtype_bytes: int) -> Cost:
    """Of scoring a tree of ``nodes`` (1: a plain step) after ``past`` committed tokens.

    ``parameters`` is the number of the model's parameters, a table shared by embedding and head counted once. Bytes: every weight
    once, the nodes' rows of the embedding table, the keys and values of all rows attended to. FLOPs: 2 a weight and node, and
    attention over past and tree.
    """
    width = head_dim(config)
    query, key = config.num_attention_heads * width, config.num_key_value_heads * width
    attention = attention_cost(query, key, nodes, past + nodes, dtype_bytes)
    layers = config.num_hidden_layers
    rows = Cost(nodes * config.hidden_size * dtype_bytes, 0)
    weights = linear_cost(streamed(config, parameters), nodes, dtype_bytes)
    return weights.plus(rows).plus(Cost(layers * attention.bytes, layers * attention.flops))


def verify_ratio(config: PreTrainedConfig, parameters: int, nodes: int, past: int, dtype_bytes: int, device: Device) -> float:
    """V(n) = T(n) / T(1) at the limit: what verifying ``nodes`` costs in plain steps."""
    plain, tree = (target_cost(config, parameters, n, past, dtype_bytes).seconds(device) for n in (1, nodes))
    return tree / plain


def knee(ratios: dict[int, float]) -> int:
    """Of V(n) by n: the largest n up to which no tree costs more than ``KNEE`` plain steps."""
    free = 1
    for nodes in sorted(ratios):
        if ratios[nodes] > KNEE:
            break
        free = nodes
    return free
