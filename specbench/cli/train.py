"""The commands ``train``, ``card`` and ``held-out``: train a target or a drafter, describe a target, choose tuning prompts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from methods.core.errors import UserError
from specbench.cli.common import configured, console
from specbench.config.options import RunConfig, pairs
from specbench.util.terminal import Console

TARGET, PRESET = "tiny", "micro"
TRAINING = Path("training")
LOADING = ("revision", "template", "system_prompt", "thinking", "device_map", "stop")  # fields of RunConfig: how a target is loaded

Data = Annotated[str, typer.Option(metavar="FILE|hf:ID", help="Chat records: a JSONL file, plain or .xz, or a data set of the hub.")]


@configured(
    "target",
    "device",
    *LOADING,
    defaults={"device": "cpu"},
    helps={
        "target": f"Target that a drafter is trained on: a name, a folder, or a hub id (OWNER/NAME). Default: {TARGET}.",
        "device": "cpu or cuda.",
        "device_map": "Spread the target's layers over GPUs: evenly (auto) or as a JSON file says. For training in one process.",
    },
)
def train(
    config: RunConfig,
    what: Annotated[
        str, typer.Argument(metavar="KIND", help="`target`, or the kind of drafter to train: the KIND of `--drafter KIND=FILE`.")
    ],
    data: Data,
    preset: Annotated[
        str | None, typer.Option(help="Shape of a new target: micro (for 2 CPU cores) or tiny (for a GPU).", show_default=PRESET)
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the new target, or file of the drafter. Default: training/target, or drafters/KIND.safetensors in the "
            "target's folder or under training/.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Option of the drafter's architecture; repeatable.")
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(help="Total number of tokens that a drafter is trained on.", min=1, show_default="8000000")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate of a drafter.", show_default="0.004")] = None,
    schedule: Annotated[
        str | None, typer.Option(help="Learning rate schedule: wsd (warm-up, stable, decay) or cosine.", show_default="wsd")
    ] = None,
    seq: Annotated[int | None, typer.Option(help="Sequence length, in tokens.", show_default="1024")] = None,
    rows: Annotated[int | None, typer.Option(help="Batch size per process, in sequences.", show_default="2")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Gradient accumulation steps.", show_default="1")] = None,
    regenerate: Annotated[
        int | None,
        typer.Option(
            help="Prompts of each category that the target answers itself; two thirds of the tokens are these answers. 0: corpus only.",
            show_default="480",
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Longest answer of the target to those prompts, in tokens.", show_default="160")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="Sampling temperature of those answers; 0 is greedy.", show_default="0")] = None,
    cache_features: Annotated[
        bool, typer.Option("--cache-features", help="Keep the target's features on disk, in the --work folder.")
    ] = False,
    work: Annotated[
        Path | None,
        typer.Option(help="Folder of intermediate files of a drafter's training, to resume from.", show_default=str(TRAINING / "work")),
    ] = None,
    log_dir: Annotated[Path | None, typer.Option(help="Folder for TensorBoard logs. Default: no logs.")] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Print the memory, disk space and time that training would need, and stop. Loads no weights.")
    ] = False,
) -> None:
    """Train a small target, or a drafter on a frozen target. Running the same command again resumes.

    Under accelerate launch or torchrun, several processes train one drafter together.

    Exit codes: 0 trained, 2 misuse.
    """
    recipe: dict[str, Any] = {
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
    loading = {name: getattr(config, name) for name in LOADING}

    if what == "target":
        for_drafters = {**loading, **recipe, "work": work, "log_dir": log_dir, "cache_features": cache_features, "estimate": estimate}
        flags = {f"--{name.replace('_', '-')}": value for name, value in for_drafters.items()}
        _refuse(what, {"--target": config.target or None, "--set": option, **flags})
        _train_target(preset or PRESET, data, out or TRAINING / "target", config.device, console)
        return

    _refuse(what, {"--preset": preset})
    from specbench.train import drafter
    from specbench.train.estimate import print_estimate
    from specbench.train.recipe import Job, Recipe

    target = config.target or TARGET
    job = Job(
        what,
        target,
        data,
        out or _target_folder(target) / "drafters" / f"{what}.safetensors",
        work or TRAINING / "work",
        options=pairs("--set", option),
        recipe=Recipe(**{name: value for name, value in recipe.items() if value is not None}),
        device=config.device,
        cache_features=cache_features,
        log_dir=log_dir,
        **loading,
    )
    if estimate:
        print_estimate(job, console)
    else:
        drafter.train(job, console)


def _train_target(preset: str, data: str, out: Path, device: str, console: Console) -> None:
    from specbench import targets
    from specbench.train import target

    targets.use_device(device)
    target.train(preset, data, out, device=device, console=console)


def _target_folder(target: str) -> Path:
    """Return the folder for a target's drafters: its own, where `specbench run` finds them, or one under training/."""
    from specbench import targets

    if target in targets.TARGETS:
        return TRAINING
    return Path(target) if Path(target).is_dir() else TRAINING / target.replace("/", "--")


def _refuse(what: str, options: Mapping[str, object]) -> None:
    """Raise UserError for the first given option among those that do not apply to what is trained."""
    for flag, value in options.items():
        if not (value is None or value is False or value == []):
            whose = "a drafter" if what == "target" else "a target"
            raise UserError(f"{flag} is for training {whose}, not for specbench train {what}; leave it out")


def card(target: Annotated[Path, typer.Argument(help="Folder of a target that `specbench train target` wrote.")], data: Data) -> None:
    """Measure a target trained here and its drafters, and write a model card into its folder.

    Exit codes: 0 written, 2 misuse.
    """
    from specbench.train import card as model_card

    model_card.write_card(target, data, console)


def held_out(
    data: Data,
    out: Annotated[Path, typer.Option(help="Suite file to write: JSONL of Spec-Bench's schema.")] = TRAINING / "held_out.jsonl",
) -> None:
    """Write held-out prompts of a training corpus as a suite for choosing options, because Spec-Bench itself must not be tuned on.

    Exit codes: 0 written, 2 misuse.
    """
    from specbench.train.data import corpus

    corpus.write_held_out_suite(data, out, console)
