"""The model card of a trained target: its data, its quality, its drafters and samples of its output."""

import hashlib
import math
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from methods.core import weights
from methods.core.errors import UserError
from specbench import suites, targets
from specbench.analysis.agreement import repetition
from specbench.train.data import corpus, generate, texts
from specbench.train.data.chat import ChatFormat
from specbench.train.data.texts import Windows
from specbench.train.drafter_data import coverage_text
from specbench.train.target import FACTS
from specbench.util import files
from specbench.util.stored import FileFormat, read_json
from specbench.util.terminal import Console

WINDOW = 1024
REPETITIVE = 0.5  # an answer counts as repetitive if more of its 4-grams than this share occurred before
SAMPLE_TOKENS = 64
PER_CATEGORY = 24
ANSWER_TOKENS = 160

# The corpus of the shipped target, and the paragraph of the card that was verified for this corpus only.
SHIPPED_CORPUS_SHA256 = "864eff6757746fef56c52ad734a35828e07a04d43d9c2ac8460fe5bd9b4ff7ed"
SHIPPED_CORPUS_NOTE = """
The records were decontaminated against Spec-Bench's 480 items (13-word n-grams and whole questions); Spec-Bench itself was neither
trained nor tuned on. The weights are published under Apache-2.0 as far as we can decide that; if you must avoid a source's terms,
retrain without that source.
"""

TEMPLATE = """# Model card: a small target trained by specbench

A {parameters:,}-parameter Llama ({layers} layers x {hidden}, {heads} heads x {head_dim}, {vocab} BPE tokens, context {context}),
trained from scratch so that speculative decoding can be measured without a download. It is for measuring only, not an
assistant: its sentences are often fluent, but its facts are unreliable. Do not use its answers.

| | |
|---|---|
| held-out loss | {loss:.3f} nats a token, {bits:.3f} bits a byte ({held_out_tokens:,} tokens of prompts held out of the corpus below) |
| greedy answers that fall into repetition | {repetitive:.0%} of {answers} (over half of the 4-grams repeat; {new_tokens} tokens at most) |
| trained with | `specbench train target --preset {preset}` |
| steps | {steps:,} x {batch_tokens:,} tokens = {tokens:,} tokens |
| hardware | {hardware} |
| weights | sha256 `{sha256}` |

## Drafters, trained on this frozen target

They were trained with `specbench train KIND`. Acceptance on held-out prompts is listed by depth; at each depth all earlier tokens
were given. Coverage is the share of the target's held-out answers that the draft vocabulary has:

| kind | options | parameters | tokens | lr | coverage | rank-1 acceptance by depth | sha256 |
|---|---|---|---|---|---|---|---|
{drafters}

## Sample outputs (greedy, first {sample_tokens} tokens; prompts of the suite `mini`)

{samples}

## Data and licences

The corpus `{corpus}`, sha256 `{corpus_sha256}` ({recorded}): {records:,} chat records to train on in
{categories}. Sources, by the licence the records state:

| licence | sources | records |
|---|---|---|
{licences}
{corpus_note}"""


def write_card(folder: Path, source: corpus.Source, console: Console) -> None:
    """Measure a target trained by specbench and write ``MODEL_CARD.md`` into its folder. Raises UserError for any other folder."""
    if not (folder / FACTS).is_file():
        raise UserError(f"{folder} holds no {FACTS}: a card is written for a target trained by specbench train target; pass its folder")
    loaded = targets.load(str(folder), device="cpu", dtype="fp32", attention="sdpa")
    config = loaded.model.config
    trained = read_json(folder / FACTS, FileFormat("training record", None, "train the target again"))

    counts, categories = _count_licences(source)
    corpus_sha256 = corpus.sha256(source)
    recorded = trained.pop("corpus_sha256", None)
    if recorded not in (None, corpus_sha256):
        raise UserError(f"{folder} was trained on another corpus (sha256 {recorded[:12]}, {source} is {corpus_sha256[:12]}); pass that one")
    drafters = _drafter_rows(folder, loaded.weights_sha256)

    console.print("measuring held-out loss")
    chat = ChatFormat(loaded.chat, loaded.stop_ids)
    held = texts.of_corpus(source, chat, held_out=True)
    loss, bits = measure_held_out(loaded, Windows(held, WINDOW))
    console.print("generating on held-out prompts")
    answers = _answer_held_out(loaded, chat, source)

    card = TEMPLATE.format(
        parameters=loaded.parameters,
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        head_dim=config.head_dim,
        vocab=config.vocab_size,
        context=config.max_position_embeddings,
        loss=loss,
        bits=bits,
        held_out_tokens=len(held.tokens_T),
        repetitive=float(np.mean([repetition(answer) > REPETITIVE for answer in answers])),
        answers=len(answers),
        new_tokens=ANSWER_TOKENS,
        tokens=trained["steps"] * trained["batch_tokens"],
        **trained,
        sha256=loaded.weights_sha256,
        drafters="\n".join(drafters),
        sample_tokens=SAMPLE_TOKENS,
        samples="\n\n".join(_samples(loaded, chat)),
        records=sum(count for _, count in counts.values()),
        categories=", ".join(categories),
        licences="\n".join(f"| {licence} | {', '.join(sorted(names))} | {count:,} |" for licence, (names, count) in sorted(counts.items())),
        corpus=Path(source).name,
        corpus_sha256=corpus_sha256,
        recorded="the one trained on" if recorded else "given for this card; training kept no record of its corpus",
        corpus_note=SHIPPED_CORPUS_NOTE if corpus_sha256 == SHIPPED_CORPUS_SHA256 else "",
    )
    with files.atomic_write(folder / "MODEL_CARD.md") as partial:
        partial.write_text(card, encoding="utf-8")
    console.print(f"wrote {folder / 'MODEL_CARD.md'}")


