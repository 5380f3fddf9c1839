"""Repositories of the Hugging Face hub as local folders: downloaded once, then read from the hub's cache."""

import errno
import re
from difflib import get_close_matches
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from methods.core.errors import UserError
from specbench.targets import families

ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
TEXTS = ["config.json", "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"]
TEXTS += ["chat_template*"]
SAFETENSORS = ["*.safetensors", "*.safetensors.index.json"]
PICKLES = ["*.bin", "*.bin.index.json", "*.pt"]
# Other formats of the same weights, in folders or under another name, and files that a trainer leaves behind.
NEVER = ["*/*", "consolidated*", "training_args*", "optimizer*", "scheduler*"]


def is_id(name: str) -> bool:
    """Return whether a name is that of a repository, OWNER/NAME, and not of a local folder."""
    return bool(ID.fullmatch(name)) and not Path(name).exists()


def fetch_folder(name: str, revision: str | None = None, what: str = "target") -> Path:
    """Return the local folder of a hub id, OWNER/NAME, downloading it where necessary.

    A name that is a folder is returned as it is. ``revision`` is a branch, tag or commit; None is the main
    branch. Only text files and weights are downloaded: safetensors, or pickles where there are none.
    Without a network, or with HF_HUB_OFFLINE set, the folder is what the cache holds. Its name is the
    commit. Raises UserError, which calls the repository ``what``, where it is missing, closed or
    unreachable, or the disk is full.
    """
    if Path(name).is_dir():
        if revision is not None:
            raise UserError(f"--revision {revision} is for hub ids, and the {what} {name} is a folder here; leave --revision out")
        return Path(name)
    if not is_id(name):
        raise UserError(f"{what} {name!r} is neither a folder here nor a hub id, which is OWNER/NAME; check the path")

    folder = _download(name, revision, SAFETENSORS, what)
    if not any(folder.glob("*.safetensors")):
        folder = _download(name, folder.name, PICKLES, what)
    return folder


def fetch_texts(name: str, revision: str | None = None, what: str = "target") -> Path:
    """Return the local folder of a hub id, downloading its text files only, config.json among them."""
    return fetch_folder(name, revision, what) if not is_id(name) else _download(name, revision, [], what)


def _download(name: str, revision: str | None, weights: list[str], what: str) -> Path:
    def snapshot(local: bool) -> Path:
        patterns = [*TEXTS, *weights]
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=NEVER, local_files_only=local))

    try:
        try:
            return snapshot(local=False)
        except (ConnectionError, HTTPError) as error:
            if isinstance(error, HfHubHTTPError):  # the hub did answer
                raise
            return snapshot(local=True)  # clients before 2.0 do not fall back to the cache for a commit
    except (OSError, HTTPError, HFValidationError, RuntimeError) as error:  # hf_xet raises RuntimeErrors
        raise _explain(error, name, revision, what) from None


def _explain(error: Exception, name: str, revision: str | None, what: str) -> UserError:
    """Return the error to raise: what went wrong with a repository, and the next step."""
    page, at = f"https://huggingface.co/{name}", f" --revision {revision}" if revision else ""
    if isinstance(error, LocalEntryNotFoundError):
        return UserError(
            f"{what} {name}{at} is not whole in the local cache and the hub cannot be reached; "
            f"with a network, and HF_HUB_OFFLINE unset, run: hf download {name}{at}"
        )
    if isinstance(error, GatedRepoError):
        return UserError(f"{what} {name} is gated; accept its licence at {page}, then log in with: hf auth login")
    if isinstance(error, RevisionNotFoundError):
        return UserError(f"{what} {name} has no revision {revision!r}; pass a branch, tag or commit of {page}/commits/main to --revision")
    if isinstance(error, (RepositoryNotFoundError, HFValidationError)):
        similar = get_close_matches(name, families.hub_ids(), n=1)
        hint = f"did you mean {similar[0]!r}? " if similar else ""
        return UserError(
            f"{what} {name!r} is no folder here and no public repository of the hub; {hint}check the spelling, "
            "or, if it is private, log in with: hf auth login"
        )

    reason = next(iter(str(error).splitlines()), "")[:200]
    if (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left" in reason:
        return UserError(
            f"no room for {what} {name} in {constants.HF_HUB_CACHE}; free some, or set HF_HOME to a folder on a larger disk: "
            "what has arrived is kept"
        )
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return UserError(f"the hub refused access to {what} {name} ({reason}); log in again with: hf auth login")
    if isinstance(error, (HTTPError, RuntimeError)):
        return UserError(f"{what} {name} could not be fetched from the hub ({reason}); try again: what has arrived is kept")
    return UserError(f"{what} {name} cannot be stored in {constants.HF_HUB_CACHE} ({reason}); make it writable, or set HF_HOME")
