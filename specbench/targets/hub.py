"""Repositories of the Hugging Face hub as local folders: downloaded once, then read from the hub's own cache."""

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
# Other formats of the same weights, in folders or under another name, and what a trainer leaves beside them.
NEVER = ["*/*", "consolidated*", "training_args*", "optimizer*", "scheduler*"]


def is_id(name: str) -> bool:
    """Whether a name is a repository's, OWNER/NAME, and no folder here."""
    return bool(ID.fullmatch(name)) and not Path(name).exists()


def folder(name: str, revision: str | None = None, what: str = "target") -> Path:
    """The local folder of a hub id, OWNER/NAME, at a branch, tag or commit (None: its main branch); a folder is returned as it is.

    Of a repository only texts and weights are fetched: safetensors, or pickles where there are none. Without a network, or with
    HF_HUB_OFFLINE set, it is what the cache holds. The folder of a hub id is named by its commit. ``what`` names the thing in the
    UserErrors, one line each, for everything that can be missing, closed, unreachable or full.
    """
    if Path(name).is_dir():
        if revision is not None:
            raise UserError(f"--revision {revision} is for hub ids, and the {what} {name} is a folder here; leave --revision out")
        return Path(name)
    if not is_id(name):
        raise UserError(f"{what} {name!r} is neither a folder here nor a hub id, which is OWNER/NAME; check the path")
    found = _fetched(name, revision, SAFETENSORS, what)
    if not any(found.glob("*.safetensors")):
        found = _fetched(name, found.name, PICKLES, what)
    return found


def texts(name: str, revision: str | None = None, what: str = "target") -> Path:
    """A folder with a hub id's texts, its config among them, and whatever weights the cache holds; a folder as it is."""
    return folder(name, revision, what) if not is_id(name) else _fetched(name, revision, [], what)


def cached(name: str, revision: str | None = None) -> Path | None:
    """The folder of a hub id as far as the cache holds it, without asking the hub; a folder as it is; None where there is neither."""
    if not is_id(name):
        return Path(name) if Path(name).is_dir() else None
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=TEXTS, ignore_patterns=NEVER, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _fetched(name: str, revision: str | None, weights: list[str], what: str) -> Path:
    def snapshot(local: bool) -> Path:
        patterns = [*TEXTS, *weights]
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=NEVER, local_files_only=local))

    try:
        try:
            return snapshot(local=False)
        except (ConnectionError, HTTPError) as error:
            if isinstance(error, HfHubHTTPError):  # the hub was reached
                raise
            return snapshot(local=True)  # which clients before 2.0 do not try by themselves for a commit
    except (OSError, HTTPError, HFValidationError, RuntimeError) as error:  # hf_xet, which moves large files, raises RuntimeErrors
        raise _explained(error, name, revision, what) from None


def _explained(error: Exception, name: str, revision: str | None, what: str) -> UserError:
    """What went wrong with a repository and the next step."""
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
        near = get_close_matches(name, families.ids(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
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
