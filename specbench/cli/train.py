"""The commands that train: the target itself, any drafter on a frozen target, and what goes with them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from methods.core.errors import UserError
from specbench.cli.common import pairs

TARGET, PRESET = "tiny", "micro"
HELD_OUT_PROMPTS = 20  # a category
TRAINING = Path("training")

Data = Annotated[str, typer.Option(metavar="FILE|hf:ID", help="Chat records: JSONL, plain or .xz, or a data set of the hub.")]


def train(
    what: Annotated[str, typer.Argument(metavar="KIND", help="target, or the drafter's weights to train, as in --drafter KIND=FILE.")],
    data: Data,
    target: Annotated[
        str | None, typer.Option(help="The frozen target a drafter is trained on: a name, a folder or a hub id.", show_default=TARGET)
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id; default: its main branch.")] = None,
    template: Annotated[str | None, typer.Option(help="The target's prompt template: chat or vicuna_v1.1; default: its family's.")] = None,
    system_prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="In place of the template's own.")] = None,
    thinking: Annotated[str | None, typer.Option(metavar="on|off", help="For templates that know both; default: the template's.")] = None,
    device_map: Annotated[
        str | None, typer.Option(metavar="auto|FILE", help="Spread a target over several GPUs, as in specbench run; one process.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Shape of a target trained here: micro (2 CPU cores) or tiny (a GPU).", show_default=PRESET)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="A target's folder or a drafter's file; default: the target's drafters/.")] = None,
    option: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE of the drafter's architecture; may be repeated.")] = None,
    tokens: Annotated[int | None, typer.Option(help="A drafter's budget: tokens read in all.", min=1, show_default="8000000")] = None,
    lr: Annotated[float | None, typer.Option(help="A drafter's peak learning rate.", show_default="0.004")] = None,
    schedule: Annotated[str | None, typer.Option(help="wsd (warm-up, stable, decay) or cosine.", show_default="wsd")] = None,
    seq: Annotated[int | None, typer.Option(help="Tokens of a window of text.", show_default="1024")] = None,
    rows: Annotated[int | None, typer.Option(help="Windows a process reads at once.", show_default="2")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Times it does before a step is taken.", show_default="1")] = None,
    regenerate: Annotated[
        int | None,
        typer.Option(
            help="Prompts of each category that the target answers anew, for two thirds of the budget; 0: none.", show_default="480"
        ),
    ] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Longest of those answers.", show_default="160")] = None,
    temperature: Annotated[float | None, typer.Option(help="Of those answers; 0 is greedy.", show_default="0")] = None,
    cache_features: Annotated[bool, typer.Option("--cache-features", help="Keep the target's features on disk, under --work.")] = False,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    work: Annotated[
        Path | None, typer.Option(help="Where a drafter's work in progress is kept, to resume from.", show_default=str(TRAINING / "work"))
    ] = None,
    log_dir: Annotated[Path | None, typer.Option(help="Folder for TensorBoard.")] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Only tell what memory, disk and time it would take; loads no weights.")
    ] = False,
) -> None:
    """Train the small target, or a drafter on a frozen target; the same command again resumes.

    Under accelerate launch or torchrun, several processes train one drafter together.
    """
    console = Console()
    loading: dict[str, str | None] = {
        "revision": revision,
        "template": template,
        "system_prompt": system_prompt,
        "thinking": thinking,
        "device_map": device_map,
    }
    settings: dict[str, Any] = {
        "tokens": tokens,
        "lr": lr,
        "schedule": schedule,
        "seq": seq,
        "rows": rows,
        "accumulate": accumulate,
        "regenerate": regenerate,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
    }
    if what == "target":
        given = {**loading, **settings, "work": work, "log_dir": log_dir, "cache_features": cache_features, "estimate": estimate}
        alien = {f"--{name.replace('_', '-')}": value for name, value in given.items()}
        _refuse(what, {"--target": target, "--set": option, **alien})
        _train_target(preset or PRESET, data, out or TRAINING / "target", device, console)
        return
    _refuse(what, {"--preset": preset})
    from specbench.train import drafter
    from specbench.train.estimate import estimate as estimated
    from specbench.train.recipe import Job, Recipe

    target = target or TARGET
    job = Job(
        what,
        target,
        data,
        out or _home(target) / "drafters" / f"{what}.safetensors",
        work or TRAINING / "work",
        options=pairs("--set", option),
        recipe=Recipe(**{name: value for name, value in settings.items() if value is not None}),
        device=device,
        cache_features=cache_features,
        log_dir=log_dir,
        **loading,
    )
    if estimate:
        estimated(job, console)
    else:
        drafter.train(job, console)


def _train_target(preset: str, data: str, out: Path, device: str, console: Console) -> None:
    from specbench import targets
    from specbench.train import target

    targets.check_device(device)
    target.train(preset, data, out, device=device, console=console)


def _home(target: str) -> Path:
    """Where a target's drafters go: into its folder, where `specbench run` finds them by itself; a name's under training/."""
    from specbench import targets

    if target in targets.TARGETS:
        return TRAINING
    return Path(target) if Path(target).is_dir() else TRAINING / target.replace("/", "--")


def _refuse(what: str, inapplicable: Mapping[str, object]) -> None:
    """Raise UserError naming a given option that has no meaning for what is trained."""
    for option, value in inapplicable.items():
        if not (value is None or value is False or value == []):
            whose = "a drafter" if what == "target" else "a target"
            raise UserError(f"{option} is for training {whose}, not for specbench train {what}; leave it out")


def card(target: Annotated[Path, typer.Argument(help="Folder of a target trained here.")], data: Data) -> None:
    """Measure a target trained here and write its model card beside it."""
    from specbench.train import card as model_card

    model_card.write(target, data, Console())


def held_out(data: Data, out: Annotated[Path, typer.Option(help="The suite file to write.")] = TRAINING / "held_out.jsonl") -> None:
    """Write held-out corpus prompts as a suite, to choose options on; Spec-Bench itself is never tuned on."""
    from specbench.train.data import prompts

    prompts.write(data, out, HELD_OUT_PROMPTS, Console())
