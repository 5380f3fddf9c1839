"""Targets by name: the shipped one, the shapes it can be embedded in, a hub id, or a folder.

A target folder is a transformers checkpoint with its tokenizer and, beside them, ``drafters/KIND.safetensors``.
"""

from specbench.targets.placement import DTYPES, default_dtype, default_name, use_device, within_memory
from specbench.targets.target import SHIPPED, TARGETS, Loaded, load, shipped_folder

__all__ = [
    "DTYPES",
    "SHIPPED",
    "TARGETS",
    "Loaded",
    "default_dtype",
    "default_name",
    "load",
    "shipped_folder",
    "use_device",
    "within_memory",
]
