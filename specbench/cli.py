"""The command line. Commands with a file of their own are registered below.

torch is imported inside the commands: how its threads wait has to be set first, and ``--help`` should not wait for it.
"""

import sys
import traceback
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from methods.core.errors import UserError
from specbench.agree_cli import agree
from specbench.arguments import pairs
from specbench.claims.cli import verify
from specbench.gate.cli import baseline, check
from specbench.imports.cli import import_answers
from specbench.listing import methods, targets
from specbench.profiling.cli import profile
from specbench.roofline.cli import roofline
from specbench.scale.cli import scale
from specbench.threads import patient_threads
from specbench.train.cli import card, held_out, train
from specbench.tune.cli import tune

if TYPE_CHECKING:
    from specbench.crew import Crew
    from specbench.options import Options
    from specbench.runner import Session

DEFAULT_METHODS = ["vanilla", "medusa", "eagle2", "s4c"]
RESULTS = Path("results")
INTERRUPTED = 130  # what a shell reports for a program ended by Ctrl-C
FAULT = 70  # sysexits' EX_SOFTWARE
WORKERS = typer.Option(metavar="N", help="Share the questions among N GPUs, or among N processes of a CPU; default: this process alone.")
RAY = typer.Option(metavar="ADDRESS", help="Where the workers are: a Ray cluster, or `local` to start one here (the extra `ray`).")

app = typer.Typer(
    name="specbench",
    help="Measure speculative decoding methods against plain decoding, side by side.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()


@app.command()
def run(
    method: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[:KEY=VALUE,...]", help=f"Repeatable; default: {', '.join(DEFAULT_METHODS)}; vanilla always runs."),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Target by name, folder or hub id (OWNER/NAME); default: tiny-160m on a CPU, tiny-7b on CUDA.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub id; default: its main branch.")] = None,
    template: Annotated[
        str | None, typer.Option(help="chat (the tokenizer's own) or vicuna_v1.1; default: what the target's family is talked to in.")
    ] = None,
    system_prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="In place of the template's own.")] = None,
    thinking: Annotated[str | None, typer.Option(metavar="on|off", help="For templates that know both; default: the template's.")] = None,
    suite: Annotated[str | None, typer.Option(help="mini (default), spec-bench or hf:ID.")] = None,
    suite_file: Annotated[Path | None, typer.Option(help="JSONL of Spec-Bench's schema.")] = None,
    hf_column: Annotated[list[str] | None, typer.Option(metavar="FIELD=COLUMN", help="Column of a hub data set; repeatable.")] = None,
    limit: Annotated[int | None, typer.Option(help="Questions a category.")] = None,
    categories: Annotated[list[str] | None, typer.Option(help="Only these; with commas or repeated.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Longest answer, in tokens.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Of sampling; each turn derives its own.")] = 0,
    dtype: Annotated[str | None, typer.Option(help="fp32, bf16, fp16 or fp64; default: what the device is fastest in.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda; default: cuda where there is one.")] = None,
    device_map: Annotated[
        str | None, typer.Option(metavar="auto|FILE", help="Spread the target's layers over GPUs: evenly, or as a JSON file says.")
    ] = None,
    attention: Annotated[str, typer.Option(help="sdpa or eager.")] = "sdpa",
    backend: Annotated[str | None, typer.Option(help="static (default): compiled, on CUDA captured as graphs; or eager.")] = None,
    repeats: Annotated[int, typer.Option(help="Passes over the suite.")] = 1,
    turns: Annotated[str, typer.Option(help="Whose first answer a second turn sees: the method's own, or vanilla's (shared).")] = "own",
    override: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Or METHOD.KEY=VALUE; repeatable.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="Tree sizes that `specbench tune` chose for this target and device; --set goes before them.")
    ] = None,
    drafter: Annotated[
        list[str] | None, typer.Option(metavar="KIND=FILE|FOLDER|HUB_ID", help="Whose drafter, for a kind or for one arm; repeatable.")
    ] = None,
    aa: Annotated[str | None, typer.Option(metavar="METHOD", help="Run this method twice: what its two arms differ by is noise.")] = None,
    base_url: Annotated[
        str | None, typer.Option(metavar="URL", help="Server that --method endpoint asks; its key: SPECBENCH_API_KEY or OPENAI_API_KEY.")
    ] = None,
    endpoint_model: Annotated[
        str | None, typer.Option(metavar="NAME", help="What the server calls the model; needed if it has several.")
    ] = None,
    workers: Annotated[int | None, WORKERS] = None,
    ray_address: Annotated[str | None, RAY] = None,
    out: Annotated[Path | None, typer.Option(help="Run directory; default: results/<suite>-<target>-<hash of the settings>.")] = None,
) -> None:
    """Answer every question with every method and report. The same command again does only what is missing.

    Exit codes: 0 measured, 2 misuse, 130 interrupted (every finished turn is kept).
    """
    from specbench.options import Options
    from specbench.tune.config import Config

    options = Options(
        methods=method or DEFAULT_METHODS,
        target=target,
        revision=revision,
        template=template,
        system_prompt=system_prompt,
        thinking=thinking,
        suite=suite,
        suite_file=suite_file,
        hf_columns=pairs("--hf-column", hf_column),
        limit=limit,
        categories=[name.strip() for group in categories or [] for name in group.split(",")],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        dtype=dtype,
        device=device,
        device_map=device_map,
        attention=attention,
        backend=backend,
        repeats=repeats,
        turns=turns,
        overrides=override or [],
        drafter_files={kind: Path(file) for kind, file in pairs("--drafter", drafter).items()},
        aa=aa,
        config=Config.read(config) if config else None,
        base_url=base_url,
        endpoint_model=endpoint_model,
    )
    _measure(options, out, workers, ray_address)


