"""``specbench run`` and ``specbench resume``: measure, then report."""

import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specbench.cli.common import DEFAULT_METHODS, INTERRUPTED, RESULTS, console, pairs
from specbench.cli.report import write_report

if TYPE_CHECKING:
    from specbench.config.options import Options
    from specbench.measure.executor import Crew
    from specbench.measure.session import Session

WORKERS = typer.Option(metavar="N", help="Share the questions among N GPUs, or among N processes of a CPU; default: this process alone.")
RAY = typer.Option(metavar="ADDRESS", help="Where the workers are: a Ray cluster, or `local` to start one here (the extra `ray`).")


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
    from specbench.config.options import Options
    from specbench.config.tuned import Config

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


def resume(
    run_dir: Annotated[Path, typer.Argument(metavar="DIR", help="What `specbench run` wrote.")],
    workers: Annotated[int | None, WORKERS] = None,
    ray_address: Annotated[str | None, RAY] = None,
) -> None:
    """Finish a run that was cut off, with the settings in its manifest.

    Exit codes: 0 measured, 2 misuse, 130 interrupted (every finished turn is kept).
    """
    from specbench.config.options import Options
    from specbench.store.manifest import RunManifest

    _measure(Options.of(RunManifest.read(run_dir)), run_dir, workers, ray_address)


def _measure(options: "Options", out: Path | None, workers: int | None, ray_address: str | None) -> None:
    from specbench.measure import runner
    from specbench.measure.session import prepare
    from specbench.measure.workers.start import started
    from specbench.store.rundir import check_writable

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
    write_report([run_dir], run_dir / "report", show_prompts=False)
