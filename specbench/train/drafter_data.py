"""The training data of a drafter: the corpus in the target's format, the target's own text, its features of both, and batches.

A batch is a pure function of the optimizer step, in whichever process it is computed.

Shape letters: B rows, T tokens of a row, D width, P chosen positions, K offsets from a position.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from methods.core.errors import UserError
from methods.core.training import Batch, positions, totals
from specbench.targets import Loaded
from specbench.train import features
from specbench.train.data import generate, texts
from specbench.train.data.chat import ChatFormat, Tokens
from specbench.train.data.texts import Windows
from specbench.train.distributed import World
from specbench.train.features import Features
from specbench.train.loop import settings_hash
from specbench.train.recipe import Job, Recipe
from specbench.util.terminal import Console

MAX_PROMPT = 1024  # tokens
HELD_OUT_PER_CATEGORY = 24
HELD_OUT_BATCHES = 8
MANY_READS = 4  # of the target's own text, beyond which a drafter overfits it


class TrainingPhase(NamedTuple):
    """A stretch of the training that reads one text."""

    windows: Windows
    features: Callable[[np.ndarray], Features]  # from the numbers of windows
    steps: int
    greedy: bool = False  # whether the text is the target's own, chosen greedily


def check_context(recipe: Recipe, config: PreTrainedConfig, lookahead: int) -> None:
    """Raise UserError where a window is too short for a drafter's ``lookahead``, or the target's context for a window or an answer."""
    if recipe.seq < lookahead + 4:
        raise UserError(f"--seq is {recipe.seq}; it must be at least {lookahead + 4} for this drafter")
    context = config.max_position_embeddings
    for option, tokens in (("seq", recipe.seq), ("max-new-tokens", recipe.max_new_tokens + 1)):
        if tokens > context:
            raise UserError(f"--{option} takes {tokens} tokens, more than the target's context of {context}; lower it")


def load_windows(job: Job, loaded: Loaded, folder: Path, world: World, console: Console) -> dict[str, Windows]:
    """Return the windows of the texts ``held_out``, ``own`` and ``corpus``, which are saved in ``folder``.

    ``held_out`` and ``own`` are the target's answers to held-out and to training prompts.
    """
    recipe, model = job.recipe, loaded.model
    chat = ChatFormat(loaded.chat, loaded.stop_ids)
    own_folder = _own_text_folder(folder, recipe)
    write_answers = partial(generate.write_answers, model, chat, max_new=recipe.max_new_tokens, temperature=recipe.temperature)

    def own_text(name: str) -> Tokens:
        prompts: list[Tokens] = []
        if not world.synchronized(partial(texts.is_saved, own_folder, name)):
            prompts = _choose_prompts(job, loaded, chat, held_out=name == "held_out")
            write_answers(prompts, folder=own_folder / name, world=world, console=console)
        collect = partial(generate.collect_text, chat, prompts, own_folder / name)
        return world.leader_first(lambda: texts.load_or_make(own_folder, name, collect, console))

    by_name = {"held_out": own_text("held_out")}
    if recipe.regenerate:
        by_name["own"] = own_text("own")

    make_corpus = partial(texts.of_corpus, job.source, chat, held_out=False, console=console)
    by_name["corpus"] = world.leader_first(lambda: texts.load_or_make(folder, "corpus", make_corpus, console))
    return {name: Windows(text, recipe.seq) for name, text in by_name.items()}


def _own_text_folder(folder: Path, recipe: Recipe) -> Path:
    """Return the folder of the target's own text and of everything that depends on it."""
    settings = {"regenerate": recipe.regenerate, "max_new": recipe.max_new_tokens, "temperature": recipe.temperature}
    return folder / f"written-{settings_hash(settings)}"


def _choose_prompts(job: Job, loaded: Loaded, chat: ChatFormat, *, held_out: bool) -> list[Tokens]:
    """Return the prompts that the target answers, the same in every call."""
    recipe, context = job.recipe, loaded.model.config.max_position_embeddings
    per_category, max_prompt = HELD_OUT_PER_CATEGORY if held_out else recipe.regenerate, min(MAX_PROMPT, context - recipe.max_new_tokens)
    return generate.choose_prompts(chat, job.source, held_out=held_out, per_category=per_category, max_prompt=max_prompt)


