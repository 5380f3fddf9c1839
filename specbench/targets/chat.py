"""Chat templates: from a conversation to the token ids that a target reads."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from methods.core.errors import UserError, unknown

Message = dict[str, str]  # role and content

CHAT = "chat"  # the template that comes with the tokenizer
# FastChat's vicuna_v1.1, which Spec-Bench uses for every target. As in FastChat, nothing follows the colon of an empty answer.
VICUNA_V1_1 = (
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% else %}"
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
    "{% endif %} "
    "{% for message in messages if message.role != 'system' %}"
    "{{ 'USER:' if message.role == 'user' else 'ASSISTANT:' }}"
    "{% if message.content %} {{ message.content }}{{ ' ' if message.role == 'user' else '</s>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)
TEMPLATES = {"vicuna_v1.1": VICUNA_V1_1}  # rendered without a BOS, which the tokenizer adds where it has one
THINKING = "enable_thinking"  # the switch of chat templates that have a thinking mode
DATE = "date_string"  # Llama 3.2's template writes today's date, which would change the prompt from day to day
DAY = "26 Jul 2024"  # the template's own fallback date


@dataclass(frozen=True)
class Chat:
    """The format in which a conversation is put to a target.

    ``template`` is CHAT or a name in TEMPLATES. ``system`` replaces the template's own system prompt,
    ``thinking`` is "on" or "off"; None leaves either to the template. Raises UserError where the
    template does not support one of them or cannot be rendered.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str = CHAT
    system: str | None = None
    thinking: str | None = None

    def __post_init__(self) -> None:
        if self.template not in (CHAT, *TEMPLATES):
            raise unknown("template", self.template, (CHAT, *TEMPLATES))
        if self.thinking not in (None, "on", "off"):
            raise unknown("value of --thinking", str(self.thinking), ("on", "off"))
        if self.thinking and THINKING not in self.source:
            raise UserError(f"the template {self.template} of {self._where} knows no thinking mode; leave --thinking out")
        sample = self._render_sample()
        if self.system is not None and self.system.strip() not in sample:
            raise UserError(f"the template {self.template} of {self._where} has no place for a system prompt; leave --system-prompt out")

    @property
    def source(self) -> str:
        """The Jinja template."""
        source = TEMPLATES.get(self.template, self.tokenizer.chat_template)
        if not isinstance(source, str):
            raise UserError(
                f"the tokenizer of {self._where} has no single chat template; use an instruction-tuned target whose tokenizer has one, "
                f"or name a template: --template {' or '.join(TEMPLATES)}"
            )
        return source

    @property
    def sha256(self) -> str:
        """The hash of everything but the conversation that determines a prompt: the template and replaced defaults."""
        changed = self.system is not None or self.thinking is not None
        text = json.dumps([self.source, self.system, self.thinking]) if changed else self.source
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def adds_special(self) -> bool:
        """Whether the tokenizer has to add its BOS; a chat template writes its own."""
        return self.template != CHAT

    def encode(self, turns: Sequence[str], answers: Sequence[str]) -> list[int]:
        """Return the token ids of a prompt: user turns with the answers between them, one turn more than answers."""
        return list(self.tokenizer(self.text(conversation(turns, answers)), add_special_tokens=self.adds_special).input_ids)

    def text(self, messages: Sequence[Message], *, prompt: bool = True) -> str:
        """Return a conversation as text; a ``prompt`` ends where the next answer starts."""
        if self.system is not None:
            messages = [{"role": "system", "content": self.system}, *(message for message in messages if message["role"] != "system")]
        variables: dict[str, Any] = {THINKING: self.thinking == "on"} if self.thinking else {}
        if DATE in self.source:
            variables |= {DATE: DAY}
        text: Any = self.tokenizer.apply_chat_template(
            list(messages), chat_template=self.source, add_generation_prompt=prompt, tokenize=False, **variables
        )
        return str(text)

    @property
    def _where(self) -> str:
        return self.tokenizer.name_or_path

    def _render_sample(self) -> str:
        try:
            return self.text(conversation(["A question?"], []))
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            reason = " ".join(str(error).split())[:200]
            next_step = "repair it there" if self.system is None else "repair it there, or leave --system-prompt out"
            raise UserError(f"the chat template of {self._where} cannot be rendered ({reason}); {next_step}") from None


def conversation(turns: Sequence[str], answers: Sequence[str]) -> list[Message]:
    """Return the messages of user turns with the answers between them; the last turn is unanswered."""
    assert len(turns) == len(answers) + 1, "a prompt ends with an unanswered turn"
    messages = [{"role": "user", "content": turns[0]}]
    for answer, turn in zip(answers, turns[1:], strict=True):
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": turn}]
    return messages


def ids_sha256(ids: Sequence[int]) -> str:
    """Return the hash of token ids; equal prompts have equal hashes whatever text they came from."""
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()
