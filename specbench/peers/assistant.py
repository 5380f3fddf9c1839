"""The draft model of transformers' assisted generation: any causal model with the target's vocabulary."""

import hashlib
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from methods.core.errors import UserError
from specbench.options import Options
from specbench.targets import Loaded

SHARED_WITH = "sps"  # whose draft model serves where hf-assisted has none of its own


def assistant_folder(arm: str, options: Options) -> Path:
    """Where the arm's draft model is. Raises UserError where none is given or it is no checkpoint."""
    given = options.drafter_files
    folder = given.get(arm) or given.get("hf-assisted") or given.get(SHARED_WITH)
    if folder is None:
        raise UserError("hf-assisted needs a draft model with the target's vocabulary; pass --drafter hf-assisted=FOLDER")
    if not (folder / "config.json").is_file():
        raise UserError(f"--drafter hf-assisted={folder}: no config.json there; give the folder of a transformers checkpoint")
    return folder


def assistant(folder: Path, loaded: Loaded, nodes: int) -> tuple[PreTrainedModel, str]:
    """The draft model on the target's device in its dtype, drafting at most ``nodes`` tokens a round, and its weights' sha256.

    Raises UserError where it cannot be loaded or has another vocabulary.
    """
    target = loaded.model
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=target.dtype, attn_implementation=target.config._attn_implementation, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"--drafter hf-assisted={folder} cannot be loaded ({reason}); give a whole transformers checkpoint") from None
    sizes = (model.config.vocab_size, target.config.vocab_size)
    if sizes[0] != sizes[1] or tokenizer.get_vocab() != loaded.tokenizer.get_vocab():
        raise UserError(
            f"--drafter hf-assisted={folder}: its vocabulary ({sizes[0]} tokens) is not {loaded.name}'s ({sizes[1]}); give a draft model "
            "with the target's tokenizer"
        )
    # Where generate looks for them. A constant number of drafts: the other schedules carry theirs from answer to answer.
    model.generation_config.num_assistant_tokens = nodes
    model.generation_config.num_assistant_tokens_schedule = "constant"
    model.to(target.device)  # type: ignore[arg-type]  # transformers' wrapper hides the argument
    return model.eval().requires_grad_(False), _sha256(folder)


def _sha256(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
