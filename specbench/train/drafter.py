"""The shared trainer: any drafter with a module, on a frozen target, from the same data and the same token budget.

Two phases: first the corpus as it is, then text the target itself generated. The target's features are computed on the fly.
"""

import importlib
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from transformers import PreTrainedModel

from methods.core import weights
from methods.core.errors import UserError, unknown
from methods.core.training import MAX_DEPTH, Batch
from methods.registry import METHODS, parse_option
from specbench import targets
from specbench.targets.shapes import SHAPES
from specbench.train import corpus, files, generate, loop, tokenizer

SEQ = 1024
ROWS = 2
POSITIONS = 512  # answer tokens a step learns from
RANKS = 8  # how many of a drafter's guesses the static trees may use
CORPUS_SHARE = 1 / 3  # of the budget spent on the corpus before the target's own text
PER_CATEGORY, MAX_PROMPT, MAX_NEW = 480, 1024, 160
HELD_OUT_PER_CATEGORY = 24
HELD_OUT_BATCHES = 8

KINDS = sorted({row.weights for row in METHODS.values() if row.weights and not row.model})


def train(
    kind: str,
    target_name: str,
    corpus_file: Path,
    out: Path,
    *,
    options: dict[str, str],
    tokens: int,
    lr: float,
    device: str,
    work: Path,
    console: Console,
) -> None:
    """Train the weights ``kind`` and write them to the file ``out``; the same command resumes from ``work``.

    Raises UserError for targets it cannot make training text for: cost-matched ones (train on the small one inside) and
    those without the shipped chat format.
    """
    if kind not in KINDS:
        raise unknown("trainable method", kind, [*KINDS, "target"])
    if target_name in SHAPES:
        raise UserError(
            f"{target_name} is a cost-matched target, whose drafters are those of {targets.SHIPPED}; pass --target {targets.SHIPPED}"
        )
    loaded = targets.load(target_name, device=device, dtype="fp32", attention="sdpa")
    code = importlib.import_module(next(row.module for row in METHODS.values() if row.weights == kind))
    architecture = _architecture(code.Architecture(), kind, options)
    missing = [token for token in tokenizer.SPECIAL if token not in loaded.tokenizer.get_vocab()]
    if missing:
        raise UserError(
            f"the tokenizer of {target_name} lacks {', '.join(missing)}: only targets in specbench's own chat format can be trained for"
        )
    files.writable(out)
    data = {"target": loaded.weights_sha256, "corpus": corpus.sha256(corpus_file)}
    streams = _streams(loaded, corpus_file, work / f"texts-{loop.identity(data)}", console)
    torch.manual_seed(0)
    module = code.Module(loaded.model.config, architecture).to(device)
    module.start_from(loaded.model.get_output_embeddings(), loaded.model.base_model.get_parameter("norm.weight"))
    steps = tokens // (SEQ * ROWS)
    corpus_steps = int(steps * CORPUS_SHARE)
    held_out = [_batch(loaded, streams["held_out"], i) for i in range(HELD_OUT_BATCHES)]

    def loss_at(step: int) -> Tensor:
        own = step >= corpus_steps
        batch = _batch(loaded, streams["own" if own else "corpus"], step - corpus_steps if own else step)
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            return module.loss(batch, batch.positions(POSITIONS))

    loop.fit(
        module,
        loop.optimizers(module, lr),
        loss_at,
        steps=steps,
        tokens_per_step=SEQ * ROWS,
        state_file=work / f"{kind}-{loop.identity({**data, **asdict(architecture), 'tokens': tokens, 'lr': lr})}.pt",
        evaluate=lambda: _line(rank_accuracy(module, held_out)),
        evaluate_every=max(1, steps // 12),
        console=console,
    )
    facts: dict[str, Any] = {"target_sha256": loaded.weights_sha256, "tokens": tokens, "lr": lr, "options": asdict(architecture)}
    facts["corpus_sha256"] = data["corpus"]
    weights.save(out, kind, module, architecture, rank_accuracy(module, held_out), facts)
    console.print(f"wrote {out}")


@torch.no_grad()
def rank_accuracy(module: Any, batches: list[Batch]) -> weights.RankAccuracy:
    """How often each rank of each level's guesses was the target's choice, on text whose earlier tokens are given."""
    hits = torch.zeros(MAX_DEPTH - 1, RANKS, dtype=torch.float64)
    seen, levels = torch.zeros(MAX_DEPTH - 1, 1, dtype=torch.float64), 0
    module.eval()
    for batch in batches:
        torch.manual_seed(0)
        flat_P = batch.positions(POSITIONS)
        for i, level in enumerate(module.levels(batch, flat_P, MAX_DEPTH - 1)):
            counts_P = batch.counts_at(flat_P + i + 1)
            right_P1 = batch.lm_head(batch.features_at(flat_P + i + 1)).argmax(dim=-1, keepdim=True)
            right_PK = (level.logits_PV.topk(RANKS).indices == right_P1)[counts_P]
            hits[i] += right_PK.double().sum(dim=0).cpu()
            seen[i] += len(right_PK)
            levels = max(levels, i + 1)
    module.train()
    return tuple(tuple(round(p, 5) for p in row) for row in (hits / seen.clamp(min=1))[:levels].tolist())


def _line(accuracy: weights.RankAccuracy) -> str:
    first = [row[0] for row in accuracy]
    chain = 1 + sum(np.cumprod(first))
    return "held-out acceptance by level " + " ".join(f"{p:.3f}" for p in first) + f"  chain MAT {chain:.2f}"


def _architecture(default: Any, kind: str, options: dict[str, str]) -> Any:
    known = {each.name: each.type for each in fields(default)}
    for key in options:
        if key not in known:
            raise unknown(f"training option of {kind}", key, known) if known else UserError(f"{kind} has no training options, got {key!r}")
    return replace(default, **{key: parse_option(kind, key, text, known[key]) for key, text in options.items()})


def _streams(loaded: targets.Loaded, corpus_file: Path, work: Path, console: Console) -> dict[str, np.ndarray]:
    """The corpus, the target's own text, and its text on held-out prompts; computed once and kept in ``work``."""
    files.folder(work)
    backend = loaded.tokenizer.backend_tokenizer

    def own(held_out: bool) -> np.ndarray:
        count = HELD_OUT_PER_CATEGORY if held_out else PER_CATEGORY
        return generate.conversations(
            loaded.model,
            backend,
            corpus_file,
            held_out=held_out,
            per_category=count,
            max_prompt=MAX_PROMPT,
            max_new=MAX_NEW,
            console=console,
        )

    makers = {
        "held_out": lambda: own(True),
        "own": lambda: own(False),
        "corpus": lambda: corpus.token_stream(corpus_file, backend, held_out=False),
    }
    streams = {}
    for name, make in makers.items():
        streams[name] = files.kept(work / f"{name}.npy", make, console)
        corpus.window_starts(len(streams[name]), SEQ)  # too little text must not come out in the middle of training
    return streams


def _batch(loaded: targets.Loaded, stream_T: np.ndarray, index: int) -> Batch:
    model = loaded.model
    starts = corpus.window_starts(len(stream_T), SEQ)
    chosen = starts.take(np.arange(index * ROWS, (index + 1) * ROWS), mode="wrap")
    tokens_BT = corpus.windows(stream_T, chosen, SEQ)[:, :-1].to(model.device)
    with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16):
        features_BTD = _features(model, tokens_BT)
    vocabulary = loaded.tokenizer.get_vocab()
    roles = [vocabulary[f"<|{role}|>"] for role in ("system", "user", "assistant")]
    return Batch(tokens_BT, features_BTD, answers(tokens_BT, roles), model.get_input_embeddings(), model.get_output_embeddings())


def _features(model: PreTrainedModel, tokens_BT: Tensor) -> Tensor:
    return model.base_model(input_ids=tokens_BT, use_cache=False).last_hidden_state.float()


def answers(tokens_BT: Tensor, roles: list[int]) -> Tensor:
    """True at tokens of the assistant's answers, their end token included: the last role marker before them is its own."""
    places = torch.arange(tokens_BT.shape[1], device=tokens_BT.device).expand_as(tokens_BT)
    is_marker = torch.isin(tokens_BT, torch.tensor(roles, device=tokens_BT.device))
    last_marker = torch.where(is_marker, places, -1).cummax(dim=1).values
    role_BT = tokens_BT.gather(1, last_marker.clamp(min=0))
    return (last_marker >= 0) & (role_BT == roles[-1]) & ~is_marker
