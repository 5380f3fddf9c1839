"""Targets from the hub: read from a cache in the hub's own layout, and the errors where there is none."""

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers.tiny_target import write_suite, write_target
from huggingface_hub import constants, errors

from methods.core.errors import UserError
from specbench import targets
from specbench.cli.app import main
from specbench.store.manifest import RunManifest
from specbench.targets import hub

COMMIT, OLDER = "a" * 40, "b" * 40
NAME = "own/tiny-llama"


def keep(cache: Path, name: str, commit: str, files: dict[str, bytes], ref: str | None = None) -> Path:
    """Put a repository into the cache: blobs, a snapshot of links to them, and the commit of a branch or tag."""
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    for place in (repository / "blobs", snapshot, repository / "refs"):
        place.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        blob = repository / "blobs" / f"{commit[:4]}{file}"
        blob.write_bytes(content)
        (snapshot / file).symlink_to(blob)
    if ref:
        (repository / "refs" / ref).write_text(commit)
    return snapshot


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return {path.name: path.read_bytes() for path in write_target(tmp_path_factory.mktemp("target")).iterdir()}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache"


def test_a_folder_is_returned_as_it_is(tmp_path):
    assert hub.fetch_folder(str(tmp_path)) == tmp_path
    with pytest.raises(UserError, match=r"--revision v1 is for hub ids, and the target .* is a folder here; leave --revision out"):
        hub.fetch_folder(str(tmp_path), "v1")


def test_a_repository_is_read_from_the_cache_offline(cache, files):
    newest, older = keep(cache, NAME, COMMIT, files, "main"), keep(cache, NAME, OLDER, files, "v1")
    assert hub.fetch_folder(NAME) == hub.fetch_folder(NAME, "main") == hub.fetch_folder(NAME, COMMIT) == newest
    assert hub.fetch_folder(NAME, "v1") == hub.fetch_folder(NAME, OLDER) == older


def test_a_resumed_run_uses_the_commit_that_the_run_began_with(cache, files, tmp_path):
    keep(cache, NAME, COMMIT, files, "main")
    suite = write_suite(tmp_path / "suite.jsonl", [("a", "talks", ["Say a."])])
    out = tmp_path / "run"
    main_of = ["--method", "pld", "--suite-file", str(suite), "--max-new-tokens", "3", "--dtype", "fp32", "--device", "cpu"]
    run(["run", "--target", NAME, *main_of, "--out", str(out)])
    manifest = RunManifest.read(out)
    assert manifest.settings.revision == COMMIT
    assert manifest.name == "file-tiny-llama"
    keep(cache, NAME, OLDER, {}, "main")  # the branch moves on
    run(["resume", str(out)])
    assert RunManifest.read(out).status == "complete"


