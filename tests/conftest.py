import gc
import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported
os.environ["SPECBENCH_BACKEND"] = "eager"  # compiling takes seconds a shape: the tests of the static back end ask for it
os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is: no test asks the hub

from pathlib import Path

import pytest

# The process that only hands out tests reads this file too: what takes seconds to import is imported where it is used.


def pytest_addoption(parser):
    parser.addoption("--update-golden", action="store_true", help="Rewrite the files under tests/golden.")


def pytest_collection_finish():
    """Keep what the imports created out of every garbage collection: looking through it took a fifth of the suite's time."""
    import torch

    from specbench.util.memory import freeze_gc

    torch.set_num_threads(1)
    freeze_gc()
    gc.unfreeze = lambda: None


@pytest.fixture(autouse=True)
def figures(request, monkeypatch):
    """Write empty figures, because drawing takes seconds a run, unless the test is marked ``figures``."""
    from matplotlib.figure import Figure

    if not request.node.get_closest_marker("figures"):
        monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: Path(path).write_bytes(b""))


@pytest.fixture
def wide_terminal(monkeypatch):
    """Give tables 250 columns, so that no line is wrapped. The commands' console read its width when it was made."""
    from specbench.cli import common

    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setattr(common.console, "width", 250)


@pytest.fixture
def exact_math(monkeypatch):
    """Compute transformers' norms and eager softmax in their inputs' dtype, because fp32 is too coarse for an fp64 comparison."""
    import torch
    from transformers.models.llama.modeling_llama import LlamaRMSNorm
    from transformers.models.mistral.modeling_mistral import MistralRMSNorm
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
    from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

    def norm(self, hidden_states):
        mean_square = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * hidden_states * torch.rsqrt(mean_square + self.variance_epsilon)

    def softmax(scores, dim, dtype=None):
        return scores.softmax(dim)

    for kind in (LlamaRMSNorm, MistralRMSNorm, Qwen2RMSNorm, Qwen3RMSNorm):
        monkeypatch.setattr(kind, "forward", norm)
    monkeypatch.setattr(torch.nn.functional, "softmax", softmax)
