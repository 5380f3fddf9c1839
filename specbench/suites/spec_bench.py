"""Spec-Bench's question file: read from disk or downloaded once, and always checked against its checksum.

Source: github.com/hemingkx/Spec-Bench (Apache-2.0), 480 questions.
"""

import hashlib
import http.client
import os
import urllib.request
from pathlib import Path

from methods.core.errors import UserError
from specbench.util.files import atomic_write

COMMIT = "fd2c1cd7d2201ef71db4c5f4e455008f017967bf"
URL = f"https://raw.githubusercontent.com/hemingkx/Spec-Bench/{COMMIT}/data/spec_bench/question.jsonl"
SHA256 = "4b6d33e79484f9841c487ee87d1cf6aa8c6066f61d5d482ff09e5a007fafdf04"
TIMEOUT_S = 60
OWN_COPY = "pass --suite-file FILE, or set SPECBENCH_DATA to a folder that holds spec_bench/question.jsonl"


def read_questions(suite_file: Path | None) -> bytes:
    """Return the bytes of the question file, downloading it into the user cache where necessary.

    It is read from ``suite_file``, else from the folder $SPECBENCH_DATA, else from the user cache.
    Raises UserError for a wrong checksum, an unreadable file or a failed download.
    """
    if suite_file is not None:
        return _check_sha256(read_file(suite_file), suite_file, "use an unchanged copy, or `--suite file` for questions of your own")

    root = os.environ.get("SPECBENCH_DATA")
    provided = Path(root, "spec_bench", "question.jsonl") if root else None
    if provided is not None and provided.exists():
        return _check_sha256(read_file(provided), provided, "replace it with an unchanged copy, or unset SPECBENCH_DATA to download one")

    cached = cache_folder() / "spec_bench" / "question.jsonl"
    if not cached.exists():
        _download(cached)
    return _check_sha256(read_file(cached), cached, "delete it and run again to download it anew")


def read_file(path: Path) -> bytes:
    """Return a suite file's bytes. Raises UserError if it is missing or unreadable."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"suite file {path} does not exist; put it back, or check the path given by --suite-file") from None
    except OSError as error:
        raise UserError(f"suite file {path} cannot be read ({error.strerror}); pass a readable JSONL file by --suite-file") from None


def _check_sha256(raw: bytes, source: Path | str, next_step: str) -> bytes:
    actual = hashlib.sha256(raw).hexdigest()
    if actual != SHA256:
        raise UserError(f"{source}: sha256 {actual} is not that of Spec-Bench's questions, {SHA256}; {next_step}")
    return raw


def cache_folder() -> Path:
    """Return specbench's folder in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "specbench"


def _download(path: Path) -> None:
    try:
        with urllib.request.urlopen(URL, timeout=TIMEOUT_S) as response:
            raw = response.read()
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f"Spec-Bench's questions could not be downloaded from {URL} ({error}); {OWN_COPY}") from None

    _check_sha256(raw, URL, OWN_COPY)
    with atomic_write(path, next_step=f"set XDG_CACHE_HOME to a writable folder, or {OWN_COPY}") as partial:
        partial.write_bytes(raw)
