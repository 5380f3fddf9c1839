"""Text the target itself writes: what drafters are trained on last, since it is what they will have to guess."""

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import PreTrainedModel

from specbench.targets.chat import Message
from specbench.train.data import corpus, texts
from specbench.train.data.chat import ChatFormat, Tokens
from specbench.train.distributed import World
from specbench.util import files

BATCH = 64
ENCODED_AT_ONCE = 256


def write(
    model: PreTrainedModel,
    chat: ChatFormat,
    asked: list[Tokens],
    *,
    max_new: int,
    temperature: float,
    folder: Path,
    world: World,
    console: Console,
) -> None:
    """The target's answers to prompts, batch by batch into files of ``folder``; returns when all are there.

    The processes share the batches out, and a rerun writes only those that are missing. Each has a seed of its own, so that
    they do not depend on who writes them.
    """
    files.folder(folder)
    parts = batches(asked)
    for number in range(world.rank, len(parts), world.size):
        if not (path := _kept(folder, number)).is_file():
            found = answers(model, chat, parts[number], max_new, temperature=temperature, seed=number)
            with files.whole(path) as partial:
                partial.write_text(json.dumps(found), encoding="ascii")
        console.print(f"{folder.name}: answered {min(len(asked), (number + 1) * BATCH):,} of {len(asked):,} prompts")
    world.wait()


def collect(chat: ChatFormat, asked: list[Tokens], folder: Path) -> Tokens:
    """The prompts and what ``write`` left of answers to them, as one text."""
    written = (json.loads(_kept(folder, number).read_text(encoding="ascii")) for number in range(len(batches(asked))))
    answered = zip(asked, itertools.chain.from_iterable(written), strict=True)
    return texts.packed([chat.answered(prompt, answer) for prompt, answer in answered])


def batches(asked: list[Tokens]) -> list[list[Tokens]]:
    return [asked[start : start + BATCH] for start in range(0, len(asked), BATCH)]


def _kept(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.json"


def prompts(chat: ChatFormat, source: corpus.Source, *, held_out: bool, per_category: int, max_prompt: int) -> list[Tokens]:
    """Prompts up to the assistant's turn, shortest first (so that batches pad little); categories count alike.

    Those longer than ``max_prompt`` tokens are passed over, as are those the chat template does not take.
    """
    chosen: list[Tokens] = []
    for conversations in corpus.prompts(source, held_out=held_out).values():
        fitting = (tokens for tokens in _encoded(chat, conversations) if len(tokens.tokens_T) <= max_prompt)
        chosen += itertools.islice(fitting, per_category)
    if not chosen:
        raise corpus.too_small(source, f"{'held-out' if held_out else 'training'} prompts of at most {max_prompt} tokens")
    return sorted(chosen, key=lambda tokens: len(tokens.tokens_T))


def _encoded(chat: ChatFormat, conversations: Iterable[list[Message]]) -> Iterator[Tokens]:
    rendered = (each for asked in conversations if (each := chat.render(asked, prompt=True)))
    while batch := list(itertools.islice(rendered, ENCODED_AT_ONCE)):
        yield from chat.encode(batch)


def answers(model: Any, chat: ChatFormat, asked: list[Tokens], max_new: int, *, temperature: float = 0.0, seed: int = 0) -> list[list[int]]:
    """The target's answers, greedy or drawn at a temperature from its whole distribution; the end token included where it came.

    Prompts too many for the device's memory are answered half by half.
    """
    try:
        return _together(model, chat, asked, max_new, temperature, seed)
    except torch.OutOfMemoryError:
        if len(asked) == 1:
            raise
    halves = asked[: len(asked) // 2], asked[len(asked) // 2 :]
    return [answer for half in halves for answer in answers(model, chat, half, max_new, temperature=temperature, seed=seed)]


def _together(model: Any, chat: ChatFormat, asked: list[Tokens], max_new: int, temperature: float, seed: int) -> list[list[int]]:
    longest = max(len(prompt.tokens_T) for prompt in asked)
    filler = min(chat.stops)  # never read: it is masked before a prompt, and cut off after an answer
    ids = torch.full((len(asked), longest), filler)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(asked):
        ids[row, longest - len(prompt.tokens_T) :] = torch.from_numpy(prompt.tokens_T.astype("int64"))
        mask[row, longest - len(prompt.tokens_T) :] = 1
    how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {"do_sample": False}
    torch.manual_seed(seed)
    out = model.generate(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=max_new,
        pad_token_id=filler,
        eos_token_id=sorted(chat.stops),
        repetition_penalty=1.0,
        **how,
    )
    return [_through_stop(row, chat.stops) for row in out[:, longest:].tolist()]


def _through_stop(answer: list[int], stops: frozenset[int]) -> list[int]:
    end = next((i for i, token in enumerate(answer) if token in stops), len(answer))
    return answer[: end + 1]
