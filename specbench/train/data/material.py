"""What a drafter is trained from: the corpus in the target's own format, the target's own text, and its features of both."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from transformers import PreTrainedModel

from methods.core.errors import UserError
from methods.core.training import Batch
from specbench.targets import Loaded
from specbench.train import features
from specbench.train.batches import Phase, batch
from specbench.train.data import generate, texts
from specbench.train.data.chat import ChatFormat, Tokens
from specbench.train.data.texts import Windows
from specbench.train.distributed import World
from specbench.train.loop import identity
from specbench.train.recipe import Job, Recipe

MAX_PROMPT = 1024
HELD_OUT_PER_CATEGORY = 24
HELD_OUT_BATCHES = 8


OFTEN = 4  # reads of the target's own text beyond which it is learnt by heart rather than learnt from


def check_context(recipe: Recipe, context: int) -> None:
    """Raise UserError where the target cannot read a window, or a prompt and the answer it is to write."""
    for option, tokens in (("seq", recipe.seq), ("max-new-tokens", recipe.max_new_tokens + 1)):
        if tokens > context:
            raise UserError(f"--{option} takes {tokens} tokens, more than the target's context of {context}; lower it")


def read(job: Job, loaded: Loaded, folder: Path, world: World, console: Console) -> dict[str, Windows]:
    """``held_out`` and ``own``, the target's answers to held-out and to training prompts, and ``corpus``; kept in ``folder``."""
    recipe, model = job.recipe, loaded.model
    chat = ChatFormat(loaded.chat, loaded.stop_ids)
    room = min(MAX_PROMPT, model.config.max_position_embeddings - recipe.max_new_tokens)
    written = _written(folder, recipe)
    answers = partial(generate.write, model, chat, max_new=recipe.max_new_tokens, temperature=recipe.temperature)

    def own(name: str, count: int) -> Tokens:
        asked: list[Tokens] = []
        if not world.agree(partial(texts.complete, written, name)):
            asked = generate.prompts(chat, job.source, held_out=name == "held_out", per_category=count, max_prompt=room)
            answers(asked, folder=written / name, world=world, console=console)
        return world.in_turn(lambda: texts.kept(written, name, partial(generate.collect, chat, asked, written / name), console))

    found = {"held_out": own("held_out", HELD_OUT_PER_CATEGORY)}
    if recipe.regenerate:
        found["own"] = own("own", recipe.regenerate)
    of_corpus = partial(texts.of_corpus, job.source, chat, held_out=False, console=console)
    found["corpus"] = world.in_turn(lambda: texts.kept(folder, "corpus", of_corpus, console))
    return {name: Windows(text, recipe.seq) for name, text in found.items()}


def _written(folder: Path, recipe: Recipe) -> Path:
    """Where the target's own text is kept, and what depends on it."""
    how = {"regenerate": recipe.regenerate, "max_new": recipe.max_new_tokens, "temperature": recipe.temperature}
    return folder / f"written-{identity(how)}"


def answer_counts(windows: Mapping[str, Windows], vocab: int) -> Tensor:
    """How often each token of the vocabulary is the assistant's in the text trained on."""
    counts_V = np.zeros(vocab, np.int64)
    for name, each in windows.items():
        if name != "held_out":
            counts_V += np.bincount(each.text.tokens_T[each.text.answer_T], minlength=vocab)
    return torch.from_numpy(counts_V)


def held_out(loaded: Loaded, windows: Windows, rows: int, reads: tuple[int, ...]) -> list[Batch]:
    """The batches acceptance is measured on."""
    found = []
    for i in range(HELD_OUT_BATCHES):
        numbers_B = windows.numbers(i * rows, rows)
        tokens_BT = windows.tokens(numbers_B).to(loaded.model.device)
        found.append(batch(loaded.model, tokens_BT, windows.answers(numbers_B), features.compute(loaded.model, reads, tokens_BT)))
    return found


def phases(
    job: Job, loaded: Loaded, windows: Mapping[str, Windows], reads: tuple[int, ...], folder: Path, world: World, console: Console
) -> list[Phase]:
    """The corpus and then the target's own text, each with its steps and where its features come from."""
    recipe, model = job.recipe, loaded.model
    steps = dict(zip(("corpus", "own"), recipe.steps(world.size), strict=True))
    for name, count in steps.items():
        if count:
            tokens = count * recipe.step_tokens(world.size)
            times = tokens / len(windows[name]) / recipe.seq
            console.print(f"{name}: {len(windows[name].text.tokens_T):,} tokens, read {times:.2f} times")
            if name == "own" and times > OFTEN:
                console.print(
                    f"warning: the target's own text will be learnt by heart: it is read {times:.0f} times; have it answer more prompts "
                    f"(--regenerate, now {recipe.regenerate} of each category), or train on fewer --tokens",
                    soft_wrap=True,
                )
    if not job.cache_features:
        return [Phase(windows[name], partial(_computed, model, windows[name], reads), count) for name, count in steps.items() if count]
    caches = {}
    for name, count in steps.items():
        if count:
            path = _written(folder, recipe) / f"features-{name}-{identity({'seq': recipe.seq, 'reads': reads})}"
            caches[name] = features.Cache(path, windows[name], count * recipe.parts(world.size) * recipe.rows, model.config, reads)
    world.in_turn(lambda: features.reserve(list(caches.values()), console))
    for cache in caches.values():
        cache.fill(model, recipe.rows, world, console)
    model.base_model.set_submodule("layers", nn.ModuleList())  # all they are needed for is on disk
    return [Phase(windows[name], cache.at, steps[name]) for name, cache in caches.items()]


def _computed(model: PreTrainedModel, windows: Windows, reads: tuple[int, ...], numbers_B: np.ndarray) -> features.Features:
    return features.compute(model, reads, windows.tokens(numbers_B).to(model.device))
