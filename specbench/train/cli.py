"""``specbench train``: the target itself, or any drafter on a frozen target."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from specbench.arguments import pairs

DRAFTER_TOKENS = 8_000_000
HELD_OUT_PROMPTS = 20  # a category


def train(
    what: Annotated[
        str, typer.Argument(help="target; medusa, eagle or s4c; card: a target's model card; prompts: held-out prompts as a suite.")
    ],
    corpus: Annotated[Path, typer.Option(help="Chat records, JSONL, plain or .xz.")],
    target: Annotated[str, typer.Option(help="The frozen target a drafter is trained on: a name or a folder.")] = "tiny",
    preset: Annotated[str, typer.Option(help="Shape of a target trained here: micro (2 CPU cores) or tiny (a GPU).")] = "micro",
    out: Annotated[
        Path | None,
        typer.Option(help="A target's folder, a drafter's or the prompts' file; default: under training/, or TARGET/drafters/."),
    ] = None,
    option: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of the drafter's architecture; may be repeated.")] = None,
    tokens: Annotated[int, typer.Option(help="Drafter's budget in tokens, the same for all by default.", min=4096)] = DRAFTER_TOKENS,
    lr: Annotated[float, typer.Option(help="Drafter's peak learning rate.")] = 4e-3,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    work: Annotated[Path | None, typer.Option(help="Where work in progress is kept, to resume from; default: training/work.")] = None,
) -> None:
    """Train the small target or a drafter on a frozen target; the same command again resumes.

    ``card`` measures a target and writes its model card, ``prompts`` writes held-out prompts to choose options on.
    """
    from specbench import targets
    from specbench.train import card, drafter, prompts
    from specbench.train import target as small_target

    console = Console()
    targets.check_device(device)
    if what == "prompts":
        prompts.write(corpus, out or Path("training/held_out.jsonl"), HELD_OUT_PROMPTS, console)
        return
    if what == "card":
        card.write(Path(target), corpus, preset, console)
        return
    if what == "target":
        small_target.train(preset, corpus, out or Path("training/target"), device=device, console=console)
        return
    settings = pairs("--set", option)
    folder = targets.shipped_folder() if target == targets.SHIPPED else Path(target)
    file = out or folder / "drafters" / f"{what}.safetensors"
    drafter.train(
        what,
        target,
        corpus,
        file,
        options=settings,
        tokens=tokens,
        lr=lr,
        device=device,
        work=work or Path("training/work"),
        console=console,
    )
