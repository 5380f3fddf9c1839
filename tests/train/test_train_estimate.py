"""The estimate of a training against the memory that training really uses."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.small_models import SHAPE, small_model
from helpers.tiny_target import write_target
from transformers import LlamaConfig

from methods.core.errors import UserError
from specbench.cli.app import main
from specbench.train import architecture, counting, estimate, loop, ship
from specbench.train.architecture import KINDS
from specbench.train.recipe import Job, Recipe
from specbench.util.terminal import Console

RECIPE = Recipe(tokens=40_000, seq=64, rows=2)


def job(kind, target, tmp_path, **options):
    return Job(kind, str(target), "c.jsonl", tmp_path / "o", tmp_path, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_counted_memory_is_what_training_uses(kind, tmp_path):
    """Weights and optimizer state match to the byte, saved tensors those of a real batch of the same shape."""
    code, options = architecture.resolve_drafter(job(kind, "tiny", tmp_path))
    config = LlamaConfig(**{**SHAPE, "vocab_size": 512})
    config._attn_implementation = "sdpa"
    found = counting.count_cost(code.Module, options, config, RECIPE)
    torch.manual_seed(0)
    module = code.Module(config, options)
    assert found.parameters == sum(p.numel() for p in module.parameters())
    batch, flat_P = counting.empty_batch(module.reads, config, RECIPE)
    flat_P = torch.randint(0, 32, flat_P.shape)
    kept = counting.SavedTensorCounter([*module.parameters(), *module.buffers(), *batch.embed.parameters(), *batch.lm_head.parameters()])
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        loss = module.loss(batch, flat_P)
    loss.backward()
    given = sum(each.nbytes for each in (batch.tokens_BT, batch.features_BTD, flat_P))
    assert found.saved_bytes == pytest.approx(kept.bytes, rel=0.1, abs=given)
    optimizers = loop.optimizers(module, 1e-3)
    for optimizer in optimizers:
        optimizer.step()
    state = [value for each in optimizers for held in each.state.values() for value in held.values()]
    assert found.optimizer_bytes == sum(each.nbytes for each in state if each.ndim)


def test_a_tensor_saved_twice_is_counted_once():
    given = torch.randn(100, requires_grad=True)
    kept = counting.SavedTensorCounter([given])
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        power = (given * given).exp()  # saves the given tensor, and its own result
        (power * power).sum().backward()  # the same again, twice
    assert kept.bytes == 400


def test_the_figures_follow_their_formulas(tmp_path):
    write_target(tmp_path)
    config = estimate.load_target_config(str(tmp_path), None)
    a_drafter = counting.DrafterCost(parameters=1000, reads=3, optimizer_bytes=6000, step_flops=10**6, saved_bytes=5000, flops=10**7)
    found = estimate.TrainingEstimate(config, a_drafter, RECIPE, processes=2, dtype=torch.bfloat16)
    vocab, layer = config.vocab_size, 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64 + 2 * 32
    assert found.parameters == 2 * layer + 2 * vocab * 32 + 32 == sum(p.numel() for p in small_model().parameters()) + 2 * 32 * (vocab - 64)
    assert found.target_bytes() == 2 * found.parameters
    assert found.drafter_bytes() == 8000
    assert found.feature_bytes() == 9 * 128 * 32 * 4 * 4
    assert found.cache_bytes() == 40_000 * 32 * 4 * 2
    assert found.text_bytes() == 40_000 * 3
    assert found.checkpoint_bytes() == 2 * (4000 + 6000)
    assert found.export_bytes() == 2000
    assert found.answer_bytes() == 2 * 2 * 2 * 8 * (1024 + 160) * 64 * 2
    assert found.forward_bytes() == 128 * (4 * 32 + 3 * 64) * 2
    assert found.memory_bytes() == found.target_bytes() + 8000 + 6000 + 5000 + found.feature_bytes() + found.forward_bytes()
    rates, steps = counting.DeviceRates(1e9, 1e6), 40_000 // 256
    assert found.target_read_s(rates) == pytest.approx(2 * 2 * layer * steps * 128 / 1e9)
    assert found.drafter_learn_s(rates) == pytest.approx(steps * 11e6 / 1e9)
    assert found.answer_s(rates) == pytest.approx((1 + 8) * 160 * found.target_bytes() / 1e6)


@pytest.mark.parametrize("kind", ["medusa", "eagle3"])
def test_an_estimate_loads_nothing(kind, tmp_path, monkeypatch, capsys):
    write_target(tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        path.unlink()
    monkeypatch.setattr(counting, "SIZES", {"cpu": (64, 2**16)})
    asked = ["train", kind, "--target", str(tmp_path), "--data", "nothing.jsonl", "--estimate"]
    with pytest.raises(SystemExit) as end:
        main([*asked, "--seq", "128"])
    shown = " ".join(capsys.readouterr().out.split())
    assert not end.value.code
    for word in ("memory: optimiser", "disk: features", "time: target reads", "measured here, on cpu"):
        assert word in shown, shown
    with pytest.raises(SystemExit) as end:
        main([*asked, "--seq", "4096"])
    assert end.value.code == 2
    assert "--seq takes 4096 tokens, more than the target's context" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        main([*asked, "--seq", "128", "--device", "cuda"])
    shown = capsys.readouterr().out
    assert not end.value.code
    assert ("time: target reads" in shown) == torch.cuda.is_available()


def test_an_estimate_of_an_unknown_target_or_method_is_refused(tmp_path):
    with pytest.raises(UserError, match="none' is neither a folder here nor a hub id"):
        estimate.print_estimate(job("medusa", tmp_path / "none", tmp_path), Console(quiet=True))
    with pytest.raises(UserError, match="unknown trainable method 'medsua'"):
        estimate.print_estimate(job("medsua", tmp_path, tmp_path), Console(quiet=True))


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_is_cut_by_default_where_the_targets_is_large(kind):
    code = architecture.resolve_drafter(job(kind, "tiny", Path()))[0]
    plain = code.Architecture()
    assert architecture.with_defaults(plain, {}, 32_000) == plain
    cut = architecture.with_defaults(plain, {}, 49_152)
    assert cut.vocabulary == 8192
    assert getattr(cut, "output", "target") == "target"
    assert architecture.with_defaults(plain, {"vocabulary": "0"}, 49_152) == plain
    if hasattr(plain, "output"):
        assert architecture.with_defaults(plain, {"output": "own"}, 49_152) == replace(plain, vocabulary=8192)


def test_drafters_of_a_small_target_with_a_large_vocabulary_fit_a_file():
    """The shape is that of SmolLM2-135M; S4C and Hydra fit with fewer levels than by default."""
    config = LlamaConfig(
        vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3
    )
    for kind, options in (("medusa", {}), ("eagle", {}), ("eagle3", {}), ("s4c", {"depth": 4}), ("hydra", {"heads": 2})):
        code = architecture.resolve_drafter(job(kind, "tiny", Path()))[0]
        with torch.device("meta"):
            module = code.Module(config, architecture.with_defaults(code.Architecture(**options), {}, config.vocab_size))
        assert 2 * sum(p.numel() for p in module.parameters()) < ship.MAX_FILE, kind
