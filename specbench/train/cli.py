"""The commands that train: the target itself, any drafter on a frozen target, and what goes with them."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from specbench.arguments import pairs

DRAFTER_TOKENS = 8_000_000
HELD_OUT_PROMPTS = 20  # a category
TRAINING = Path("training")

Corpus = Annotated[Path, typer.Option(help="Chat records, JSONL, plain or .xz.")]


def train(
    what: Annotated[str, typer.Argument(help="target, or the weights to train: medusa, eagle, s4c.")],
    corpus: Corpus,
    target: Annotated[str, typer.Option(help="The frozen target a drafter is trained on: a name or a folder.")] = "tiny",
    preset: Annotated[str, typer.Option(help="Shape of a target trained here: micro (2 CPU cores) or tiny (a GPU).")] = "micro",
    out: Annotated[Path | None, typer.Option(help="A target's folder or a drafter's file; default: under training/.")] = None,
    option: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of the drafter's architecture; may be repeated.")] = None,
    tokens: Annotated[int, typer.Option(help="A drafter's budget in tokens, the same for all by default.", min=4096)] = DRAFTER_TOKENS,
    lr: Annotated[float, typer.Option(help="A drafter's peak learning rate.")] = 4e-3,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    work: Annotated[Path, typer.Option(help="Where a drafter's work in progress is kept, to resume from.")] = TRAINING / "work",
) -> None:
    """Train the small target, or a drafter on a frozen target; the same command again resumes."""
    from specbench import targets
    from specbench.train import drafter
    from specbench.train import target as small_target

    console = Console()
    targets.check_device(device)
    if what == "target":
        small_target.train(preset, corpus, out or TRAINING / "target", device=device, console=console)
        return
    folder = TRAINING if target in targets.TARGETS else Path(target)
    drafter.train(
        what,
        target,
        corpus,
        out or folder / "drafters" / f"{what}.safetensors",
        options=pairs("--set", option),
        tokens=tokens,
        lr=lr,
        device=device,
        work=work,
        console=console,
    )


def card(target: Annotated[Path, typer.Argument(help="Folder of a target trained here.")], corpus: Corpus) -> None:
    """Measure a target trained here and write its model card beside it."""
    from specbench.train import card as model_card

    model_card.write(target, corpus, Console())


def held_out(corpus: Corpus, out: Annotated[Path, typer.Option(help="The suite file to write.")] = TRAINING / "held_out.jsonl") -> None:
    """Write held-out corpus prompts as a suite, to choose options on; Spec-Bench itself is never tuned on."""
    from specbench.train import prompts

    prompts.write(corpus, out, HELD_OUT_PROMPTS, Console())