@torch.no_grad()
def measure_held_out(loaded: targets.Loaded, windows: Windows) -> tuple[float, float]:
    """Return the mean cross-entropy in nats a token and in bits a byte, over all windows of a text."""
    nats, tokens, text_bytes = 0.0, 0, 0
    for number in range(len(windows)):
        row_T = windows.tokens(np.array([number]), extra=1)[0]
        logits_TV = loaded.model(row_T[None, :-1]).logits[0]
        nats += F.cross_entropy(logits_TV.float(), row_T[1:], reduction="sum").item()
        tokens += windows.seq
        text_bytes += len(_decode(loaded, row_T[1:].tolist()).encode())
    return nats / tokens, nats / math.log(2) / text_bytes


def _decode(loaded: targets.Loaded, ids: list[int]) -> str:
    text = loaded.tokenizer.decode(ids, skip_special_tokens=True)
    assert isinstance(text, str)
    return text


def _answer_held_out(loaded: targets.Loaded, chat: ChatFormat, source: corpus.Source) -> list[list[int]]:
    """Return greedy answers to held-out prompts, as many of each category."""
    prompts = generate.choose_prompts(chat, source, held_out=True, per_category=PER_CATEGORY, max_prompt=WINDOW)
    batches = generate.split_batches(prompts)
    return [answer for batch in batches for answer in generate.generate_answers(loaded.model, chat, batch, ANSWER_TOKENS)]


def _samples(loaded: targets.Loaded, chat: ChatFormat) -> list[str]:
    samples = []
    for category in suites.TITLES:
        question = suites.load("mini", limit=1, categories=[category]).questions[0]
        rendered = chat.render([{"role": "user", "content": question.turns[0]}], prompt=True)
        assert rendered is not None, "the template was tried when the target was loaded"
        [answer_ids] = generate.generate_answers(loaded.model, chat, chat.encode([rendered]), SAMPLE_TOKENS)
        answer = " ".join(_decode(loaded, answer_ids).split())
        samples.append(f"**{suites.TITLES[category]}**: {' '.join(question.turns[0].split())[:160]}\n\n> {answer}")
    return samples


def _count_licences(source: corpus.Source) -> tuple[dict[str, tuple[set[str], int]], list[str]]:
    """Return licence -> (sources, number of records) of the training records, and their categories."""
    licences: dict[str, tuple[set[str], int]] = {}
    categories: Counter[str] = Counter()
    for record in corpus.read_records(source, held_out=False, needs=("license", "source", "category")):
        names, count = licences.get(record["license"], (set(), 0))
        licences[record["license"]] = (names | {record["source"]}, count + 1)
        categories[record["category"]] += 1
    return licences, sorted(categories)


def _drafter_rows(folder: Path, target_sha256: str) -> list[str]:
    rows = []
    for path in sorted((folder / "drafters").glob("*.safetensors")):
        about = weights.about(path)
        if about["target_sha256"] != target_sha256:
            raise UserError(f"drafter weights {path} were trained for another target; train them again, or move them elsewhere")
        first = " ".join(f"{ranks[0]:.2f}" for ranks in about["rank_accuracy"])
        options = " ".join(f"{key}={value}" for key, value in about["options"].items()) or "none"
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        sizes = f"{about['parameters']:,} | {about['tokens']:,} | {about['lr']:g}"
        coverage = coverage_text(about["coverage"]) if about.get("coverage") else "all tokens"
        rows.append(f"| {about['kind']} | {options} | {sizes} | {coverage} | {first} | `{sha256[:16]}` |")
    return rows
