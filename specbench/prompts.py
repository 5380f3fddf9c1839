"""From a conversation to the token ids a target reads, through the tokenizer's own chat template."""

import hashlib
from collections.abc import Sequence

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods.core.errors import UserError


def encode(tokenizer: PreTrainedTokenizerBase, turns: Sequence[str], answers: Sequence[str]) -> list[int]:
    """Token ids of user turns and earlier answers, ending where the next answer starts.

    ``len(turns) == len(answers) + 1``. Raises UserError where the tokenizer has no chat template.
    """
    assert len(turns) == len(answers) + 1, "a prompt ends with an unanswered turn"
    messages = [{"role": "user", "content": turns[0]}]
    for answer, turn in zip(answers, turns[1:], strict=True):
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": turn}]
    _template(tokenizer)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=False)
    return list(ids)


def template_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    return hashlib.sha256(_template(tokenizer).encode()).hexdigest()


def ids_sha256(ids: Sequence[int]) -> str:
    """Hash of token ids; equal prompts hash alike whatever text they came from."""
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()


def stop_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids that end an answer: the tokenizer's end-of-sequence token and those of the model's generation config."""
    configured = model.generation_config.eos_token_id if model.generation_config is not None else None
    listed = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in (*listed, tokenizer.eos_token_id) if token is not None)


def _template(tokenizer: PreTrainedTokenizerBase) -> str:
    template = tokenizer.chat_template
    if not isinstance(template, str):
        raise UserError("the target's tokenizer has no single chat template; use an instruction-tuned target whose tokenizer has one")
    return template