def run(arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert not stop.value.code


def asked_for(monkeypatch, have: set[str]):
    """Replace the download of a repository with these files, and return the list of the requests made."""
    asked = []

    def snapshot_download(name, **options):
        asked.append(options)
        kept = allowed(have, options)
        folder = Path(constants.HF_HUB_CACHE) / COMMIT
        folder.mkdir(parents=True, exist_ok=True)
        for file in kept:
            (folder / file).write_text("")
        return str(folder)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    return asked


def allowed(have, options):
    from huggingface_hub.utils import filter_repo_objects

    return list(filter_repo_objects(sorted(have), allow_patterns=options["allow_patterns"], ignore_patterns=options["ignore_patterns"]))


TEXTS = {"config.json", "generation_config.json", "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"}
OTHERS = {
    "README.md",
    "original/consolidated.00.pth",
    "original/tokenizer.model",
    "consolidated.safetensors",
    "tf_model.h5",
    "training_args.bin",
}
SHARDS = {"model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.safetensors.index.json"}
BINS = {"pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "pytorch_model.bin.index.json"}


@pytest.mark.parametrize(
    ("weights", "fetched"),
    [(SHARDS, SHARDS), (BINS, BINS), (SHARDS | BINS, SHARDS), ({"medusa_lm_head.pt"}, {"medusa_lm_head.pt"})],
    ids=["safetensors", "pickles", "both", "a drafter's"],
)
def test_only_texts_and_one_kind_of_weights_are_downloaded(cache, monkeypatch, weights, fetched):
    asked = asked_for(monkeypatch, TEXTS | OTHERS | weights)
    found = hub.fetch_folder(NAME, "v1")
    assert {path.name for path in found.iterdir()} == TEXTS | fetched
    assert [options["revision"] for options in asked] == ["v1", COMMIT][: len(asked)], "both of one commit"


def answer(status):
    return {"response": SimpleNamespace(headers={}, request=None, status_code=status)}


UNREACHED = "is not whole in the local cache and the hub cannot be reached; with a network, and HF_HUB_OFFLINE unset, run: hf download"


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.RepositoryNotFoundError("404", **answer(404)), "is no folder here and no public repository .*hf auth login"),
        (errors.GatedRepoError("403", **answer(403)), f"is gated; accept its licence at https://huggingface.co/{NAME}, then log in"),
        (
            errors.RevisionNotFoundError("404", **answer(404)),
            f"has no revision 'v9'; pass a branch, tag or commit of .*{NAME}/commits/main",
        ),
        (errors.LocalEntryNotFoundError("offline"), f"{UNREACHED} {NAME} --revision v9"),
        (errors.HfHubHTTPError("401 bad token\nmore", **answer(401)), r"refused access to .* \(401 bad token\); log in again with"),
        (errors.HfHubHTTPError("503 sorry", **answer(503)), r"could not be fetched from the hub \(503 sorry\); try again"),
        (errors.HTTPError("the line broke"), r"could not be fetched from the hub \(the line broke\); try again"),
        (OSError(errno.ENOSPC, "No space left on device"), "no room for .* free some, or set HF_HOME"),
        (RuntimeError("Data processing error: No space left on device (os error 28)"), "no room for .* set HF_HOME"),
        (PermissionError(errno.EACCES, "Permission denied"), "cannot be stored in .*Permission denied.* make it writable, or set HF_HOME"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_error_of_a_repository_is_one_line_with_the_next_step(cache, monkeypatch, error, message):
    def snapshot_download(*_, **__):
        raise error

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    with pytest.raises(UserError, match=message) as caught:
        hub.fetch_folder(NAME, "v9", what="drafter")
    assert "\n" not in str(caught.value)
    assert "drafter own/tiny-llama" in str(caught.value).replace("'", "")


@pytest.mark.parametrize("error", [errors.OfflineModeIsEnabled("offline"), errors.HTTPError("no such host")])
def test_an_unreachable_hub_falls_back_to_the_cache(cache, files, monkeypatch, error):
    snapshot, ask = keep(cache, NAME, COMMIT, files, "main"), hub.snapshot_download

    def snapshot_download(*names, local_files_only, **options):
        if not local_files_only:
            raise error
        return ask(*names, local_files_only=True, **options)

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    assert hub.fetch_folder(NAME, COMMIT) == snapshot
    with pytest.raises(UserError, match="is not whole in the local cache"):
        hub.fetch_folder(NAME, OLDER)


def test_a_repository_that_is_not_cached_is_refused_offline(cache):
    with pytest.raises(UserError, match=f"target {NAME} {UNREACHED} {NAME}"):
        hub.fetch_folder(NAME)


def test_the_error_for_a_mistyped_id_suggests_a_known_one(cache, monkeypatch):
    def snapshot_download(*_, **__):
        raise errors.RepositoryNotFoundError("404", **answer(404))

    monkeypatch.setattr(hub, "snapshot_download", snapshot_download)
    with pytest.raises(UserError, match=r"did you mean 'lmsys/vicuna-7b-v1\.3'"):
        hub.fetch_folder("lmsys/vicuna-7b-1.3")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "vicuna-7b-v1.3"], "unknown target 'vicuna-7b-v1.3'; did you mean 'lmsys/vicuna-7b-v1.3'"),
        (["--target", "/nowhere/at/all"], "target folder /nowhere/at/all does not exist"),
        (["--target", NAME], "is not whole in the local cache"),
        (["--target", "tiny", "--revision", "v1"], "target tiny is built here; leave --revision out"),
        (["--target", "tiny", "--device-map", "auto"], "target tiny is built here; leave --device-map out"),
        (["--target", "tiny", "--thinking", "maybe"], "unknown value of --thinking 'maybe'"),
    ],
)
def test_a_run_whose_target_cannot_be_loaded_ends_in_one_line(cache, capsys, tmp_path, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(["run", *arguments, "--device", "cpu", "--limit", "1", "--out", str(tmp_path / "run")])
    assert stop.value.code == 2
    complaint = capsys.readouterr().err
    assert message in complaint
    assert complaint.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_snapshot_without_weights_is_refused(cache, files):
    keep(cache, NAME, COMMIT, {name: content for name, content in files.items() if "safetensors" not in name}, "main")
    with pytest.raises(UserError, match=r"cannot be loaded \(it holds neither model.safetensors nor pytorch_model.bin"):
        targets.load(NAME, device="cpu", dtype="fp32", attention="sdpa")
