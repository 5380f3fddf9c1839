"""Files that survive a kill, the check for a writable place, and checkpoints that move between devices."""

import numpy as np
import pytest
import torch
from torch import nn

from methods.core.errors import UserError
from specbench.train import loop
from specbench.train.data import texts
from specbench.util import files


def stepped(device, state_file):
    """Train a layer for one step from its checkpoint, save it, and return the steps done before."""
    module = nn.Sequential(nn.Linear(4, 4)).to(device)
    optimizers = loop.optimizers(module, 1e-2)
    done = loop.restore_state(module, optimizers, state_file)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    loop.save_state(module, optimizers, done + 1, state_file)
    return done


def test_a_checkpoint_is_read_on_the_cpu(tmp_path, monkeypatch):
    devices, load = [], torch.load

    def recorded(path, *, map_location=None, **options):
        devices.append(map_location)
        return load(path, map_location=map_location, **options)

    monkeypatch.setattr(torch, "load", recorded)
    assert [stepped("cpu", tmp_path / "state.pt") for _ in range(2)] == [0, 1]
    assert devices == ["cpu"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_training_moves_from_cuda_to_cpu_and_back(tmp_path):
    assert [stepped(device, tmp_path / "state.pt") for device in ("cuda", "cpu", "cuda")] == [0, 1, 2]


def test_a_kill_while_saving_leaves_no_file_of_the_final_name(tmp_path, monkeypatch):
    def killed(file, array):
        file.write(b"\x93NUMPY")
        raise KeyboardInterrupt

    text = np.arange(5, dtype=np.uint16)
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            texts.save_array(tmp_path / "work" / "own.npy", text)
    assert not (tmp_path / "work" / "own.npy").exists()
    texts.save_array(tmp_path / "work" / "own.npy", text)
    assert np.load(tmp_path / "work" / "own.npy").tolist() == [0, 1, 2, 3, 4]
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["own.npy"]


def test_a_writable_place_is_not_created(tmp_path):
    files.check_writable(tmp_path / "new" / "deep" / "file.txt")
    files.check_writable(tmp_path / "new" / "deep", folder=True)
    files.check_writable(tmp_path, folder=True)
    assert list(tmp_path.iterdir()) == []


def test_a_run_and_what_a_command_reads_are_not_written_over(tmp_path):
    run, read, folder = tmp_path / "run", tmp_path / "read.jsonl", tmp_path / "target"
    for place in (run, folder):
        place.mkdir()
    for file in (run / files.RECORDS, read, folder / "config.json"):
        file.write_text("kept")
    (tmp_path / "link").symlink_to(run / files.RECORDS)
    (tmp_path / "linked").symlink_to(run)
    (tmp_path / "aside").symlink_to(read)
    (run / files.PACKED).symlink_to(read)

    of_run = [run / name for name in files.RUN_FILES]
    for path in (*of_run, tmp_path / "link", tmp_path / "linked" / files.AGREEMENT, run / ".." / "run" / files.MANIFEST):
        with pytest.raises(UserError, match=r"is a file of the run in .*run; choose another --junit$"):
            files.check_writable(path, option="--junit")
    for path in (read, tmp_path / "aside", folder / "config.json"):
        with pytest.raises(UserError, match=r"is a file that this command reads or writes otherwise; choose another --out$"):
            files.check_writable(path, inputs=[None, "", str(tmp_path / "aside"), folder])
    for path in (run / "check.xml", folder / "new.toml", folder / "drafters" / "medusa.safetensors", tmp_path / files.MANIFEST):
        files.check_writable(path, inputs=[read, folder])


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    files.check_writable(tmp_path / "file")
    for path, folder, message in (
        (tmp_path, False, "is a directory; name a file"),
        (tmp_path / "file", True, r"cannot write to .*file \(Not a directory\); choose another --work or make room there"),
        (tmp_path / "file" / "below" / "out", False, r"cannot write to .*out \(Not a directory\)"),
    ):
        with pytest.raises(UserError, match=message):
            files.check_writable(path, folder=folder, option="--work")
