"""A target's model on its device, and what identifies it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from methods.core.errors import UserError
from specbench.store.manifest import COST_MATCHED
from specbench.targets import families
from specbench.targets.chat import Chat
from specbench.targets.widen import SHAPES


@dataclass(frozen=True)
class TargetModel:
    """A target's model on its device, with its chat format, its identity and the drafter files the user gave for it."""

    name: str
    model: PreTrainedModel
    chat: Chat
    folder: Path
    weights_sha256: str
    revision: str | None = None  # the commit, for a hub id
    small: PreTrainedModel | None = None  # the small model inside a cost-matched target
    drafter_files: Mapping[str, Path] = field(default_factory=dict)  # files, folders or hub ids, by kind or arm
    stops: Sequence[str] = ()  # tokens, or texts of one token, that the user ends answers with

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The chat format's tokenizer."""
        return self.chat.tokenizer

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end an answer: the tokenizer's end-of-sequence token, those of the generation config, the family's, the user's."""
        configured = self.model.generation_config.eos_token_id if self.model.generation_config is not None else None
        listed = configured if isinstance(configured, list) else [configured]
        vocabulary = self.tokenizer.get_vocab()
        of_family = [vocabulary[token] for token in families.family_of(self.name).stops if token in vocabulary]
        given = [self.chat.token_id(text) for text in self.stops]
        return frozenset(token for token in (*listed, *of_family, *given, self.tokenizer.eos_token_id) if token is not None)

    def check_prompt_end(self) -> None:
        """Raise UserError if a prompt ends in a token that ends an answer: the template asks for none."""
        prompt = self.chat.encode(["A question?"], [])
        if prompt and prompt[-1] in self.stop_ids:
            raise UserError(
                f"a prompt of {self.name} ends in {self.tokenizer.convert_ids_to_tokens(prompt[-1])!r}, which ends an answer: "
                f"the template {self.chat.template} asks for none; choose another --template, or repair the tokenizer's"
            )

    @property
    def label(self) -> str:
        """The label of results on this target: "cost-matched" or nothing."""
        return COST_MATCHED if self.small is not None else ""

    @property
    def note(self) -> str:
        """A sentence that explains the label to a reader of the report; "" without one."""
        if self.small is None:
            return ""
        return (
            f"{self.name} is cost-matched: the small shipped target computed in the shape of {SHAPES[self.name].like}. Its wall-clock "
            "and step costs are real for that shape on this device; its acceptance is the small model's, not a real model's of that size."
        )

    @property
    def prompt_note(self) -> str:
        """The sentences that a reader of results must know about prompts and the end of answers; "" where there is nothing to say."""
        end = self.chat.turn_end
        if end is None or end in self.stop_ids:
            return self.chat.note
        token = self.tokenizer.convert_ids_to_tokens(end)
        unlisted = f"The template ends an assistant's turn with {token!r}, which is no stop token here: answers may run on after it "
        return f"{self.chat.note} {unlisted}(add it with --stop '{token}').".strip()

    @property
    def layers(self) -> dict[str, int]:
        """The number of decoder layers on each device."""
        layers: Any = self.model.base_model.layers
        return dict(Counter(str(next(layer.parameters()).device) for layer in layers))

    @cached_property
    def parameters(self) -> int:
        """The number of the model's parameters."""
        return sum(p.numel() for p in self.model.parameters())
