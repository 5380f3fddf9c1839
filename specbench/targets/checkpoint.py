"""A target folder's checkpoint: config, tokenizer, and the weight files, whose hash identifies the target."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import is_protobuf_available, is_sentencepiece_available, logging

from methods.core.errors import UserError
from methods.core.json_text import parse_json
from methods.core.target import refuse
from methods.core.weights import check_readable
from specbench.util.text import one_line, shorten

# In the order in which transformers looks for weights; an index lists the shards beside it.
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
MOST_LAYERS = 1000  # the largest published models have less than 150
SENTENCEPIECE = "tokenizer.model"
TOKENIZERS = ("tokenizer.json", SENTENCEPIECE, "vocab.json")


def weight_files(folder: Path) -> list[Path]:
    """Return the files that a folder's model is read from: safetensors, else pickles, whole or in shards.

    Raises ValueError where one is missing.
    """
    first = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if first is None:
        raise ValueError("it holds neither model.safetensors nor pytorch_model.bin, whole or in shards")
    if first.suffix != ".json":
        return [first]

    try:
        shards = sorted(set(parse_json(first.read_bytes())["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError):
        raise ValueError(f"{first.name} is no index of shards") from None
    if not shards:
        raise ValueError(f"{first.name} lists no shards")
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or not (folder / shard).is_file():
            raise ValueError(f"{first.name} lists {shard!r}, which is not there")
    return [folder / shard for shard in shards]


def sha256(folder: Path) -> str:
    """Return the sha256 of the folder's weight files, one after the other, without reading any of them whole."""
    digest = hashlib.sha256()
    for path in weight_files(folder):
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def load_config(folder: Path, attention: str, what: str = "target") -> PreTrainedConfig:
    """Load a folder's model config. Raises UserError for a model that ``KVCache`` does not support."""
    _check_layers(parse_json((folder / "config.json").read_bytes()), what)
    config = AutoConfig.from_pretrained(folder, attn_implementation=attention, local_files_only=True, trust_remote_code=False)
    if getattr(config, "transformers_weights", None):
        raise ValueError("its config names a weight file of its own, transformers_weights; leave that out")
    quantization = getattr(config, "quantization_config", None)
    if quantization:
        how = quantization.get("quant_method", "unnamed") if isinstance(quantization, dict) else "unnamed"
        raise UserError(
            f"the weights of {what} {folder} are quantised (its config has quantization_config, method {how}), and would be measured as "
            "something else; use the checkpoint that they were made from"
        )
    refuse(config, what)
    return config


def _check_layers(stored: Any, what: str) -> None:
    """Raise UserError for a config, or a part of one, of more than ``MOST_LAYERS`` layers, before anything is made for each of them."""
    if not isinstance(stored, dict):
        return
    layers = stored.get("num_hidden_layers")
    if isinstance(layers, int) and layers > MOST_LAYERS:
        raise UserError(f"{what} has {shorten(layers)} layers by its config.json; at most {MOST_LAYERS:,} are supported, correct it")
    for part in stored.values():
        _check_layers(part, what)


def load_tokenizer(folder: Path, *, legacy: bool = False) -> PreTrainedTokenizerBase:
    """Load a folder's tokenizer.

    With ``legacy``, text after a special token starts with a space, as before transformers 4.31, unless
    the folder's own configuration says otherwise.
    """
    present = [name for name in TOKENIZERS if (folder / name).is_file()]
    if not present:
        raise ValueError(f"it holds no tokenizer: none of {', '.join(TOKENIZERS)}")
    if present == [SENTENCEPIECE] and not (is_sentencepiece_available() and is_protobuf_available()):
        raise UserError(
            f"the tokenizer of {folder} is a SentencePiece model, which takes two more packages to read; "
            "install them with: pip install 'specbench[sentencepiece]'"
        )

    config_file = folder / "tokenizer_config.json"
    settings = parse_json(config_file.read_bytes()) if config_file.is_file() else {}
    options = {"legacy": True} if legacy and "legacy" not in settings else {}
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **options)
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    tokenizer(folder.name, add_special_tokens=False)  # some settings of a wrong type show only now
    return tokenizer


def load_model(folder: Path, config: PreTrainedConfig, dtype: torch.dtype, device_map: Mapping[str, str] | None = None) -> PreTrainedModel:
    """Load a folder's model from its ``weight_files``, on the CPU or on the devices of ``device_map``.

    Its generation settings are made from nothing, except for the ids that end an answer: others, such as
    penalties or a missing cache, would change what ``generate`` computes. Raises ValueError where the weights
    do not match the config. Pickles are read as tensors only; one that would run code is an error.
    """
    files = weight_files(folder)
    for file in files:
        check_readable(file)
    safetensors = files[0].suffix == ".safetensors"
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # transformers reports misfits in many lines; the error below is one line
    try:
        loading: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
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

    model, report = loading
    misfits = [(name, "is missing") for name in report["missing_keys"]]
    misfits += [(name, "is unexpected") for name in report["unexpected_keys"]]
    misfits += [(name, f"is {tuple(actual)}, the config needs {tuple(needed)}") for name, actual, needed in report["mismatched_keys"]]
    if misfits:
        name, problem = min(misfits)
        raise ValueError(f"{name} {problem}; {len(misfits)} of its tensors do not match config.json")
    stored = model.generation_config.eos_token_id if model.generation_config is not None else None
    for token_id in stored if isinstance(stored, list) else [stored]:
        if not isinstance(token_id, int | None):
            raise ValueError(f"its eos_token_id {shorten(stored)} is neither a token id nor a list of them")
    model.generation_config = GenerationConfig(eos_token_id=stored, use_cache=True)
    return model.eval().requires_grad_(False)


@contextmanager
def readable(what: str, next_step: str = "it must be a whole transformers checkpoint") -> Iterator[None]:
    """Raise a one-line UserError for whatever the readers of a checkpoint raise, but not for a full memory.

    transformers and the packages that it calls raise exceptions of any type for a file they do not understand.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        reason = one_line(str(error))[:200] or type(error).__name__
        raise UserError(f"{what} cannot be loaded ({reason}); {next_step}") from None


def out_of_memory(error: Exception) -> bool:
    """Return whether an error means that memory is full; on a CPU torch raises a plain RuntimeError then."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)
