"""Chat records in a target's own format, with the positions of the assistant's tokens."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jinja2 import TemplateError

from methods.core.errors import UserError
from specbench.targets.chat import Chat, Message


class Rendered(NamedTuple):
    """A conversation as text."""

    text: str
    answers: tuple[int, ...]  # the index of the character that each answer starts at


class Tokens(NamedTuple):
    """Token ids, and which of them are the assistant's, its end token included."""

    tokens_T: np.ndarray  # uint16 where the vocabulary allows it, else uint32
    answer_T: np.ndarray  # bool
    category: str = ""  # of a prompt that was chosen by category, and of its answer


class ChatFormat:
    """A target's chat format for training text. ``stops`` are the ids that end an answer.

    Raises UserError without any, and for a tokenizer that cannot tell the characters of its tokens.
    """

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
        """Return a conversation as text, or None where the template refuses it.

        A ``prompt`` ends where the next answer starts. An answer starts where the prompt before it ends;
        if the template renders that prompt differently once more turns follow, the answer is not counted.
        """
        try:
            text = self._chat.text(messages, prompt=prompt)
            prompts = [self._chat.text(messages[:i], prompt=True) for i, message in enumerate(messages) if message["role"] == "assistant"]
        except TemplateError:
            return None
        return Rendered(text, tuple(len(before) for before in prompts if text.startswith(before)))

    def encode(self, rendered: Sequence[Rendered]) -> list[Tokens]:
        """Tokenize conversations."""
        encodings = self._backend.encode_batch([conversation.text for conversation in rendered], add_special_tokens=False)
        opening = self._chat.opening
        tokens = []
        for conversation, encoding in zip(rendered, encodings, strict=True):
            self._chat.check_rows(encoding.ids)
            tokens_T = np.array([*opening, *encoding.ids], self._dtype)
            ends_T = np.array([0] * len(opening) + [end for _, end in encoding.offsets], np.int64)
            tokens.append(Tokens(tokens_T, self._answer_mask(tokens_T, ends_T, conversation.answers)))
        return tokens

    def append_answer(self, prompt: Tokens, answer: Sequence[int]) -> Tokens:
        """Return a prompt followed by an answer that the target generated."""
        answer_T = np.array(answer, self._dtype)
        mask_T = np.concatenate([prompt.answer_T, np.ones(len(answer), bool)])
        return prompt._replace(tokens_T=np.concatenate([prompt.tokens_T, answer_T]), answer_T=mask_T)

    def _answer_mask(self, tokens_T: np.ndarray, ends_T: np.ndarray, answers: Sequence[int]) -> np.ndarray:
        """Return a mask that is true from the first token that reaches into an answer to the answer's stop token.

        An answer without a stop token does not count, except at the end of the text. ``ends_T`` are the
        characters at which tokens end, ``answers`` those at which answers start.
        """
        answer_T = np.zeros(len(tokens_T), bool)
        firsts = [int((ends_T <= start).sum()) for start in answers]
        for first, bound in pairwise([*firsts, len(tokens_T)]):
            stops = np.flatnonzero(np.isin(tokens_T[first:bound], list(self.stops)))
            if len(stops):
                answer_T[first : first + stops[0] + 1] = True
            elif bound == len(tokens_T):
                answer_T[first:] = True
        return answer_T
