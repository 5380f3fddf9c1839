"""Chat templates: from a conversation to the token ids that a target reads."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from transformers import PreTrainedTokenizerBase

from methods.core.errors import UserError, unknown
from specbench.util.text import one_line

Message = dict[str, str]  # role and content

CHAT = "chat"  # the template that comes with the tokenizer
DEFAULT = "default"  # of several named templates, the one that transformers takes for a plain conversation
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
TEMPLATES = {"vicuna_v1.1": VICUNA_V1_1}  # rendered without a BOS, which ``Chat.opening`` adds
THINKING = "enable_thinking"  # the switch of chat templates that have a thinking mode
END_OF_THOUGHT = "</think>"  # templates leave out what an earlier answer has before it
# The date and time that every template is given, so that a prompt is the same on every day. The day is Llama 3.2's own fallback.
NOW = datetime(2024, 7, 26)
DATE, CLOCK = "date_string", "strftime_now"  # the names by which templates ask for it
READS_CLOCK = re.compile(CLOCK + r"""\(\s*(['"])(.*?)\1\s*\)""")  # with a format that is written out
DAY = NOW.strftime("%d %b %Y")
SAMPLE = (("A question?", "Another one?", "One more?"), ("An answer.", "The second answer."))


@dataclass(frozen=True)
class Chat:
    """The format in which a conversation is put to a target.

    ``template`` is CHAT or a name in TEMPLATES. ``system`` replaces the template's own system prompt,
    ``thinking`` is "on" or "off"; None leaves either to the template. ``rows`` is the number of tokens that
    the model has, None where it is not known. Raises UserError where the template does not support one of
    them, cannot be rendered, or leaves out what was said.
    """

    tokenizer: PreTrainedTokenizerBase
    template: str = CHAT
    system: str | None = None
    thinking: str | None = None
    rows: int | None = None

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
        """The Jinja template; of several named ones, the default."""
        own = self.tokenizer.chat_template
        source = TEMPLATES.get(self.template, own.get(DEFAULT) if isinstance(own, dict) else own)
        if isinstance(source, str):
            return source
        has = f"only templates for other uses ({', '.join(own)})" if isinstance(own, dict) else "no chat template"
        raise UserError(
            f"the tokenizer of {self._where} has {has}; use an instruction-tuned target whose tokenizer has one, "
            f"or name a template: --template {' or '.join(TEMPLATES)}"
        )

    @property
    def sha256(self) -> str:
        """The hash of everything but the conversation that determines a prompt: the template and replaced defaults."""
        changed = self.system is not None or self.thinking is not None
        facts = [self.source, self.system, self.thinking, *([DAY] if self.asks_the_time else [])]
        text = json.dumps(facts) if changed or self.asks_the_time else self.source
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def asks_the_time(self) -> bool:
        """Whether the template writes the date or time and would take it from the clock."""
        return CLOCK in self.source and DATE not in self.source

    @property
    def _timeless_source(self) -> str:
        """The template with ``NOW`` in place of every reading of the clock."""
        timeless = READS_CLOCK.sub(lambda call: f"{call[1]}{NOW.strftime(call[2])}{call[1]}", self.source)
        if f"{CLOCK}(" in timeless:
            raise UserError(
                f"the chat template of {self._where} writes the time in a format that is not written out, so its prompts change from "
                f"question to question; write the format into its call of {CLOCK}, or a date in its place"
            )
        return timeless

    @cached_property
    def opening(self) -> tuple[int, ...]:
        """The ids before the text: the BOS that the tokenizer itself would add to a template of ours.

        A chat template writes its own. Other tokens that a tokenizer adds are left out: an EOS would end the prompt.
        """
        if self.template == CHAT:
            return ()
        added = self.tokenizer("a").input_ids[:1]
        return (added[0],) if added == [self.tokenizer.bos_token_id] else ()

    @property
    def note(self) -> str:
        """A sentence for readers of results on what the template is given; "" where there is nothing to say."""
        return f"The template writes the date or time: in every prompt it is {NOW:%d %b %Y, %H:%M:%S}." if self.asks_the_time else ""

    def token_id(self, text: str) -> int:
        """Return the id of a token, given by its name or by the text that it stands for. Raises UserError where it is not one token."""
        known = self.tokenizer.get_vocab().get(text)
        ids = self.tokenizer(text, add_special_tokens=False).input_ids if known is None else [known]
        if len(ids) != 1:
            raise UserError(f"--stop {text!r} is {len(ids)} tokens of {self._where}, and an answer stops at a single one; name one token")
        return int(ids[0])

    @cached_property
    def turn_end(self) -> int | None:
        """The token that the template puts after an assistant's turn; None where it puts none there."""
        question, answer = SAMPLE[0][0], SAMPLE[1][0]
        try:
            text = self.text([*conversation([question], []), {"role": "assistant", "content": answer}], prompt=False)
        except Exception:  # a template is a program of somebody else
            return None
        _, found, after = text.rpartition(answer)
        ids = self.tokenizer(after.lstrip(), add_special_tokens=False).input_ids if found else []
        return ids[0] if ids and ids[0] in self.tokenizer.added_tokens_decoder else None

    def encode(self, turns: Sequence[str], answers: Sequence[str]) -> list[int]:
        """Return the token ids of a prompt: user turns with the answers between them, one turn more than answers.

        Raises UserError where the template leaves one of them out, or the model has no row for a token.
        """
        messages = conversation(turns, answers)
        text = self.text(messages)
        missing = (self._lost_in_talk if answers else None) or _left_out(messages, text)
        if missing is not None:
            raise self._omission(missing)
        ids = [*self.opening, *self.tokenizer(text, add_special_tokens=False).input_ids]
        self.check_rows(ids)
        return ids

    def check_rows(self, ids: Sequence[int]) -> None:
        """Raise UserError for a token of the tokenizer that the model does not have."""
        highest = max(ids, default=0)
        if self.rows is not None and highest >= self.rows:
            raise UserError(
                f"token {self.tokenizer.convert_ids_to_tokens(highest)!r} has the id {highest} in the tokenizer of {self._where}, whose "
                f"model has {self.rows} tokens; leave it out of the text, or use a tokenizer of this model"
            )

    def text(self, messages: Sequence[Message], *, prompt: bool = True) -> str:
        """Return a conversation as text; a ``prompt`` ends where the next answer starts."""
        return self._render(messages, prompt, self._in_parts)

    def _render(self, messages: Sequence[Message], prompt: bool, in_parts: bool) -> str:
        """Return a conversation as text; ``in_parts``: each content is a list of one part, which some templates need."""
        if self.system is not None:
            messages = [{"role": "system", "content": self.system}, *(message for message in messages if message["role"] != "system")]
        given: list[Any] = [
            {**message, "content": [{"type": "text", "text": message["content"]}]} if in_parts else message for message in messages
        ]
        variables: dict[str, Any] = {THINKING: self.thinking == "on"} if self.thinking else {}
        if DATE in self.source:
            variables |= {DATE: DAY}
        text: Any = self.tokenizer.apply_chat_template(
            given, chat_template=self._timeless_source, add_generation_prompt=prompt, tokenize=False, **variables
        )
        return str(text)

    @cached_property
    def _in_parts(self) -> bool:
        """Whether the template loses a text given as it is, and takes it as a list of parts."""
        question = conversation(SAMPLE[0][:1], [])

        def takes(in_parts: bool) -> bool:
            try:
                return not _left_out(question, self._render(question, True, in_parts))
            except Exception:  # a template is a program of somebody else
                return False

        return not takes(in_parts=False) and takes(in_parts=True)

    @property
    def _where(self) -> str:
        return self.tokenizer.name_or_path

    def _render_sample(self) -> str:
        """Return the prompt of a question. Raises UserError where it cannot be rendered or leaves the question out."""
        question = conversation(SAMPLE[0][:1], [])
        try:
            text = self.text(question)
        except UserError:
            raise
        except Exception as error:  # a template is a program of somebody else
            reason = one_line(str(error))[:200]
            next_step = "repair it there" if self.system is None else "repair it there, or leave --system-prompt out"
            raise UserError(f"the chat template of {self._where} cannot be rendered ({reason}); {next_step}") from None
        if missing := _left_out(question, text):
            raise self._omission(missing)
        return text

    @cached_property
    def _lost_in_talk(self) -> Message | None:
        """The first turn that the template leaves out of a conversation of several; answers of a run come too late to find out."""
        talk = conversation(*SAMPLE)
        return _left_out(talk, self.text(talk))

    def _omission(self, message: Message) -> UserError:
        who, said = "user" if message["role"] == "user" else "earlier answer", " ".join(message["content"].split())
        return UserError(
            f"the template {self.template} of {self._where} leaves out what the {who} said, {said[:60]!r}; "
            f"repair it there, or name another: --template {' or '.join(TEMPLATES)}"
        )


def conversation(turns: Sequence[str], answers: Sequence[str]) -> list[Message]:
    """Return the messages of user turns with the answers between them; the last turn is unanswered."""
    assert len(turns) == len(answers) + 1, "a prompt ends with an unanswered turn"
    messages = [{"role": "user", "content": turns[0]}]
    for answer, turn in zip(answers, turns[1:], strict=True):
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": turn}]
    return messages


def _left_out(messages: Sequence[Message], text: str) -> Message | None:
    """Return the first message that does not occur in a rendered text, white space and an answer's thoughts aside; None if all do."""
    rest = "".join(text.split())
    for message in messages:
        content = message["content"] if message["role"] == "user" else message["content"].rpartition(END_OF_THOUGHT)[2]
        _, found, after = rest.partition("".join(content.split())) if content.strip() else ("", "nothing", rest)
        if not found:
            return message
        rest = after
    return None


def ids_sha256(ids: Sequence[int]) -> str:
    """Return the hash of token ids; equal prompts have equal hashes whatever text they came from."""
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()
