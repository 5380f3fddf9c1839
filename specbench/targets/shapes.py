"""Shapes of commonly benchmarked models, for targets with the same cost."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelShape:
    """The shape of a model. ``query`` and ``key`` are the widths of all heads together; the head width is the shipped target's."""

    like: str  # the model that has this shape
    hidden: int
    layers: int
    query: int
    key: int
    intermediate: int
    vocab: int


SHAPES = {
    "tiny-160m": ModelShape("Llama-160M", 768, 12, 768, 768, 3072, 32000),
    "tiny-1b": ModelShape("TinyLlama-1.1B", 2048, 22, 2048, 256, 5632, 32000),
    "tiny-7b": ModelShape("Vicuna-7B", 4096, 32, 4096, 4096, 11008, 32000),
    "tiny-8b": ModelShape("Llama-3-8B", 4096, 32, 4096, 1024, 14336, 128256),
    "tiny-13b": ModelShape("Vicuna-13B", 5120, 40, 5120, 5120, 13824, 32000),
    "tiny-33b": ModelShape("Vicuna-33B", 6656, 60, 6656, 6656, 17920, 32000),
}
