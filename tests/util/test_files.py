"""What training keeps on disk to resume from: whole after a kill, and readable on another device."""

import numpy as np
import pytest
import torch
from torch import nn

from specbench.train import loop
from specbench.util import files


def stepped(device, state_file):
    """A layer resumed from the file where there is one, a step further and saved."""
    module = nn.Sequential(nn.Linear(4, 4)).to(device)
    optimizers = loop.optimizers(module, 1e-2)
    done = loop._restore(module, optimizers, state_file)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    loop.save_state(module, optimizers, done + 1, state_file)
    return done


def test_a_state_is_read_on_the_cpu_whatever_wrote_it(tmp_path, monkeypatch):
    places, load = [], torch.load

    def noted(*args, map_location=None, **options):
        places.append(map_location)
        return load(*args, map_location=map_location, **options)

    monkeypatch.setattr(torch, "load", noted)
    assert [stepped("cpu", tmp_path / "state.pt") for _ in range(2)] == [0, 1]
    assert places == ["cpu"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_training_moves_from_cuda_to_cpu_and_back(tmp_path):
    assert [stepped(device, tmp_path / "state.pt") for device in ("cuda", "cpu", "cuda")] == [0, 1, 2]


def test_a_kill_while_saving_leaves_nothing_a_rerun_trips_over(tmp_path, monkeypatch):
    def torn(file, array):
        file.write(b"\x93NUMPY")
        raise KeyboardInterrupt

    text = np.arange(5, dtype=np.uint16)
    with monkeypatch.context() as patch:
        patch.setattr(np, "save", torn)
        with pytest.raises(KeyboardInterrupt):
            files.save(tmp_path / "work" / "own.npy", text)
    assert not (tmp_path / "work" / "own.npy").exists()
    files.save(tmp_path / "work" / "own.npy", text)
    assert np.load(tmp_path / "work" / "own.npy").tolist() == [0, 1, 2, 3, 4]
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["own.npy"]
