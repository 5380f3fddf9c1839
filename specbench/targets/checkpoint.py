"""A target folder's checkpoint: config, tokenizer, and weights out of the very files that its identity is a hash of."""

import hashlib
import json
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import is_protobuf_available, is_sentencepiece_available, logging

from methods.core.errors import UserError
from methods.core.target import refuse

# The order in which transformers looks for weights; an index lists the shards beside it.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
SENTENCEPIECE = "tokenizer.model"
TOKENIZERS = ("tokenizer.json", SENTENCEPIECE, "vocab.json")
BROKEN = (OSError, ValueError, TypeError, KeyError, ArithmeticError, RuntimeError)  # what transformers raises on broken files, and
BROKEN_FORMATS = (SafetensorError, StrictDataclassError, pickle.UnpicklingError)  # what the readers of single files do


def weight_files(folder: Path) -> list[Path]:
    """The files a folder's model is read from: safetensors, else pickles, whole or in shards. Raises ValueError where one is missing."""
    found = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise ValueError("it holds neither model.safetensors nor pytorch_model.bin, whole or in shards")
    if found.suffix != ".json":
        return [found]
    try:
        shards = sorted(set(json.loads(found.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(f"{found.name} is no index of shards") from None
    if not shards:
        raise ValueError(f"{found.name} lists no shards")
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or not (folder / shard).is_file():
            raise ValueError(f"{found.name} lists {shard!r}, which is not there")
    return [folder / shard for shard in shards]


def sha256(folder: Path) -> str:
    """Of the folder's weight files, one after the other, read piece by piece."""
    digest = hashlib.sha256()
    for path in weight_files(folder):
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def config(folder: Path, attention: str, what: str = "target") -> PreTrainedConfig:
    """Raises UserError for a model that our cache cannot serve."""
    found = AutoConfig.from_pretrained(folder, attn_implementation=attention, local_files_only=True, trust_remote_code=False)
    if getattr(found, "transformers_weights", None):
        raise ValueError("its config names a weight file of its own, transformers_weights; leave that out")
    refuse(found, what)
    return found


def tokenizer(folder: Path, *, legacy: bool = False) -> PreTrainedTokenizerBase:
    """``legacy``: unless the folder says otherwise, text behind a special token starts with a space, as before transformers 4.31."""
    here = [name for name in TOKENIZERS if (folder / name).is_file()]
    if not here:
        raise ValueError(f"it holds no tokenizer: none of {', '.join(TOKENIZERS)}")
    if here == [SENTENCEPIECE] and not (is_sentencepiece_available() and is_protobuf_available()):
        raise UserError(
            f"the tokenizer of {folder} is a SentencePiece model, which takes two more packages to read; "
            "install them with: pip install 'specbench[sentencepiece]'"
        )
    settings = folder / "tokenizer_config.json"
    said = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    options = {"legacy": True} if legacy and "legacy" not in said else {}
    found = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    assert isinstance(found, PreTrainedTokenizerBase)
    return found


def model(folder: Path, own: PreTrainedConfig, dtype: torch.dtype, device_map: Mapping[str, str] | None = None) -> PreTrainedModel:
    """The model of a folder and its config, every tensor from ``weight_files``, on the CPU or where ``device_map`` has its modules.

    Raises ValueError where the weights are not the config's. Pickles are read as tensors alone: one that would run code is an error.
    """
    safetensors = weight_files(folder)[0].suffix == ".safetensors"
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # its report of misfits is many lines; ours is one
    try:
        loading: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=own,
            dtype=dtype,
            device_map=device_map,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=safetensors,
            weights_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    finally:
        logging.set_verbosity(verbosity)
    found, report = loading
    misfits = [(name, "is missing") for name in report["missing_keys"]]
    misfits += [(name, "is unexpected") for name in report["unexpected_keys"]]
    misfits += [(name, f"is {tuple(has)}, the config needs {tuple(needs)}") for name, has, needs in report["mismatched_keys"]]
    if misfits:
        name, what = min(misfits)
        raise ValueError(f"{name} {what}; {len(misfits)} of its tensors do not match config.json")
    return found.eval().requires_grad_(False)


@contextmanager
def readable(folder: Path, what: str = "target") -> Iterator[None]:
    """Turns whatever reading a broken checkpoint raises into a UserError of one line; running out of memory is not that."""
    try:
        yield
    except (*BROKEN, *BROKEN_FORMATS) as error:
        if out_of_memory(error):
            raise
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{what} folder {folder} cannot be loaded ({reason}); it must be a whole transformers checkpoint") from None


def out_of_memory(error: Exception) -> bool:
    """On a CPU torch raises a plain RuntimeError for that."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)
