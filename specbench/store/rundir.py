"""A run directory: claimed by one process, created or taken up again, never mixed with another run."""

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from methods.core.errors import UserError
from specbench.store import manifest, records
from specbench.store.manifest import RunManifest
from specbench.store.records import Record


def check_writable(directory: Path) -> None:
    """Raise UserError where the directory cannot be made or written, without making it: better now than after loading."""
    try:
        existing = directory
        while not existing.exists():
            existing = existing.parent
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {directory} ({error.strerror}); choose another --out or make room there") from None


@contextlib.contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Hold the directory for this process; raises UserError while another one holds it. A killed process lets go."""
    handle = os.open(run_dir, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another specbench is writing to {run_dir}; wait for it or choose another --out") from None
    else:
        yield
    finally:
        os.close(handle)


def open_run(wanted: RunManifest, run_dir: Path, console: Console) -> tuple[RunManifest, list[Record]]:
    """The manifest now in force and the records already there, none for a new run.

    Drops a torn last line with a notice. Raises UserError when the directory holds a run with other settings, or
    records without a manifest.
    """
    if not (run_dir / manifest.FILE).exists():
        if any((run_dir / name).is_file() for name in (records.FILE, records.PACKED)):
            raise UserError(f"{run_dir} holds {records.FILE} but no {manifest.FILE}; restore the manifest or choose another --out")
        wanted.write(run_dir)
        return wanted, []
    old = RunManifest.read(run_dir)
    changed = manifest.differences(old, wanted)
    if changed:
        raise UserError(f"{run_dir} holds a run with other settings: {'; '.join(changed)}; choose another --out or the old settings")
    done, torn = records.read(run_dir)
    if torn:
        records.drop_torn_line(run_dir)
        console.print(f"{run_dir}: dropped a torn last record; that turn is measured again", markup=False, soft_wrap=True)
    if len(done) == old.units_total:
        return old, done
    packed = run_dir / records.PACKED
    if packed.is_file() and not (run_dir / records.FILE).is_file():
        raise UserError(f"{run_dir} is incomplete and its records are packed; unpack them first: xz -d {packed}")
    start = {"created": wanted.created, "environment": wanted.environment, "git": wanted.git, "argv": wanted.argv}
    current = replace(old, status="running", resumed=[*old.resumed, start])
    current.write(run_dir)
    _notice_of_change(old, wanted, console)
    return current, done


def _notice_of_change(old: RunManifest, new: RunManifest, console: Console) -> None:
    before, after = old.environment, new.environment
    changed = [f"{key} {before.get(key)} -> {after.get(key)}" for key in after if before.get(key) != after.get(key)]
    if changed:
        console.print(f"resuming in another environment, times may not compare: {'; '.join(changed)}", markup=False, soft_wrap=True)