@app.command()
def resume(
    run_dir: Annotated[Path, typer.Argument(metavar="DIR", help="What `specbench run` wrote.")],
    workers: Annotated[int | None, WORKERS] = None,
    ray_address: Annotated[str | None, RAY] = None,
) -> None:
    """Finish a run that was cut off, with the settings in its manifest.

    Exit codes: 0 measured, 2 misuse, 130 interrupted (every finished turn is kept).
    """
    from specbench.manifest import RunManifest
    from specbench.options import Options

    _measure(Options.of(RunManifest.read(run_dir)), run_dir, workers, ray_address)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    out: Annotated[Path | None, typer.Option(help="Where the report goes; default for one run: report/ in its directory.")] = None,
    show_prompts: Annotated[
        bool, typer.Option("--show-prompts", help="Show third-party prompts too, which a published report may not.")
    ] = False,
) -> None:
    """Tables and figures of finished or unfinished runs: HTML, Markdown, LaTeX, CSV and Parquet.

    Exit codes: 0 written, 2 misuse.
    """
    for run_dir in runs:
        if not run_dir.is_dir():
            raise UserError(f"run directory {run_dir} does not exist; give one that `specbench run` printed")
    if out is None and len(runs) > 1:
        raise UserError(f"a report on {len(runs)} runs belongs to none of them; say where it goes: --out DIR")
    _report(runs, out or runs[0] / "report", show_prompts)


for command in (methods, targets, agree, verify, check, roofline, tune, profile, scale, train, card, held_out):
    app.command()(command)
app.command("import")(import_answers)
app.add_typer(baseline, name="baseline")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; what the user can correct is one line on stderr and exit code 2."""
    patient_threads()
    try:
        app(args=argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except Exception:  # Python's own exit code 1 would read as a verdict: below, a violation, a failed check
        traceback.print_exc()
        raise SystemExit(FAULT) from None


def _measure(options: "Options", out: Path | None, workers: int | None, ray_address: str | None) -> None:
    from specbench import runner
    from specbench.rundir import check_writable
    from specbench.session import prepare
    from specbench.workers.start import started

    check_writable(out or RESULTS)
    alone = workers is None and ray_address is None
    whole: AbstractContextManager[Session | Crew]
    whole = nullcontext(prepare(options)) if alone else started(options, workers, ray_address, console)
    with whole as session:
        manifest = session.manifest
        run_dir = out or RESULTS / f"{manifest.name}-{manifest.fingerprint()}"
        if manifest.target["note"]:
            console.print(manifest.target["note"], markup=False)
        try:
            runner.run(session, run_dir, console)
        except KeyboardInterrupt:
            print(f"interrupted; resume with: specbench resume {run_dir}", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None
    _report([run_dir], run_dir / "report", show_prompts=False)


def _report(runs: Sequence[Path], out: Path, show_prompts: bool) -> None:
    from specbench import report as reports

    try:
        written = reports.build(runs, out, console, show_prompts=show_prompts)
    except OSError as error:
        raise UserError(
            f"cannot write the report to {out} ({error.strerror}); choose another place: specbench report RUN --out DIR"
        ) from None
    console.print(f"report: {written}", markup=False, soft_wrap=True)
