"""A chat record as a target reads it: in the target's own format, with the places of the assistant's answers."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jinja2 import TemplateError

from methods.core.errors import UserError
from specbench.targets.chat import Chat, Message


class Rendered(NamedTuple):
    text: str
    answers: tuple[int, ...]  # the character each answer starts at


class Tokens(NamedTuple):
    """Token ids, uint16 where the vocabulary allows it, else uint32; and which are the assistant's, its end token included."""

    tokens_T: np.ndarray
    answer_T: np.ndarray


class ChatFormat:
    """Conversations as a target is talked to. ``stops`` are the ids that end an answer. Raises UserError without one."""

    def __init__(self, chat: Chat, stops: frozenset[int]):
        tokenizer = chat.tokenizer
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UserError(
                f"the target's tokenizer, {type(tokenizer).__name__}, tells no places of characters; use one with a tokenizer.json"
            )
        if not stops:
            raise UserError("nothing ends an answer of this target: neither its tokenizer nor its generation config names an end token")
        self.stops = stops
        self._chat, self._backend = chat, backend
        self._dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32

    def render(self, messages: Sequence[Message], *, prompt: bool) -> Rendered | None:
        """A conversation, or with ``prompt`` one that ends where the next answer starts; None where the template refuses it.

        An answer starts where the prompt before it ends. One whose prompt the template writes otherwise once more turns follow
        has no such place, and does not count as one.
        """
        try:
            text = self._chat.text(messages, prompt=prompt)
            asked = [self._chat.text(messages[:i], prompt=True) for i, message in enumerate(messages) if message["role"] == "assistant"]
        except TemplateError:
            return None
        return Rendered(text, tuple(len(each) for each in asked if text.startswith(each)))

    def encode(self, rendered: Sequence[Rendered]) -> list[Tokens]:
        encodings = self._backend.encode_batch([each.text for each in rendered], add_special_tokens=self._chat.adds_special)
        found = []
        for each, encoding in zip(rendered, encodings, strict=True):
            tokens_T = np.array(encoding.ids, self._dtype)
            ends_T = np.array([end for _, end in encoding.offsets], np.int64)
            found.append(Tokens(tokens_T, self._answers(tokens_T, ends_T, each.answers)))
        return found

    def answered(self, asked: Tokens, answer: Sequence[int]) -> Tokens:
        """A prompt with an answer the target wrote."""
        written_T = np.array(answer, self._dtype)
        return Tokens(np.concatenate([asked.tokens_T, written_T]), np.concatenate([asked.answer_T, np.ones(len(answer), bool)]))

    def _answers(self, tokens_T: np.ndarray, ends_T: np.ndarray, answers: Sequence[int]) -> np.ndarray:
        """True from the first token that reaches into an answer to the first that ends one; the last of a text may have no end."""
        answer_T = np.zeros(len(tokens_T), bool)
        firsts = [int((ends_T <= start).sum()) for start in answers]
        for first, bound in pairwise([*firsts, len(tokens_T)]):
            stops = np.flatnonzero(np.isin(tokens_T[first:bound], list(self.stops)))
            if len(stops):
                answer_T[first : first + stops[0] + 1] = True
            elif bound == len(tokens_T):
                answer_T[first:] = True
        return answer_T
