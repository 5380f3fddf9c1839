"""A run directory: read as a whole, or locked by one process, created or resumed; never mixed with another run."""

import contextlib
import fcntl
import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from methods.core.errors import UserError
from specbench.store import manifest, records
from specbench.store.digest import find_digest
from specbench.store.manifest import Ending, RunManifest, Start
from specbench.store.records import Key, Record
from specbench.util.terminal import Console


@dataclass(frozen=True)
class StoredRun:
    """A run as it was read from its directory. Changes after it was written would have been noticed, but for ``undigested``."""

    manifest: RunManifest
    records: list[Record]
    torn: bool
    undigested: str  # what carries no digest, in one sentence; "" if everything does


def read_run(run_dir: Path) -> StoredRun:
    """Read a run. Raises UserError if it is none, and if its records were removed, replaced or changed since it ended."""
    current, found = RunManifest.read(run_dir), records.read(run_dir)
    path, ending = run_dir / records.FILE, current.ending
    if ending is not None and ending != Ending(len(found.records), found.digest):
        raise UserError(
            f"{path} does not hold the {ending.records} record(s) with which the run ended but {len(found.records)}; lines were removed or "
            f"replaced: restore it, or measure what is missing: specbench resume {run_dir}"
        )
    _check_text_tokens(found.records, path)
    return StoredRun(current, found.records, found.torn, _undigested(run_dir, found))


def ending_of(run_dir: Path) -> Ending:
    """Return the number and the digest of the records that a run directory holds."""
    found = records.read(run_dir)
    return Ending(len(found.records), found.digest)


def _check_text_tokens(found: Iterable[Record], path: Path) -> None:
    """Raise UserError if the tokens of one text were counted to two numbers, which one tokenizer cannot do."""
    counted: dict[str, Record] = {}
    for record in found:
        if record.output_text and record.text_tokens is not None:
            first = counted.setdefault(record.output_text, record)
            if first.text_tokens != record.text_tokens:
                raise UserError(
                    f"{path}: the same answer has text_tokens {first.text_tokens} in {records.describe_key(first.key)}, and "
                    f"{record.text_tokens} in {records.describe_key(record.key)}; one was edited: restore the file"
                )


def _undigested(run_dir: Path, found: records.Found) -> str:
    without = [f"{found.undigested} of {len(found.records)} records"] if found.undigested else []
    if not find_digest((run_dir / manifest.FILE).read_bytes()):
        without.insert(0, "the manifest")
    if not without:
        return ""
    return f"Without a digest: {' and '.join(without)}. Changes to them would not be noticed. Runs of earlier versions have no digests."


@contextlib.contextmanager
def claimed(run_dir: Path) -> Iterator[None]:
    """Lock the directory for this process. Raises UserError while another process holds it. A killed process releases it."""
    handle = os.open(run_dir, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another specbench is writing to {run_dir}; wait for it or choose another --out") from None
    else:
        yield
    finally:
        os.close(handle)


def open_run(
    wanted: RunManifest, expected: Collection[Key], run_dir: Path, console: Console, *, retry_errors: bool = False
) -> tuple[RunManifest, list[Record]]:
    """Create a run's directory or resume it. Return its manifest and the records of turns that need not be measured.

    Drops a torn last line with a notice; with ``retry_errors`` also the records of failed turns. Raises UserError if the
    directory holds a run with other settings, records without a manifest, or a record whose key is not ``expected``.
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

    found, torn, *_ = records.read(run_dir)
    _check_expected(found, expected, run_dir)
    done = [record for record in found if record.status == "ok" or not retry_errors]
    if len(done) == len(expected) and not torn:
        return old, done

    packed = run_dir / records.PACKED
    if packed.is_file() and not (run_dir / records.FILE).is_file():
        raise UserError(f"{run_dir} has turns left to measure and its records are packed; unpack them first: xz -d {packed}")

    start = Start(wanted.created, wanted.environment, wanted.git, wanted.argv)
    current = replace(old, status="running", ending=None, resumed=[*old.resumed, start])
    current.write(run_dir)
    if torn:
        records.drop_torn_line(run_dir)
        console.print(f"{run_dir}: dropped a torn last record; that turn is measured again", markup=False, soft_wrap=True)
    if len(done) < len(found):
        records.keep(run_dir, {record.key for record in done})
        dropped = len(found) - len(done)
        console.print(f"{run_dir}: dropped {dropped} failed turn(s); they are measured again", markup=False, soft_wrap=True)
    _print_environment_changes(old, wanted, console)
    return current, done


def _check_expected(found: Iterable[Record], expected: Collection[Key], run_dir: Path) -> None:
    planned = set(expected)
    strange = [record.key for record in found if record.key not in planned]
    if strange:
        raise UserError(
            f"{run_dir / records.FILE} holds {len(strange)} record(s) of turns that the run does not have, the first: "
            f"{records.describe_key(strange[0])}; the file was edited or two runs were mixed: remove the lines that are not this run's"
        )


def _print_environment_changes(old: RunManifest, new: RunManifest, console: Console) -> None:
    before, after = asdict(old.environment), asdict(new.environment)
    changed = [f"{key} {before[key]} -> {after[key]}" for key in after if before[key] != after[key]]
    if changed:
        console.print(f"resuming in another environment, times may not compare: {'; '.join(changed)}", markup=False, soft_wrap=True)
