"""Text that the target itself generates. Drafters are trained on it last, since it is what they have to guess."""

import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from specbench.targets.chat import Message
from specbench.train.data import corpus, texts
from specbench.train.data.chat import ChatFormat, Tokens
from specbench.train.distributed import World
from specbench.util import files
from specbench.util.terminal import Console

BATCH = 64  # prompts answered together
ENCODED_AT_ONCE = 256


def write_answers(
    model: PreTrainedModel,
    chat: ChatFormat,
    prompts: list[Tokens],
    *,
    max_new: int,
    temperature: float,
    folder: Path,
    world: World,
    console: Console,
) -> None:
    """Write the target's answers to prompts into files of ``folder``, one a batch; returns when all are written.

    The processes share the batches, and a rerun writes only the missing ones. Each batch has its own seed,
    so its answers do not depend on the process.
    """
    files.make_folder(folder)
    batches = split_batches(prompts)
    for number in range(world.rank, len(batches), world.size):
        if not (path := _answers_file(folder, number)).is_file():
            answers = generate_answers(model, chat, batches[number], max_new, temperature=temperature, seed=number)
            with files.atomic_write(path) as partial:
                partial.write_text(json.dumps(answers), encoding="ascii")
        console.print(f"{folder.name}: answered {min(len(prompts), (number + 1) * BATCH):,} of {len(prompts):,} prompts")
    world.wait()


def collect_text(chat: ChatFormat, prompts: list[Tokens], folder: Path) -> Tokens:
    """Return the prompts and the answers that ``write_answers`` wrote, as one text."""
    return texts.pack(collect_answered(chat, prompts, folder))


def collect_answered(chat: ChatFormat, prompts: list[Tokens], folder: Path) -> list[Tokens]:
    """Return each prompt with the answer that ``write_answers`` wrote."""
    batches = (json.loads(_answers_file(folder, number).read_text(encoding="ascii")) for number in range(len(split_batches(prompts))))
    answered = zip(prompts, itertools.chain.from_iterable(batches), strict=True)
    return [chat.append_answer(prompt, answer) for prompt, answer in answered]


def split_batches(prompts: list[Tokens]) -> list[list[Tokens]]:
    """Split prompts into those that are answered together."""
    return [prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH)]


def _answers_file(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.json"


def choose_prompts(chat: ChatFormat, source: corpus.Source, *, held_out: bool, per_category: int, max_prompt: int) -> list[Tokens]:
    """Return ``per_category`` prompts of each category, the shortest first, so that batches need little padding.

    Prompts longer than ``max_prompt`` tokens are skipped, as are those that the chat template refuses.
    """
    chosen: list[Tokens] = []
    for category, conversations in corpus.prompts(source, held_out=held_out).items():
        encoded = (tokens._replace(category=category) for tokens in _encoded(chat, conversations))
        fitting = (tokens for tokens in encoded if len(tokens.tokens_T) <= max_prompt)
        chosen += itertools.islice(fitting, per_category)
    if not chosen:
        raise corpus.too_small_error(source, f"{'held-out' if held_out else 'training'} prompts of at most {max_prompt} tokens")
    return sorted(chosen, key=lambda tokens: len(tokens.tokens_T))


def _encoded(chat: ChatFormat, conversations: Iterable[list[Message]]) -> Iterator[Tokens]:
    rendered = (text for messages in conversations if (text := chat.render(messages, prompt=True)))
    while batch := list(itertools.islice(rendered, ENCODED_AT_ONCE)):
        yield from chat.encode(batch)


def generate_answers(
    model: Any, chat: ChatFormat, prompts: list[Tokens], max_new: int, *, temperature: float = 0.0, seed: int = 0
) -> list[list[int]]:
    """Return the target's answers, greedy or sampled at a temperature; the stop token is included where there is one.

    If the device's memory is too small for all prompts together, they are answered half by half.
    """
    try:
        return _generate_batch(model, chat, prompts, max_new, temperature, seed)
    except torch.OutOfMemoryError:
        if len(prompts) == 1:
            raise
    halves = prompts[: len(prompts) // 2], prompts[len(prompts) // 2 :]
    return [answer for half in halves for answer in generate_answers(model, chat, half, max_new, temperature=temperature, seed=seed)]


def _generate_batch(model: Any, chat: ChatFormat, prompts: list[Tokens], max_new: int, temperature: float, seed: int) -> list[list[int]]:
    longest = max(len(prompt.tokens_T) for prompt in prompts)
    padding = min(chat.stops)  # masked before a prompt, and cut off after an answer
    ids = torch.full((len(prompts), longest), padding)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt.tokens_T) :] = torch.from_numpy(prompt.tokens_T.astype("int64"))
        mask[row, longest - len(prompt.tokens_T) :] = 1

    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature else {"do_sample": False}
    torch.manual_seed(seed)
    out = model.generate(
        ids.to(model.device),
        attention_mask=mask.to(model.device),
        max_new_tokens=max_new,
        pad_token_id=padding,
        eos_token_id=sorted(chat.stops),
        repetition_penalty=1.0,
        **sampling,
    )
    return [_through_stop(row, chat.stops) for row in out[:, longest:].tolist()]


def _through_stop(answer: list[int], stops: frozenset[int]) -> list[int]:
    end = next((i for i, token in enumerate(answer) if token in stops), len(answer))
    return answer[: end + 1]