def held_out_coverage(job: Job, loaded: Loaded, folder: Path, tokens_U: Tensor) -> dict[str, float]:
    """Return the share of the target's held-out answers that a draft vocabulary covers: of all tokens, then by category."""
    chat, known = ChatFormat(loaded.chat, loaded.stop_ids), tokens_U.cpu().numpy()
    prompts = _choose_prompts(job, loaded, chat, held_out=True)
    covered, counted = Counter[str](), Counter[str]()
    for each in generate.collect_answered(chat, prompts, _own_text_folder(folder, job.recipe) / "held_out"):
        answer = each.tokens_T[each.answer_T]
        for name in ("all", each.category):
            covered[name] += int(np.isin(answer, known).sum())
            counted[name] += len(answer)
    return {name: round(covered[name] / counted[name], 5) for name in ["all", *sorted(counted.keys() - {"all"})] if counted[name]}


def coverage_text(coverage: Mapping[str, float]) -> str:
    """Return a coverage as in ``96.3% (qa 97.0%, translation 91.2%)``."""
    by_category = ", ".join(f"{name} {share:.1%}" for name, share in coverage.items() if name != "all")
    return f"{coverage['all']:.1%} ({by_category})"


def count_answer_tokens(windows: Mapping[str, Windows], vocab: int) -> Tensor:
    """Return how often each token of the vocabulary is the assistant's in the training text."""
    counts_V = np.zeros(vocab, np.int64)
    for name, of_text in windows.items():
        if name != "held_out":
            counts_V += np.bincount(of_text.text.tokens_T[of_text.text.answer_T], minlength=vocab)
    return torch.from_numpy(counts_V)


def held_out_batches(loaded: Loaded, windows: Windows, rows: int, reads: tuple[int, ...]) -> list[Batch]:
    """Return the batches on which acceptance is measured."""
    batches = []
    for i in range(HELD_OUT_BATCHES):
        numbers_B = windows.numbers(i * rows, rows)
        tokens_BT = windows.tokens(numbers_B).to(loaded.model.device)
        target_features = features.compute(loaded.model, reads, tokens_BT)
        batches.append(make_batch(loaded.model, tokens_BT, windows.answers(numbers_B), target_features))
    return batches


def training_phases(
    job: Job, loaded: Loaded, windows: Mapping[str, Windows], reads: tuple[int, ...], folder: Path, world: World, console: Console
) -> list[TrainingPhase]:
    """Return the phases of a training, the corpus and then the target's own text, with the source of their features."""
    recipe, model = job.recipe, loaded.model
    steps = {name: count for name, count in zip(("corpus", "own"), recipe.steps(world.size), strict=True) if count}
    for name, count in steps.items():
        _print_reads(name, windows[name], count * recipe.step_tokens(world.size), recipe, console)

    greedy = {"corpus": False, "own": recipe.temperature == 0}
    if not job.cache_features:
        return [
            TrainingPhase(windows[name], partial(_compute, model, windows[name], reads), count, greedy[name])
            for name, count in steps.items()
        ]

    caches = {}
    for name, count in steps.items():
        path = _own_text_folder(folder, recipe) / f"features-{name}-{settings_hash({'seq': recipe.seq, 'reads': reads})}"
        window_count = count * recipe.micro_batches(world.size) * recipe.rows
        caches[name] = features.FeatureCache(path, windows[name], window_count, model.config, reads)
    world.leader_first(lambda: features.reserve_disk(list(caches.values()), console))
    for cache in caches.values():
        cache.fill(model, recipe.rows, world, console)
    model.base_model.set_submodule("layers", nn.ModuleList())  # no longer needed: frees their memory
    return [TrainingPhase(windows[name], cache.at, steps[name], greedy[name]) for name, cache in caches.items()]


