"""Stand-in for reading checkpoints: what this package's ``__init__`` does. The branch `targets` brings the real one, of the same
signatures, and takes the functions called here away.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from methods.core.errors import UserError
from specbench import targets


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, TypeError, ArithmeticError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"target folder {folder} cannot be loaded ({reason}); it must be a whole transformers checkpoint") from None


def tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    found: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return found


def model(folder: Path, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    return targets._read(folder, dtype, attention)[0].eval().requires_grad_(False)


def sha256(folder: Path) -> str:
    return targets._sha256(folder)
