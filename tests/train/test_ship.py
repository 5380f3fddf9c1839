"""Shipping of a trained target: its predicted size, its weights in small enough files, and its copy in the package."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from methods.core.errors import UserError
from specbench import targets
from specbench.targets import checkpoint
from specbench.train import ship
from specbench.util.terminal import Console


def test_the_predicted_parameter_counts_are_those_of_the_shipped_files():
    """The shipped files were trained with the preset micro."""
    folder = targets.shipped_folder()
    files = {"target": "model", "medusa": "drafters/medusa", "eagle": "drafters/eagle", "s4c": "drafters/s4c"}
    actual = {name: sum(t.numel() for t in load_file(folder / f"{file}.safetensors").values()) for name, file in files.items()}
    assert ship.count_parameters("micro") == actual


def test_a_preset_too_large_to_ship_is_refused(monkeypatch):
    ship.check_fits("micro", Console(quiet=True))
    monkeypatch.setattr(ship, "MAX_TOTAL", 12 * 2**20)
    with pytest.raises(UserError, match=r"preset micro in bf16: target 6.9, .* in all, 12 may ship; give it fewer layers"):
        ship.check_fits("micro", Console(quiet=True))


def test_large_weights_are_split_into_files_with_the_same_tensors(tmp_path, monkeypatch):
    folder = tmp_path / "target"
    shutil.copytree(targets.shipped_folder(), folder)
    before = load_file(folder / "model.safetensors")
    ship.shard(folder)
    assert (folder / "model.safetensors").is_file(), "small enough as it is"
    monkeypatch.setattr(ship, "MAX_FILE", 4 * 2**20)
    monkeypatch.setattr(ship, "SHARD_SIZE", "4MB")
    hashes = []
    for _ in range(2):
        ship.shard(folder)
        parts = sorted(folder.glob("*.safetensors"))
        assert len(parts) == 2
        assert max(path.stat().st_size for path in parts) <= 4 * 2**20
        after = {name: tensor for path in parts for name, tensor in load_file(path).items()}
        assert after.keys() == before.keys()
        assert all(tensor.dtype == torch.bfloat16 and torch.equal(tensor, before[name]) for name, tensor in after.items())
        hashes.append(checkpoint.sha256(folder))
        save_file(before, folder / "model.safetensors", metadata={"format": "pt"})  # as a resumed training saves it again
    assert hashes[0] == hashes[1], "or drafters would belong to another target"


def write_files(folder, size=1000, without=""):
    (folder / "drafters").mkdir(parents=True)
    names = ["config.json", "model-1.safetensors", *(f"drafters/{kind}.safetensors" for kind in ("eagle", "medusa", "s4c"))]
    for name in names:
        if name != without:
            (folder / name).write_bytes(b"n" * size)
    return folder


def test_installing_replaces_all_old_weights(tmp_path):
    new, place = write_files(tmp_path / "new"), tmp_path / "place"
    (place / "drafters").mkdir(parents=True)
    for name in ("model.safetensors", "drafters/old.safetensors", "keep.txt"):
        (place / name).write_text("old")
    installed = ship.install(new, place)
    assert {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()} == {"keep.txt", *map(str, installed)}
    assert (place / "model-1.safetensors").read_bytes() == b"n" * 1000


@pytest.mark.parametrize(
    ("size", "without", "limits", "message"),
    [
        (1000, "drafters/s4c.safetensors", (2000, 9000), "lacks s4c"),
        (1000, "config.json", (2000, 9000), "lacks config.json"),
        (3000, "", (2000, 90000), "may ship in a file"),
        (1900, "", (2000, 9000), "may ship; train a smaller preset"),
    ],
)
def test_incomplete_or_too_large_files_are_refused_and_change_nothing(tmp_path, monkeypatch, size, without, limits, message):
    place = tmp_path / "place"
    place.mkdir()
    (place / "model.safetensors").write_text("old")
    for name, limit in zip(("MAX_FILE", "MAX_TOTAL"), limits, strict=True):
        monkeypatch.setattr(ship, name, limit)
    with pytest.raises(UserError, match=message):
        ship.install(write_files(tmp_path / "new", size, without), place)
    assert [path.name for path in place.iterdir()] == ["model.safetensors"]
