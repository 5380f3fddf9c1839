"""The commands that train: the target itself, any drafter on a frozen target, and what goes with them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from methods.core.errors import UserError
from specbench.arguments import pairs

DRAFTER_TOKENS = 8_000_000
DRAFTER_LR = 4e-3
TARGET, PRESET = "tiny", "micro"
HELD_OUT_PROMPTS = 20  # a category
TRAINING = Path("training")

Corpus = Annotated[Path, typer.Option(help="Chat records, JSONL, plain or .xz.")]


def train(
    what: Annotated[str, typer.Argument(help="target, or the weights to train: medusa, hydra, eagle, eagle3, s4c.")],
    corpus: Corpus,
    target: Annotated[
        str | None, typer.Option(help="The frozen target a drafter is trained on: a name or a folder.", show_default=TARGET)
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Shape of a target trained here: micro (2 CPU cores) or tiny (a GPU).", show_default=PRESET)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A target's folder or a drafter's file; default: under training/.")] = None,
    option: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of the drafter's architecture; may be repeated.")] = None,
    tokens: Annotated[
        int | None,
        typer.Option(help="A drafter's budget in tokens, the same for all by default.", min=4096, show_default=str(DRAFTER_TOKENS)),
    ] = None,
    lr: Annotated[float | None, typer.Option(help="A drafter's peak learning rate.", show_default=str(DRAFTER_LR))] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    work: Annotated[
        Path | None, typer.Option(help="Where a drafter's work in progress is kept, to resume from.", show_default=str(TRAINING / "work"))
    ] = None,
) -> None:
    """Train the small target, or a drafter on a frozen target; the same command again resumes."""
    from specbench import targets
    from specbench.train import drafter
    from specbench.train import target as small_target

    console = Console()
    targets.check_device(device)
    if what == "target":
        _refuse(what, {"--target": target, "--set": option, "--tokens": tokens, "--lr": lr, "--work": work})
        small_target.train(preset or PRESET, corpus, out or TRAINING / "target", device=device, console=console)
        return
    _refuse(what, {"--preset": preset})
    target = target or TARGET
    folder = TRAINING if target in targets.TARGETS else Path(target)
    drafter.train(
        what,
        target,
        corpus,
        out or folder / "drafters" / f"{what}.safetensors",
        options=pairs("--set", option),
        tokens=tokens or DRAFTER_TOKENS,
        lr=DRAFTER_LR if lr is None else lr,
        device=device,
        work=work or TRAINING / "work",
        console=console,
    )


def _refuse(what: str, inapplicable: Mapping[str, object]) -> None:
    """Raise UserError naming a given option that has no meaning for what is trained."""
    for option, value in inapplicable.items():
        if value not in (None, []):
            whose = "a drafter" if what == "target" else "a target"
            raise UserError(f"{option} is for training {whose}, not for specbench train {what}; leave it out")


def card(target: Annotated[Path, typer.Argument(help="Folder of a target trained here.")], corpus: Corpus) -> None:
    """Measure a target trained here and write its model card beside it."""
    from specbench.train import card as model_card

    model_card.write(target, corpus, Console())


def held_out(corpus: Corpus, out: Annotated[Path, typer.Option(help="The suite file to write.")] = TRAINING / "held_out.jsonl") -> None:
    """Write held-out corpus prompts as a suite, to choose options on; Spec-Bench itself is never tuned on."""
    from specbench.train import prompts

    prompts.write(corpus, out, HELD_OUT_PROMPTS, Console())