def _print_reads(name: str, windows: Windows, tokens: int, recipe: Recipe, console: Console) -> None:
    """Print how often a text is read, and a warning where that is too often."""
    times = tokens / len(windows) / recipe.seq
    console.print(f"{name}: {len(windows.text.tokens_T):,} tokens, read {times:.2f} times")
    if name == "own" and times > MANY_READS:
        console.print(
            f"warning: the drafter will overfit the target's own text: it is read {times:.0f} times; have it answer more prompts "
            f"(--regenerate, now {recipe.regenerate} of each category), or train on fewer --tokens",
            soft_wrap=True,
        )


def _compute(model: PreTrainedModel, windows: Windows, reads: tuple[int, ...], numbers_B: np.ndarray) -> Features:
    return features.compute(model, reads, windows.tokens(numbers_B).to(model.device))


class TrainingBatches:
    """The batches of a training whose ``phases`` follow each other.

    An optimizer step has ``micro_batches`` of the recipe's rows. The drafter learns from the recipe's
    ``positions`` of each at most, which have ``lookahead`` tokens after them. All randomness in a
    micro-batch, that of the loss included, is seeded by the micro-batch's number in the whole training.
    """

    def __init__(self, model: PreTrainedModel, phases: Sequence[TrainingPhase], *, micro_batches: int, recipe: Recipe, lookahead: int):
        self._model, self._phases, self._lookahead = model, phases, lookahead
        self._micro_batches, self._rows, self._at_most = micro_batches, recipe.rows, recipe.positions

    def totals(self, step: int) -> Tensor:
        """Return ``Batch.totals_K`` of a step, over which its losses are averaged.

        The result is the same in every process and needs no communication.
        """
        drawn = [self._draw_positions(step, index) for index in range(self._micro_batches)]
        return torch.stack([totals(answer_BT, chosen_P, self._lookahead) for answer_BT, chosen_P in drawn]).sum(dim=0)

    def batch(self, step: int, index: int, totals_K: Tensor) -> Batch:
        """Return a micro-batch on the target's device, and seed the random state for its loss."""
        phase, numbers_B = self._windows_of(step, index)
        target_features = phase.features(numbers_B)
        answer_BT, chosen_P = self._draw_positions(step, index)
        batch = make_batch(self._model, phase.windows.tokens(numbers_B), answer_BT, target_features, chosen_P, totals_K)
        return replace(batch, greedy=phase.greedy)

    def _draw_positions(self, step: int, index: int) -> tuple[Tensor, Tensor]:
        """Return a micro-batch's mask of the assistant's tokens and the positions drawn in it; sets the seed."""
        phase, numbers_B = self._windows_of(step, index)
        answer_BT = phase.windows.answers(numbers_B)
        torch.manual_seed(step * self._micro_batches + index)
        return answer_BT, positions(answer_BT, self._at_most, self._lookahead)

    def _windows_of(self, step: int, index: int) -> tuple[TrainingPhase, np.ndarray]:
        for phase in self._phases:
            if step < phase.steps:
                return phase, phase.windows.numbers((step * self._micro_batches + index) * self._rows, self._rows)
            step -= phase.steps
        raise AssertionError("a step after the last")


def make_batch(
    model: PreTrainedModel,
    tokens_BT: Tensor,
    answer_BT: Tensor,
    target_features: Features,
    chosen_P: Tensor | None = None,
    totals_K: Tensor | None = None,
) -> Batch:
    """Return a batch with all its tensors on the target's device."""
    last_BTD, deep_BTD = target_features
    tokens_BT, last_BTD, answer_BT = (tensor.to(model.device) for tensor in (tokens_BT, last_BTD, answer_BT))
    deep_BTD, chosen_P, totals_K = (None if tensor is None else tensor.to(model.device) for tensor in (deep_BTD, chosen_P, totals_K))
    embed, lm_head = model.get_input_embeddings(), model.get_output_embeddings()
    return Batch(tokens_BT, last_BTD, answer_BT, embed, lm_head, deep_BTD, chosen_P, totals_K)
