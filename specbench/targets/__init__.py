"""Targets by name: the shipped one, the shapes it can be embedded in, a hub id, or a folder.

A target folder is a transformers checkpoint with its tokenizer and, beside them, ``drafters/KIND.safetensors``.
"""

from specbench.targets.placement import DTYPES, check_device, default_dtype, default_name, within_memory
from specbench.targets.target import SHIPPED, TARGETS, Loaded, load, shipped_folder

__all__ = [
    "DTYPES",
    "SHIPPED",
    "TARGETS",
    "Loaded",
    "check_device",
    "default_dtype",
    "default_name",
    "load",
    "shipped_folder",
    "within_memory",
]
